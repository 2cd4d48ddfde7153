"""Figures of a finished evaluation: one row an episode, with supports, query, prediction and truth."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diffews.cli.settings import EvalConfig, FigureConfig
from diffews.data.episodes import EpisodeDataset
from diffews.errors import InputError
from diffews.evaluation.evaluate import run_identity
from diffews.evaluation.groups import count_pixels, make_groups, read_group, segment_group
from diffews.evaluation.records import Record
from diffews.evaluation.tables import Run
from diffews.images.drawing import BLACK, GREY, Text, figure_tiles, figure_titles, save_figure
from diffews.models.find import WeightSource
from diffews.runtime.device import memory_advice, pick_device
from diffews.runtime.loading import open_pipeline


def draw_figure(
    config: FigureConfig, run: Run, settings: EvalConfig, source: WeightSource, dataset: EpisodeDataset
) -> Path:
    """Picks episodes of a run, computes their predictions again, draws them, and returns the file.

    Raises:
        InputError: if weights, episodes or counts are no longer those of the run.

    """
    now = run_identity(settings, dataset, source, pick_device(settings.device))
    now["episodes_sha256"] = dataset.episodes.sha256
    changed = [key for key, value in now.items() if key.endswith("sha256") and value != run.result.get(key)]
    if changed:
        files = f"weight={source.path} base={source.base} data={settings.data} now ({', '.join(changed)})"
        raise InputError(f"{run.path} was made with something else than {files}; evaluate again")
    for index in config.index:
        if not 0 <= index < len(run.records):
            raise InputError(f"index={index}: {run.path} has the episodes 0 to {len(run.records) - 1}")
    picked = {"": config.index}
    if not config.index:
        picked = pick(run.records, config.count, config.order, lambda index: bool(dataset[index].query_mask.any()))
    chosen = {index for indices in picked.values() for index in indices}
    if not chosen:
        raise InputError(f"{run.path}: no episode has a truth that is not empty; give another order=")
    tiles = {
        index: figure_tiles(supports, query, prediction, truth)
        for index, (supports, query, truth), prediction in _predict_again(run, settings, source, dataset, chosen)
    }
    query = settings.shots  # its column
    rows: list[tuple[list[Text], list[np.ndarray]]] = [(figure_titles(settings.shots), [])]
    for heading, indices in picked.items():
        rows += [([(0, heading, BLACK)], [])] if heading else []
        for index in indices:
            name = dataset.class_names[run.records[index]["class_id"]]
            iou = f"IoU {100 * episode_iou(run.records[index]):.1f} %"
            texts = [(0, name, BLACK), (query, f"episode {index}", GREY), (query + 1, iou, BLACK)]
            rows.append((texts, tiles[index]))
    out = Path(config.out or run.path / "figure.png")
    save_figure(out, rows, columns=settings.shots + 3)
    return out


def run_settings(run: Run) -> EvalConfig:
    """Returns the keys of a run; what this version does not know is left out."""
    known = {item.name for item in dataclasses.fields(EvalConfig)}
    return EvalConfig(**{key: value for key, value in run.result["config"].items() if key in known})


def episode_iou(record: Record) -> float:
    """Foreground IoU of one episode, in [0, 1]."""
    return record["inter"][1] / max(record["union"][1], 1)


def pick(records: Sequence[Record], count: int, order: str, has_truth: Callable[[int], bool]) -> dict[str, list[int]]:
    """Returns the indices of at most `count` records under each heading; order as in FigureConfig, ties in list order.

    has_truth: whether an episode's truth holds a pixel; those without one are no failures.
    """
    iou = [episode_iou(record) for record in records]
    falling, rising = (sorted(range(len(iou)), key=lambda index: sign * iou[index]) for sign in (-1, 1))
    if order == "list":
        return {"": list(range(len(iou)))[:count]}
    if order == "spread":  # the middles of `count` equal parts
        count = min(count, len(iou))
        return {"": [falling[(2 * i + 1) * len(iou) // (2 * count)] for i in range(count)]}
    best = falling[:count]
    others = (index for index in rising if not (order == "both" and index in best) and has_truth(index))
    worst = [] if order == "best" else list(islice(others, count))
    return {"best": {"": best}, "worst": {"": worst}, "both": {"highest IoU": best, "lowest IoU": worst}}[order]


def _predict_again(
    run: Run, settings: EvalConfig, source: WeightSource, dataset: EpisodeDataset, chosen: set[int]
) -> Iterator[tuple[int, Any, np.ndarray]]:
    """Yields (index, what `Group.shown` gives, prediction (S, S) bool), computed in the run's groups."""
    pipeline = open_pipeline(settings, source, pick_device(settings.device), settings.threads)
    for indices in make_groups(len(dataset), int(settings.batch)):
        if chosen.isdisjoint(indices):
            continue
        group = read_group(dataset, indices)
        with memory_advice():
            segmentation = segment_group(pipeline, group, settings.shots, settings.kv_sampling)
            masks = segmentation.masks(settings.threshold, settings.threshold_rule)
            counted = count_pixels(masks, group).tolist()
        for row, index in enumerate(dict.fromkeys(indices)):
            if index not in chosen:
                continue
            if counted[row] != [run.records[index]["inter"], run.records[index]["union"]]:
                now = f"{run.path}: the prediction for episode {index} is no longer the recorded one"
                raise InputError(f"{now}; pictures, device or versions changed, evaluate again")
            yield index, group.shown(row), masks[row].cpu().numpy()
