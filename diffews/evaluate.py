"""Evaluation on episodes: one record an episode, every figure computed from the records."""

import dataclasses
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from diffews.config import EvalConfig
from diffews.data.episodes import EpisodeDataset
from diffews.data.loading import stream
from diffews.device import device_name, exact_arithmetic, memory_advice, pick_device, torch_dtype
from diffews.errors import InputError
from diffews.files import check_run, open_run, versions, write_atomic
from diffews.masks import scores_and_limit
from diffews.metrics import Scores, bootstrap_samples, intersection_and_union, interval
from diffews.models.weights import WeightSource, hash_weights
from diffews.pipeline import DiffewsPipeline, build_pipeline, to_pixels
from diffews.report import panel, save_grid, save_image

GRID = 24  # most panels in pictures.png
Record = dict[str, Any]  # {"index", "class_id", "query", "supports", "inter": [bg, fg], "union": [bg, fg]}


@dataclass(frozen=True)
class Group:
    """The decoded episodes that are computed together; all tensors are uint8."""

    indices: list[int]  # the last group is padded by repeating its last episode
    query_rgb: Tensor  # [B, 3, S, S]
    query_masks: Tensor  # [B, S, S]
    query_ignore: Tensor | None  # [B, S, S]
    support_rgb: Tensor  # [B*n, 3, S, S]
    support_masks: Tensor  # [B*n, S, S]


def read_group(dataset: EpisodeDataset, indices: list[int]) -> Group:
    """Decodes a group's episodes."""
    decoded = {index: dataset[index] for index in dict.fromkeys(indices)}
    episodes = [decoded[index] for index in indices]
    ignore = [episode.query_ignore for episode in episodes if episode.query_ignore is not None]
    return Group(
        indices=indices,
        query_rgb=_stack([episode.query_rgb for episode in episodes]),
        query_masks=_stack([episode.query_mask for episode in episodes]),
        query_ignore=_stack(ignore) if ignore else None,
        support_rgb=_stack([episode.support_rgb for episode in episodes]).flatten(0, 1),
        support_masks=_stack([episode.support_masks for episode in episodes]).flatten(0, 1),
    )


def evaluate(config: EvalConfig, dataset: EpisodeDataset, source: WeightSource, out: Path) -> dict[str, Any] | None:
    """Evaluates weights on the data set's episodes and returns the result, also written to out/result.json.

    Goes on where an earlier run into the same `out` stopped. Under `accelerate launch` or `torchrun` the groups are
    shared out to the processes, and the files are the same to the byte; all but the main process return None.

    Raises:
        InputError: for an `out` of another run, weights that do not load, or pictures that cannot be read.

    """
    device = pick_device(config.device)
    world = PartialState(cpu=device.type == "cpu")
    device = world.device if world.num_processes > 1 else device
    identity = {
        **hash_weights(source),
        "benchmark": config.benchmark,
        "fold": dataset.fold,
        "shots": config.shots,
        "image_size": dataset.image_size,
        "list_sha256": dataset.published.sha256,
        "objects_sha256": dataset.published.objects_sha256,
        "device": device.type,
        "dtype": config.dtype,
        "batch": config.batch,
        "threads": config.threads,
        "threshold": config.threshold,
        "threshold_rule": config.threshold_rule,
    }
    with world.main_process_first():  # it repairs what a kill left behind
        check_run(out, identity)
        records = Records(out / "episodes.jsonl", dataset, config.batch)
    groups = [
        group
        for group in make_groups(len(dataset), config.batch)
        if group[-1] >= len(records) or not all(_is_drawn(config, out, index) for index in group)
    ]
    done, start = len(records), time.perf_counter()
    if groups:
        read_group(dataset, groups[0])  # bad input is refused before anything loads or is written
        exact_arithmetic(config.threads)
        pipeline = build_pipeline(source, torch_dtype(config.dtype), device, config.allow_bin)
        if world.is_main_process:
            open_run(out, identity)  # now that the weights are known to load
        world.wait_for_everyone()
        start = time.perf_counter()
        own = stream(
            functools.partial(read_group, dataset), groups[world.process_index :: world.num_processes], config.workers
        )
        bar = tqdm(
            total=len(dataset), initial=min(done, len(dataset)), unit="episode", disable=not world.is_main_process
        )
        with bar, memory_advice():
            for _ in range(0, len(groups), world.num_processes):  # in each round every process takes one group
                counted = _evaluate_group(pipeline, next(own, None), config, dataset, out)
                records.append(gather_object(counted), write=world.is_main_process)
                bar.set_postfix(mIoU=f"{records.scores.running_miou():.2f}", refresh=False)
                bar.update(len(records) - bar.n)
    if not world.is_main_process:
        return None
    seconds, fresh = time.perf_counter() - start, len(records) - done
    result = {
        **summarize(records.records[: len(dataset)], dataset),
        **identity,
        "device": device_name(device),
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "episodes_per_second": round(fresh / seconds, 3) if fresh else None,
    }
    write_atomic(out / "result.json", json.dumps(result, indent=1) + "\n")
    if config.pictures:
        files = [file for index in range(min(len(dataset), GRID)) for file in _picture_file(config, out, index)]
        save_grid([file for file in files if file.is_file()], out / "pictures.png")
    return result


