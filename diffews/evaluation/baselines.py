"""What puts a model's scores into proportion: masks without a model, supports of another class."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from diffews.data.episodes import Episode, EpisodeDataset, EpisodeList, decode_sample
from diffews.errors import InputError
from diffews.evaluation.groups import count_pixels, read_group, segment_group
from diffews.evaluation.metrics import Scores, intersection_and_union
from diffews.evaluation.tables import read_run
from diffews.models.find import WeightDir
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import memory_advice, pick_device
from diffews.runtime.files import write_atomic
from diffews.runtime.loading import open_pipeline, settle_fast

if TYPE_CHECKING:
    from diffews.cli.settings import BaselinesConfig

SWAP_SEED = 0


def baselines_table(
    config: "BaselinesConfig", dataset: EpisodeDataset, source: WeightDir
) -> str:
    """Scores all baselines and returns a table; config.out is the same as JSON, if it is given.

    Args:
        config: the keys of `diffews baselines`, among them runs to show in the same table.
        dataset: the episodes.
        source: the model that is shown swapped supports.

    Raises:
        InputError: for a run of other classes or queries, or names that are not one a run.

    """
    names: list[str | None] = [*config.names] or [None] * len(config.runs)
    if len(names) != len(config.runs):
        raise InputError(f"names= has {len(names)} names for {len(config.runs)} runs; name each")
    rows = [_run_row(Path(run), name, dataset)
            for run, name in zip(config.runs, names, strict=True)]
    device = pick_device(config.device)
    config = settle_fast(config, device)
    pipeline = open_pipeline(config, source, device, config.threads)
    with memory_advice():
        threshold = source.threshold(config.threshold)
        scored = {**without_model(dataset),
                  **swapped_support(pipeline, dataset, config, threshold)}
    rows += [
        {"name": name, "episodes": s.episodes, "miou": s.miou(), "fb_iou": s.fb_iou()}
        for name, s in scored.items()]

    if config.out:
        write_atomic(Path(config.out), json.dumps(rows, indent=1) + "\n")
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'':<{width}}  episodes   mIoU  FB-IoU"]
    for row in rows:
        scores = f"{row['miou']:6.1f}  {row['fb_iou']:6.1f}"
        lines.append(f"{row['name']:<{width}}  {row['episodes']:>8} {scores}")
    return "\n".join(lines)


def without_model(dataset: EpisodeDataset) -> dict[str, Scores]:
    """Scores three masks that need no model, by name.

    All foreground; the first support's mask, copied; and an oracle that marks every object of any
    class that the benchmark knows of the query.
    """
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
    pipeline: DiffewsPipeline, dataset: EpisodeDataset, config: "BaselinesConfig",
    threshold: float
) -> dict[str, Scores]:
    """Shows the model supports of another novel class that the query holds, too.

    A model that follows its support loses the original class and finds the support's: the scores
    are of both, of those classes alone that come up. Empty where no query holds two novel classes.
    """
    pairs = swap_supports(dataset, config.shots)
    if not pairs:
        return {}
    old, new = (
        EpisodeDataset(dataset.benchmark, EpisodeList(episodes), dataset.image_size)
        for episodes in zip(*pairs, strict=True))
    original, shown = (Scores(sorted({e.class_id for e in d.episodes})) for d in (old, new))

    for index, (old_episode, new_episode) in enumerate(tqdm(pairs, unit="episode", desc="swapped")):
        group = read_group(new, [index])
        found = segment_group(pipeline, group, config.shots).check(group.names)
        masks = found.masks(threshold, config.threshold_rule)
        shown.add(new_episode.class_id, *count_pixels(masks, group)[0].tolist())
        counts = count_pixels(masks, read_group(old, [index]))
        original.add(old_episode.class_id, *counts[0].tolist())
    return {"swapped support, original class": original, "swapped support, support's class": shown}


def swap_supports(dataset: EpisodeDataset, shots: int) -> list[tuple[Episode, Episode]]:
    """Pairs each episode whose query holds another novel class with one that asks for that class.

    The second has the same query and `shots` supports of the other class, drawn with a fixed seed.
    """
    generator, pairs = np.random.default_rng(SWAP_SEED), []
    novel, images = dataset.class_ids, dataset.benchmark.images
    for episode in dataset.episodes:
        held = dataset.benchmark.classes_in(episode.query)
        others = [c for c in held if c in novel and c != episode.class_id]
        if not others:
            continue

        # one of them, and supports of it that are not the query
        other = others[generator.integers(len(others))]
        samples = [sample for sample in images[other] if sample != episode.query]
        if samples:
            supports = tuple(samples[i] for i in generator.integers(len(samples), size=shots))
            pairs.append((episode, Episode(other, episode.query, supports)))
    return pairs


def _run_row(folder: Path, name: str | None, dataset: EpisodeDataset) -> dict[str, Any]:
    """Returns the row of a finished evaluation, which must be of the same classes and queries."""
    run = read_run(folder)
    queries = [episode.query.name for episode in dataset.episodes]
    same = [record["query"] for record in run.records] == queries
    if set(run.class_ids) != set(dataset.class_ids) or not same:
        cure = "give the same fold= and episodes="
        raise InputError(f"runs={folder}: not the same classes and queries as here; {cure}")
    return {
        "name": name or f"DiffewS, {run.shots}-shot", "episodes": len(queries), "miou": run.miou,
        "fb_iou": run.fb_iou}
