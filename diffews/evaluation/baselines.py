"""What puts a model's figures into proportion: masks that no model made, and a model shown the wrong class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffews.cli.settings import BaselinesConfig
from diffews.data.episodes import Episode, EpisodeDataset, EpisodeList, decode_sample
from diffews.errors import InputError
from diffews.evaluation.groups import count_pixels, read_group, segment_group
from diffews.evaluation.metrics import Scores, intersection_and_union
from diffews.evaluation.tables import read_run
from diffews.models.find import WeightSource
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import memory_advice, pick_device
from diffews.runtime.files import write_atomic
from diffews.runtime.loading import open_pipeline, settle_fast

SWAP_SEED = 0


def baselines_table(config: BaselinesConfig, dataset: EpisodeDataset, source: WeightSource) -> str:
    """Computes all rows, writes them as JSON if `out` is given, and returns them as a table."""
    rows = [_run_row(Path(run), dataset) for run in config.runs]
    device = pick_device(config.device)
    config = settle_fast(config, device)
    pipeline = open_pipeline(config, source, device, config.threads)
    with memory_advice():
        scores = {**without_model(dataset), **swapped_support(pipeline, dataset, config)}
    rows += [
        {"name": name, "episodes": counted.episodes, "miou": counted.miou(), "fb_iou": counted.fb_iou()}
        for name, counted in scores.items()
    ]
    if config.out:
        write_atomic(Path(config.out), json.dumps(rows, indent=1) + "\n")
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'':<{width}}  episodes   mIoU  FB-IoU"]
    lines += [f"{r['name']:<{width}}  {r['episodes']:>8} {r['miou']:6.1f}  {r['fb_iou']:6.1f}" for r in rows]
    return "\n".join(lines)


def without_model(dataset: EpisodeDataset) -> dict[str, Scores]:
    """Scores all foreground; the first support's mask, copied; and an oracle that marks every object of any class."""
    names = ("all foreground", "copy the support's mask", "oracle: every object")
    scores = {name: Scores(dataset.class_ids) for name in names}
    for index in tqdm(range(len(dataset)), unit="episode", desc="no model"):
        episode, query = dataset[index], dataset.episodes[index].query
        objects = np.zeros_like(episode.query_mask)
        for class_id in dataset.benchmark.classes_in(query):
            objects |= decode_sample(dataset.benchmark, query, class_id, dataset.image_size)[1]
        masks = (np.ones_like(objects), episode.support_masks[0], objects)
        for name, mask in zip(names, masks, strict=True):
            counts = intersection_and_union(mask, episode.query_mask, episode.query_ignore)
            scores[name].add(episode.class_id, *counts)
    return scores


def swapped_support(
    pipeline: DiffewsPipeline, dataset: EpisodeDataset, config: BaselinesConfig
) -> dict[str, Scores]:
    """Shows the model supports of another novel class that the query holds too, and scores against both classes.

    A model that follows its support loses the original class and finds the support's. Only classes that come up count.
    Empty where no query holds two novel classes.
    """
    pairs = swap_supports(dataset, config.shots)
    if not pairs:
        return {}
    old, new = (
        EpisodeDataset(dataset.benchmark, EpisodeList(episodes), dataset.image_size)
        for episodes in zip(*pairs, strict=True)
    )
    original, shown = (Scores(sorted({e.class_id for e in d.episodes})) for d in (old, new))
    for index in tqdm(range(len(pairs)), unit="episode", desc="swapped"):
        group = read_group(new, [index])
        segmentation = segment_group(pipeline, group, config.shots)
        masks = segmentation.masks(config.threshold, config.threshold_rule)
        for scores, data, truth in ((shown, new, group), (original, old, read_group(old, [index]))):
            scores.add(data.episodes[index].class_id, *count_pixels(masks, truth)[0].tolist())
    return {"swapped support, original class": original, "swapped support, support's class": shown}


def swap_supports(dataset: EpisodeDataset, shots: int) -> list[tuple[Episode, Episode]]:
    """Returns (episode, the same with supports of another novel class in the query) wherever the query has one."""
    generator, pairs = np.random.default_rng(SWAP_SEED), []
    for episode in dataset.episodes:
        others = [
            class_id
            for class_id in dataset.benchmark.classes_in(episode.query)
            if class_id in dataset.class_ids and class_id != episode.class_id
        ]
        if not others:
            continue
        other = others[generator.integers(len(others))]
        images = [sample for sample in dataset.benchmark.images[other] if sample != episode.query]
        if images:
            supports = tuple(images[i] for i in generator.integers(len(images), size=shots))
            pairs.append((episode, Episode(other, episode.query, supports)))
    return pairs


def _run_row(folder: Path, dataset: EpisodeDataset) -> dict[str, Any]:
    """Returns the row of a finished evaluation, which must be of the same classes and queries."""
    run = read_run(folder)
    queries = [episode.query.name for episode in dataset.episodes]
    same = [record["query"] for record in run.records] == queries
    if set(run.class_ids) != set(dataset.class_ids) or not same:
        cure = "give the same fold= and episodes="
        raise InputError(f"runs={folder}: not the same classes and queries as here; {cure}")
    return {
        "name": f"DiffewS, {run.shots}-shot", "episodes": len(queries), "miou": run.miou,
        "fb_iou": run.fb_iou}
