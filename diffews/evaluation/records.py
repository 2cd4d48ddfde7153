"""What an evaluation keeps of each episode, and the figures that are computed from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.episodes import EpisodeDataset
from diffews.errors import InputError
from diffews.evaluation.metrics import Scores, bootstrap_samples, interval, mean_episode_iou
from diffews.runtime.files import write_atomic

Record = dict[str, Any]  # {"index", "class_id", "query", "supports", "inter": [bg, fg], "union": [bg, fg]}


class Records:
    """The lines of episodes.jsonl, in list order. What a killed run left unfinished is cut off when it is opened."""

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
        self._keep([_read_record(line, number, dataset, path) for number, line in enumerate(lines)])

    def __len__(self) -> int:
        return len(self.records)

    def append(self, fresh: list[Record], write: bool) -> None:
        """Adds the records that are not there yet (a group may have been computed again for its pictures)."""
        fresh = [record for record in fresh if record["index"] >= len(self)]
        if write:
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(record) + "\n" for record in fresh).encode())
        self._keep(fresh)

    def _keep(self, records: list[Record]) -> None:
        self.records += records
        for record in records:
            self.scores.add(record["class_id"], record["inter"], record["union"])


def summarize(records: list[Record], dataset: EpisodeDataset) -> dict[str, Any]:
    """Computes every figure from the records; IoU in percent."""
    scores = Scores(dataset.class_ids)
    for record in records:
        scores.add(record["class_id"], record["inter"], record["union"])
    inter, union = (np.array([record[part][1] for record in records]) for part in ("inter", "union"))
    samples = bootstrap_samples([record["class_id"] for record in records], dataset.class_ids, inter, union)
    return {
        "miou": scores.miou(),
        "miou_interval": list(interval(samples)),
        "fb_iou": scores.fb_iou(),
        "mean_episode_iou": mean_episode_iou(inter, union),
        **_extra_figures(records, dataset),
        "class_ids": list(dataset.class_ids),
        "classes_drawn": len({record["class_id"] for record in records}),
        "per_class": {dataset.class_names[class_id]: iou for class_id, iou in scores.per_class().items()},
        "episodes": len(records),
        "episodes_sha256": dataset.episodes.sha256,
    }


def _extra_figures(records: list[Record], dataset: EpisodeDataset) -> dict[str, Any]:
    """MIoU at the pictures' own size, boundary IoU (mean over classes), and the threshold sweep, if counted."""
    figures: dict[str, Any] = {}
    if records and "own_size" in records[0]:
        figures["miou_own_size"] = _miou(records, dataset, [record["own_size"] for record in records])
        boundaries = [record["boundary"] for record in records]
        counts = [{"inter": [0, inter], "union": [0, union]} for inter, union in boundaries]
        figures["boundary_miou"] = _miou(records, dataset, counts)
    if records and "sweep" in records[0]:
        figures["miou_by_threshold"] = {
            name: _miou(records, dataset, [record["sweep"][name] for record in records])
            for name in records[0]["sweep"]
        }
    return figures


def _miou(records: list[Record], dataset: EpisodeDataset, counts: list[dict[str, list[int]]]) -> float:
    scores = Scores(dataset.class_ids)
    for record, count in zip(records, counts, strict=True):
        scores.add(record["class_id"], count["inter"], count["union"])
    return scores.miou()


def _read_record(line: bytes, number: int, dataset: EpisodeDataset, path: Path) -> Record:
    try:
        record = json.loads(line)
        names = [record["class_id"], record["query"], record["supports"]]
        counts = [record["inter"], record["union"]]
        good = all(len(count) == 2 and all(isinstance(n, int) for n in count) for count in counts)
        if good and record["index"] == number and names == dataset.published[number].names():
            return record
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    raise InputError(f"{path}: line {number + 1} is no record of this list; remove the file to start again")
