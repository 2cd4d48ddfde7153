"""The records of an evaluation, one an episode, and the scores that are computed from them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.episodes import EpisodeDataset
from diffews.errors import InputError
from diffews.evaluation.metrics import Scores, bootstrap_samples, interval, iou_percent
from diffews.runtime.files import write_atomic

# {"index", "class_id", "query", "supports", "inter": [bg, fg], "union": [bg, fg]}, and what else is
# asked for: "own_size" and "sweep" hold more of "inter" and "union", "boundary" a pair of counts
Record = dict[str, Any]


class Records:
    """The lines of episodes.jsonl, in list order.

    What a killed run left unfinished is cut off when the file is opened.
    """

    def __init__(self, path: Path, dataset: EpisodeDataset, batch: int) -> None:
        self.path = path
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
        self._keep([_read(line, number, dataset, path) for number, line in enumerate(lines)])

    def __len__(self) -> int:
        return len(self.records)

    def append(self, fresh: list[Record], write: bool) -> None:
        """Adds the records that are not there yet; a group may have come again for its pictures.

        Args:
            fresh: records of a group, or of several in a row.
            write: also append them to the file, as one of several processes does.

        """
        fresh = [record for record in fresh if record["index"] >= len(self)]
        if write:
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(record) + "\n" for record in fresh).encode())
        self._keep(fresh)

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


def summarize(records: list[Record], dataset: EpisodeDataset) -> dict[str, Any]:
    """Computes every score from the records; IoU in percent."""
    scores, names = add_up(records, Scores(dataset.class_ids)), dataset.class_names

    return {
        "miou": scores.miou(),
        "miou_interval": list(interval(resample(records, dataset.class_ids))),
        "fb_iou": scores.fb_iou(),
        "mean_episode_iou": float(np.mean(iou_percent(*foreground(records)))),
        **_extra_scores(records, dataset),
        "class_ids": list(dataset.class_ids),
        "classes_drawn": len({record["class_id"] for record in records}),
        "per_class": {names[class_id]: iou for class_id, iou in scores.per_class().items()},
        "episodes": len(records),
        "episodes_sha256": dataset.episodes.sha256,
    }


def _extra_scores(records: list[Record], dataset: EpisodeDataset) -> dict[str, Any]:
    """What was counted beside: mIoU at the images' size, of boundaries, at other thresholds."""

    def miou(counts: Iterable[dict[str, Any]]) -> float:
        replaced = [record | count for record, count in zip(records, counts, strict=True)]
        return add_up(replaced, Scores(dataset.class_ids)).miou()

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
    return extra


def _read(line: bytes, number: int, dataset: EpisodeDataset, path: Path) -> Record:
    """Reads a line, which must be the record of the list's episode of this number."""
    try:
        record = json.loads(line)
        names = [record["class_id"], record["query"], record["supports"]]
        counts = [record["inter"], record["union"]]
        good = all(len(count) == 2 and all(isinstance(n, int) for n in count) for count in counts)
        if good and record["index"] == number and names == dataset.published[number].names():
            return record
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    cure = "remove the file to start again"
    raise InputError(f"{path}: line {number + 1} is no record of this list; {cure}")