def make_groups(count: int, batch: int) -> list[list[int]]:
    """Cuts 0 .. count-1 into groups of `batch`; the last is padded by repeating its last index."""
    return [[min(i, count - 1) for i in range(start, start + batch)] for start in range(0, count, batch)]


@torch.no_grad()
def predict(
    pipeline: DiffewsPipeline, group: Group, shots: int, threshold: float = 0.25, rule: str = "reference"
) -> np.ndarray:
    """Segments a group's queries -> bool (B, S, S)."""
    device = pipeline.device
    supports = to_pixels(group.support_rgb.to(device))
    bank = pipeline.encode_support_tensors(supports, group.support_masks.to(device), shots)
    rgb = pipeline.predict_rgb(to_pixels(group.query_rgb.to(device)), bank)
    scores, limits = scores_and_limit(rgb.float() / 255, threshold, rule)
    return (scores > limits[:, None, None]).cpu().numpy()


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
        "class_ids": list(dataset.class_ids),
        "classes_drawn": len({record["class_id"] for record in records}),
        "per_class": {dataset.class_names[class_id]: iou for class_id, iou in scores.per_class().items()},
        "episodes": len(records),
        "episodes_sha256": dataset.episodes.sha256,
    }


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


def _read_record(line: bytes, number: int, dataset: EpisodeDataset, path: Path) -> Record:
    try:
        record = json.loads(line)
        names = [record["class_id"], record["query"], record["supports"]]
        if record["index"] == number and names == dataset.published[number].names():
            return record
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    raise InputError(f"{path}: line {number + 1} is no record of this list; remove the file to start again")


def _stack(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def count_pixels(group: Group, predictions: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Counts each episode's intersection and union, [background, foreground]; padding is left out."""
    counts = []
    for row in range(len(set(group.indices))):
        ignore = None if group.query_ignore is None else group.query_ignore[row].numpy()
        counts.append(intersection_and_union(predictions[row], group.query_masks[row].numpy(), ignore))
    return counts


def _evaluate_group(
    pipeline: DiffewsPipeline, group: Group | None, config: EvalConfig, dataset: EpisodeDataset, out: Path
) -> list[Record]:
    """Segments a group, draws what was asked for, and counts; a process without a group in a round counts nothing."""
    if group is None:
        return []
    predictions = predict(pipeline, group, config.shots, config.threshold, config.threshold_rule)
    _draw(config, out, group, predictions)
    records = []
    for index, (inter, union) in zip(dict.fromkeys(group.indices), count_pixels(group, predictions), strict=True):
        names = dict(zip(("class_id", "query", "supports"), dataset.episodes[index].names(), strict=True))
        records.append({"index": index, **names, "inter": inter, "union": union})
    return records


def _mask_file(config: EvalConfig, out: Path, index: int) -> list[Path]:
    return [out / "masks" / f"{index:05d}.png"] if config.save_masks else []


def _picture_file(config: EvalConfig, out: Path, index: int) -> list[Path]:
    return [out / "pictures" / f"{index:05d}.png"] if index < config.pictures else []


def _is_drawn(config: EvalConfig, out: Path, index: int) -> bool:
    return all(file.is_file() for file in _mask_file(config, out, index) + _picture_file(config, out, index))


def _draw(config: EvalConfig, out: Path, group: Group, predictions: np.ndarray) -> None:
    """Writes the masks and panels that were asked for."""
    shots = len(group.support_rgb) // len(group.indices)
    supports = group.support_rgb.permute(0, 2, 3, 1).numpy()  # [B*n, S, S, 3]
    queries = group.query_rgb.permute(0, 2, 3, 1).numpy()
    for row, index in enumerate(dict.fromkeys(group.indices)):
        for file in _mask_file(config, out, index):
            save_image(file, predictions[row].astype(np.uint8) * 255)
        for file in _picture_file(config, out, index):
            own = slice(row * shots, (row + 1) * shots)
            pairs = list(zip(supports[own], group.support_masks[own].numpy(), strict=True))
            save_image(file, panel(pairs, queries[row], predictions[row], group.query_masks[row].numpy()))
