"""Figures of a finished evaluation: a row an episode, with supports, query, prediction, truth."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffews.data.episodes import EpisodeDataset
from diffews.errors import InputError
from diffews.evaluation.evaluate import run_identity
from diffews.evaluation.groups import count_group, make_groups, read_group, segment_group
from diffews.evaluation.metrics import iou_percent
from diffews.evaluation.records import Record, foreground
from diffews.evaluation.tables import Run
from diffews.images.drawing import BLACK, GREY, Row, figure_tiles, figure_titles, save_figure
from diffews.models.find import WeightDir
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import memory_advice, pick_device
from diffews.runtime.loading import open_pipeline

if TYPE_CHECKING:
    from diffews.cli.settings import EvalConfig
    from diffews.cli.tool_settings import FigureConfig


def draw_figure(
    config: "FigureConfig", run: Run, settings: "EvalConfig", source: WeightDir,
    dataset: EpisodeDataset
) -> Path:
    """Draws episodes of a finished run, whose predictions are computed again, and returns the file.

    Args:
        config: which episodes, and where the figure goes.
        run: the evaluation.
        settings: its keys, as its result.json gives them.
        source: the weights that these keys name now.
        dataset: the episodes that they name now.

    Raises:
        InputError: if weights, episodes or counts are no longer those of the run.

    """
    device = pick_device(settings.device)
    now = run_identity(settings, dataset, source, device)
    now["episodes_sha256"] = dataset.episodes.sha256
    changed = [k for k, v in now.items() if k.endswith("sha256") and v != run.result.get(k)]
    if changed:
        files = f"weight={source.path} base={source.base} data={settings.data} now"
        what = f"something else than {files} ({', '.join(changed)})"
        raise InputError(f"{run.path} was made with {what}; evaluate again")

    # which episodes, under which headings
    for index in config.index:
        if not 0 <= index < len(run.records):
            there = f"{run.path} has the episodes 0 to {len(run.records) - 1}"
            raise InputError(f"index={index}: {there}")
    picked = {"": config.index} if config.index else pick(
        run.records, config.count, config.order, lambda i: bool(dataset[i].query_mask.any()))
    chosen = {index for indices in picked.values() for index in indices}
    if not chosen:
        cure = "give another order="
        raise InputError(f"{run.path}: no episode has a truth that is not empty; {cure}")

    # each row is a caption and its tiles; a heading is a row without tiles
    pipeline = open_pipeline(settings, source, device, settings.threads)
    threshold = source.threshold(settings.threshold), settings.threshold_rule
    tiles = _tiles_again(pipeline, run, settings, dataset, chosen, threshold)
    iou, query = iou_percent(*foreground(run.records)), settings.shots  # the query's column
    rows: list[Row] = [(figure_titles(settings.shots), [])]
    for heading, indices in picked.items():
        if heading:
            rows.append(([(0, heading, BLACK)], []))
        for index in indices:
            name = dataset.class_names[run.records[index]["class_id"]]
            caption = [
                (0, name, BLACK), (query, f"episode {index}", GREY),
                (query + 1, f"IoU {iou[index]:.1f} %", BLACK)]
            rows.append((caption, tiles[index]))
    out = Path(config.out or run.path / "figure.png")
    save_figure(out, rows, columns=settings.shots + 3)
    return out


def pick(
    records: Sequence[Record], count: int, order: str, has_truth: Callable[[int], bool]
) -> dict[str, list[int]]:
    """Picks at most `count` records for each heading; ties stay in the order of the list.

    Args:
        records: of all episodes.
        count: records under a heading.
        order: as in FigureConfig.
        has_truth: whether an episode's truth holds a pixel; those without one are no failures.

    Returns:
        Heading, empty if there is but one, and the indices below it.

    """
    iou, total = iou_percent(*foreground(records)), len(records)
    falling, rising = (np.argsort(sign * iou, kind="stable").tolist() for sign in (-1, 1))
    if order == "list":
        return {"": list(range(total))[:count]}
    if order == "spread":  # the middles of `count` equal parts
        count = min(count, total)
        return {"": [falling[(2 * i + 1) * total // (2 * count)] for i in range(count)]}

    best = falling[:count]
    if order == "best":
        return {"": best}
    others = (i for i in rising if (order == "worst" or i not in best) and has_truth(i))
    worst = list(islice(others, count))
    return {"": worst} if order == "worst" else {"highest IoU": best, "lowest IoU": worst}


def _tiles_again(
    pipeline: DiffewsPipeline, run: Run, settings: "EvalConfig", dataset: EpisodeDataset,
    chosen: set[int], threshold: tuple[float, str]
) -> dict[int, list[np.ndarray]]:
    """Computes the chosen episodes again, in the run's groups, and returns the tiles of each."""
    tiles = {}
    for indices in make_groups(len(dataset), int(settings.batch)):
        if chosen.isdisjoint(indices):
            continue
        group = read_group(dataset, indices, prompt=settings.prompt)
        with memory_advice():
            found = segment_group(pipeline, group, settings.shots, settings.kv_sampling)
            answer = count_group(found, group, [threshold]).wait()

        for index in chosen.intersection(indices):
            row, record = indices.index(index), run.records[index]
            if answer.counts[0, row].tolist() != [record["inter"], record["union"]]:
                now = f"the prediction for episode {index} is no longer the recorded one"
                why = "pictures, device or versions changed"
                raise InputError(f"{run.path}: {now}; {why}, evaluate again")
            supports, query, truth = group.shown(row)
            tiles[index] = figure_tiles(supports, query, answer.masks[row].numpy(), truth)
    return tiles
