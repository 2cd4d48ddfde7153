"""The records of an evaluation, one an episode, and the scores that are computed from them."""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.episodes import EpisodeDataset
from diffews.errors import InputError, refuse, shorten
from diffews.evaluation.absent import check_absent, summarize_absent
from diffews.evaluation.metrics import Scores, bootstrap_samples, interval, iou_percent
from diffews.runtime.files import read_json, write_atomic

# {"index", "class_id", "query", "supports", "inter": [bg, fg], "union": [bg, fg]}, and what else is
# asked for: "own_size" and "sweep" hold more of "inter" and "union", "boundary" a pair of counts;
# "presence", "truth" and "absent" are those of `absent.py`
Record = dict[str, Any]
NAMES = ("class_id", "query", "supports")  # of a record: what the list says
MOST_PIXELS = 1 << 40  # beyond any picture


class Records:
    """The lines of episodes.jsonl, in list order.

    What a killed run left unfinished is cut off when the file is opened.

    Attributes:
        records: one an episode.
        scores: what they add up to.
        empty: of an episode by its index, which of its masks mark no pixel at the model's size,
            "query" and "support"; empty_masks.json keeps it, where there is one.

    """

    def __init__(self, path: Path, dataset: EpisodeDataset, batch: int) -> None:
        self.path, self.empty_path = path, path.with_name("empty_masks.json")
        content = path.read_bytes() if path.is_file() else b""
        lines = content.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if len(lines) < len(dataset):
            del lines[len(lines) // batch * batch :]  # an unfinished group is computed whole again
        if b"".join(lines) != content:
            write_atomic(path, b"".join(lines))

        self.records: list[Record] = []
        self.scores = Scores(dataset.class_ids)
        listed = [episode.names() for episode in dataset.published]
        self._keep(read_records(lines, path, dataset.image_size, dataset.class_ids, listed))

        self.empty: dict[int, list[str]] = {}
        if lines and self.empty_path.is_file():
            with refuse(f"{self.empty_path} is no list of empty masks", ValueError, TypeError,
                        cure="remove it, and they are not counted"):
                self.empty = {int(index): [str(name) for name in names]
                              for index, names in read_json(self.empty_path).items()}

    def __len__(self) -> int:
        return len(self.records)

    def append(self, fresh: list[Record], write: bool) -> None:
        """Adds the records that are not there yet; a group may have come again for its pictures.

        Args:
            fresh: records of a group, or of several in a row; each with a list "empty", which
                goes into a file of its own.
            write: also append them to the file, as one of several processes does.

        """
        fresh = [record for record in fresh if record["index"] >= len(self)]
        found = {record["index"]: record.pop("empty") for record in fresh}
        self.empty |= {index: names for index, names in found.items() if names}
        if write:
            if any(found.values()):
                write_atomic(self.empty_path, json.dumps(self.empty) + "\n")
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(record) + "\n" for record in fresh).encode())
        self._keep(fresh)

    def count_empty(self, episodes: int) -> int:
        """How many of the first episodes have an empty mask."""
        return sum(index < episodes for index in self.empty)

    def _keep(self, records: list[Record]) -> None:
        self.records += records
        add_up(records, self.scores)


def add_up(records: Sequence[Record], scores: Scores) -> Scores:
    """Adds the records' counts to the scores, which it returns."""
    for record in records:
        scores.add(record["class_id"], record["inter"], record["union"])
    return scores


def foreground(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the foreground's intersections and unions: two arrays (episodes,)."""
    inter, union = (
        np.array([record[part][1] for record in records]) for part in ("inter", "union"))
    return inter, union


def resample(records: Sequence[Record], class_ids: Sequence[int]) -> np.ndarray:
    """Returns bootstrap samples of the mIoU in percent; see `bootstrap_samples`."""
    classes = [record["class_id"] for record in records]
    return bootstrap_samples(classes, class_ids, *foreground(records))


def summarize(records: list[Record], class_names: Mapping[int, str]) -> dict[str, Any]:
    """Computes every score from the records; IoU in percent.

    class_names: of the fold's novel classes, by their ids.
    """
    class_ids = list(class_names)
    scores = add_up(records, Scores(class_ids))

    return {
        "miou": scores.miou(),
        "miou_interval": list(interval(resample(records, class_ids))),
        "fb_iou": scores.fb_iou(),
        "mean_episode_iou": float(np.mean(iou_percent(*foreground(records)))),
        **_extra_scores(records, class_ids),
        "class_ids": class_ids,
        "classes_drawn": len({record["class_id"] for record in records}),
        "per_class": {class_names[class_id]: iou for class_id, iou in scores.per_class().items()},
        "episodes": len(records),
        "episodes_sha256": _hash_names(records),
    }


def _extra_scores(records: list[Record], class_ids: Sequence[int]) -> dict[str, Any]:
    """What was counted beside: mIoU at the images' size, of boundaries, at other thresholds."""

    def miou(counts: Iterable[dict[str, Any]]) -> float:
        replaced = [record | count for record, count in zip(records, counts, strict=True)]
        return add_up(replaced, Scores(class_ids)).miou()

    extra: dict[str, Any] = {}
    first = records[0] if records else {}
    if "own_size" in first:
        pairs = (record["boundary"] for record in records)
        boundaries = ({"inter": [0, inter], "union": [0, union]} for inter, union in pairs)
        extra["miou_own_size"] = miou(record["own_size"] for record in records)
        extra["boundary_miou"] = miou(boundaries)
    if "sweep" in first:
        swept = {name: [record["sweep"][name] for record in records] for name in first["sweep"]}
        extra["miou_by_threshold"] = {name: miou(counts) for name, counts in swept.items()}
    if "absent" in first:
        extra |= summarize_absent(records, class_ids)
    return extra


def _hash_names(records: Sequence[Record]) -> str:
    """Returns the hash of the records' list of episodes, as `EpisodeList` has it."""
    names = [[record[key] for key in NAMES] for record in records]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


# ---- what is read is verified ----


def read_result(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """Reads result.json and the records of a finished evaluation, whose figures must be theirs.

    Raises:
        InputError: where there is none, or where the two do not agree, naming what differs.

    """
    result, file = read_json(folder / "result.json"), folder / "episodes.jsonl"
    cure = "run `diffews eval` into it"
    with refuse(f"{folder} is no finished evaluation", KeyError, OSError, ValueError, TypeError,
                cure=cure):
        whole = {key: result[key] for key in ("episodes", "fold", "shots", "image_size")}
        if any(type(value) is not int or value < 0 for value in whole.values()):
            raise ValueError(f"result.json: whole numbers are needed, not {whole}")
        class_ids, _ = result["class_ids"], (result["miou"], result["fb_iou"])
        if not class_ids or len({int(class_id) for class_id in class_ids}) != len(class_ids):
            raise ValueError("result.json: class_ids is no list of different classes")
        if len(result["per_class"]) != len(class_ids):
            raise ValueError("result.json: per_class and class_ids do not hold the same classes")

        lines = file.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if not 0 < result["episodes"] <= len(lines):
            raise ValueError(f"{len(lines)} of {result['episodes']} episodes")

    records = read_records(lines, file, result["image_size"], class_ids)[: result["episodes"]]
    if any(len(record["supports"]) != result["shots"] for record in records):
        raise InputError(f"{file}: not every episode has {result['shots']} supports; {cure}")

    # the intervals are left out: they are drawn, by a generator that may change
    now = summarize(records, dict(zip(class_ids, result["per_class"], strict=True)))
    for key in now:
        if key in result and not key.endswith("_interval") and not _agree(now[key], result[key]):
            there, here = shorten(result[key]), shorten(now[key])
            raise InputError(f"{folder}: result.json says {key}: {there}, its episodes.jsonl "
                             f"gives {here}; {cure} again")
    return {**result, **now}, records


def read_records(
    lines: Sequence[bytes], path: Path, image_size: int, class_ids: Collection[int],
    listed: Sequence[Any] | None = None
) -> list[Record]:
    """Reads the lines of episodes.jsonl, one an episode in order, and verifies each.

    Args:
        lines: of the file.
        path: what to name in an error.
        image_size: side in pixels of the masks that were counted.
        class_ids: the fold's novel classes.
        listed: the names of the list's episodes, if they are known.

    Raises:
        InputError: for a line that is no record, naming it.

    """
    records: list[Record] = []
    for number, line in enumerate(lines):
        with refuse(f"{path}: line {number + 1} is no record of this list", ValueError, TypeError,
                    LookupError, AttributeError, RecursionError,
                    cure="remove the file to start again"):
            record = json.loads(line)
            if type(record["index"]) is not int or record["index"] != number:
                raise ValueError(f"its index is {shorten(record['index'])}, not {number}")
            if record["class_id"] not in class_ids or type(record["class_id"]) is not int:
                raise ValueError(f"its class is {shorten(record['class_id'])}")
            names = [record[key] for key in NAMES]
            if not all(isinstance(name, str) for name in (names[1], *names[2])):
                raise ValueError("a picture's name is no text")
            if listed is not None and names != listed[number]:
                raise ValueError("the list has another episode there")

            # the counts at the size of the masks, and what was counted beside, the same in all
            first = records[0] if records else record
            if [*record, *record.get("sweep", ())] != [*first, *first.get("sweep", ())]:
                raise ValueError("it does not hold what the first line holds")
            for counts in (record, *record.get("sweep", {}).values()):
                _check_counts(counts["inter"], counts["union"], image_size**2)
            if "own_size" in record:
                _check_counts(record["own_size"]["inter"], record["own_size"]["union"], MOST_PIXELS)
                inter, union = record["boundary"]
                _check_counts([inter, 0], [union, 0], image_size**2)
            if "absent" in record:
                check_absent(record, image_size**2)
        records.append(record)
    return records


def _check_counts(inter: Any, union: Any, pixels: int) -> None:
    """Raises ValueError unless both hold two whole numbers, 0 <= inter <= union <= pixels."""
    pairs = list(zip(inter, union, strict=True))
    good = all(type(count) is int for pair in pairs for count in pair) and len(pairs) == 2
    if not good or not all(0 <= low <= high <= pixels for low, high in pairs):
        raise ValueError(f"inter {shorten(inter)} and union {shorten(union)} are no counts of "
                         f"{pixels} pixels")


def _agree(now: Any, then: Any) -> bool:
    """Whether two values of result.json are the same, but for the rounding of a score."""
    if isinstance(now, dict):
        # the values alone: keys are names
        return isinstance(then, dict) and _agree(list(now.values()), list(then.values()))
    if isinstance(now, list):
        return (isinstance(then, list) and len(now) == len(then)
                and all(map(_agree, now, then)))
    if isinstance(now, float):
        return type(then) in (int, float) and math.isclose(now, then, abs_tol=1e-6)
    return type(now) is type(then) and now == then
