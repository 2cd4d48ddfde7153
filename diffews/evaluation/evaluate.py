"""Evaluation on episodes: one record an episode, every score computed from the records."""

import contextlib
import dataclasses
import functools
import json
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from diffews.data.episodes import EpisodeDataset
from diffews.data.prefetch import stream
from diffews.errors import InputError, says_how_to_go_on
from diffews.evaluation.absent import Negatives, answer_group, presence_identity
from diffews.evaluation.fs_cs import evaluate_fs_cs
from diffews.evaluation.groups import Answer, Group, make_groups, read_group, segment_group
from diffews.evaluation.metrics import boundary_counts, intersection_and_union
from diffews.evaluation.records import Record, Records, summarize
from diffews.evaluation.seen import seen_classes
from diffews.images.drawing import panel, save_grid, save_image
from diffews.models.find import WeightDir, hash_small_vae, hash_weights
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import auto_batch, device_name, pick_device, process_device
from diffews.runtime.files import (
    check_run, counted_values, default_values, open_run, read_json, versions, write_atomic)
from diffews.runtime.loading import open_pipeline, settle_fast
from diffews.runtime.processes import in_step, one_run

if TYPE_CHECKING:
    from diffews.cli.settings import EvalConfig

GRID = 24  # most panels in pictures.png


def evaluate(
    config: "EvalConfig", dataset: EpisodeDataset, source: WeightDir, out: Path
) -> dict[str, Any] | None:
    """Evaluates weights on the data set's episodes.

    Goes on where an earlier run into the same `out` stopped. Under `accelerate launch` or
    `torchrun` the groups are shared out, and the files are the same to the byte.

    Args:
        config: the keys of `diffews eval`.
        dataset: the episodes.
        source: where the weights lie.
        out: folder for episodes.jsonl and result.json.

    Returns:
        What result.json holds; None in all processes but the main one.

    Raises:
        InputError: for an `out` of another run, or that another process writes into, weights that
            do not load, or pictures that cannot be read.

    """
    device = pick_device(config.device)
    world = PartialState(cpu=device.type == "cpu")
    device = process_device(world.device) if world.num_processes > 1 else device
    with one_run(out):
        config = dataclasses.replace(
            settle_fast(config, device), threshold=source.threshold(config.threshold))
        return _evaluate(config, dataset, source, out, device, world)


def _evaluate(
    config: "EvalConfig", dataset: EpisodeDataset, source: WeightDir, out: Path,
    device: torch.device, world: PartialState,
) -> dict[str, Any] | None:
    is_main = world.is_main_process
    load = functools.cache(functools.partial(open_pipeline, config, source, device, config.threads))
    if config.protocol == "fs_cs":
        if world.num_processes > 1:
            raise InputError("protocol=fs_cs runs in one process; start it without a launcher")
        identity = run_identity(config, dataset, source, device)
        return evaluate_fs_cs(config, dataset, load, identity, out)
    config = settle_batch(config, dataset, load, device, out)

    # novel classes are to be novel
    seen = seen_classes(source, config, dataset)
    if seen and is_main:
        warnings.warn(
            f"weight={source.path} was trained on {len(seen)} of the {len(dataset.class_ids)} "
            f"novel classes of fold {dataset.fold}, as {seen[0]}; the result says so", stacklevel=2)

    # what is there already
    identity = run_identity(config, dataset, source, device)
    with in_step() as step:
        if is_main:
            step.mine = _open_records(out, identity, dataset, config)
    records: Records = step.all[0]
    done, start = len(records), time.perf_counter()
    groups = [group for group in make_groups(len(dataset), int(config.batch))
              if group[-1] >= done or not all(_is_drawn(config, out, index) for index in group)]

    if groups:
        # bad input is refused before anything loads
        negatives = Negatives(dataset, f"benchmark={config.benchmark}") if config.absent else None
        read = functools.partial(_read, dataset, negatives, config)
        read(groups[0])
        pipeline = load()
        if config.kv_sampling is not None:
            pipeline.method.interaction.check_bank_use("kv_sampling=")
        own = stream(read, groups[world.process_index :: world.num_processes], config.workers,
                     device.type == "cuda")
        thresholds = [(source.threshold(config.threshold), config.threshold_rule),
                      *((threshold, rule) for _, threshold, rule in sweep(config))]
        answers: deque[Answer] = deque()

        def answer(ahead: int) -> None:
            while len(answers) < ahead and (group := next(own, None)) is not None:
                answers.append(answer_group(pipeline, group, config, thresholds))

        # nothing is written before a first group was answered
        start = time.perf_counter()
        with in_step():
            answer(1)
        with in_step():
            if is_main:
                open_run(out, identity, default_values(config))
        if done and is_main:
            print(f"diffews: going on from episode {done}", file=sys.stderr)

        # in each round every process takes one group
        bar = tqdm(total=len(dataset), initial=min(done, len(dataset)), unit="episode",
                   disable=not is_main)
        with bar, says_how_to_go_on(
                lambda: f"the same command goes on from episode {len(records)}"):
            for _ in range(0, len(groups), world.num_processes):
                with in_step() as step:
                    answer(2)  # one ahead: a GPU computes it while the one before is recorded
                    step.mine = (
                        _record(answers.popleft(), config, dataset, out, negatives)
                        if answers else [])
                records.append([record for part in step.all for record in part], write=is_main)
                bar.set_postfix(mIoU=f"{records.scores.running_miou():.2f}", refresh=False)
                bar.update(min(len(records), len(dataset)) - bar.n)

    if not is_main:
        return None
    seconds, fresh = time.perf_counter() - start, len(records) - done
    result = {
        **summarize(records.records[: len(dataset)], dataset.class_names), **identity,
        "seen_classes": seen,
        "empty_episodes": records.count_empty(len(dataset)),
        "device": device_name(device), "config": dataclasses.asdict(config), "versions": versions(),
        "episodes_per_second": round(fresh / seconds, 3) if fresh else None}
    write_atomic(result_file(out, len(dataset)), json.dumps(result, indent=1) + "\n")

    if config.pictures:
        files = [_picture_file(out, index) for index in range(min(config.pictures, len(dataset)))]
        save_grid(files[:GRID], out / "pictures.png")
    return result


def result_file(out: Path, episodes: int) -> Path:
    """Returns where the result of so many episodes lies: that of more is not overwritten."""
    whole = out / "result.json"
    with contextlib.suppress(InputError):  # a damaged one is replaced
        earlier = read_json(whole).get("episodes") if whole.exists() else None
        if isinstance(earlier, int) and earlier > episodes:
            return out / f"result_first_{episodes}.json"
    return whole


def _open_records(
    out: Path, identity: dict[str, Any], dataset: EpisodeDataset, config: "EvalConfig"
) -> Records:
    check_run(out, identity, default_values(config))
    return Records(out / "episodes.jsonl", dataset, int(config.batch))


def settle_batch(
    config: "EvalConfig",
    dataset: EpisodeDataset,
    load: Callable[[], DiffewsPipeline],
    device: torch.device,
    out: Path,
) -> "EvalConfig":
    """Returns the config with `batch=auto` replaced by a number; a run in `out` keeps its own."""
    if config.batch != "auto":
        return config
    if (out / "run.json").is_file():
        return dataclasses.replace(config, batch=int(read_json(out / "run.json").get("batch", 1)))

    def run(count: int) -> None:
        group = read_group(dataset, make_groups(len(dataset), count)[0]).all_distinct()
        segment_group(load(), group, config.shots, config.kv_sampling, config.flips)

    with in_step() as step:
        step.mine = auto_batch(run, device, dataset.image_size)
    batch, why = min(step.all)
    batch, why = min((batch, why), (len(dataset), "so many are there"))
    if PartialState().is_main_process:
        print(f"diffews: batch={batch}: {why}", file=sys.stderr)
    return dataclasses.replace(config, batch=batch)


def run_identity(
    config: "EvalConfig", dataset: EpisodeDataset, source: WeightDir, device: torch.device
) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that it goes on with.

    These are the keys that change the result, as `key` declares them, in the values that they have
    here, and what is found under them: weights, lists, the thresholds that are counted.
    """
    small = {part: getattr(config, part) for part in ("encoder", "decoder")}
    return {
        **counted_values(config),
        **dataset.benchmark.reading,
        **hash_weights(source),
        **{f"{part}_sha256": folder and hash_small_vae(folder) for part, folder in small.items()},
        "variant": source.record.get("variant"),
        "fold": dataset.fold,
        "image_size": dataset.image_size,
        "list_sha256": dataset.published.sha256,
        "objects_sha256": dataset.published.objects_sha256,
        "device": device.type,
        "sweep": [name for name, _, _ in sweep(config)],
        **presence_identity(config, source, list(dataset.class_names.values())),
    }


def sweep(config: "EvalConfig") -> list[tuple[str, float, str]]:
    """The thresholds that are counted beside the run's own: name, threshold, rule."""
    rule = config.threshold_rule
    return [*((f"relative {share:g}", share, rule) for share in config.relative_thresholds),
            *((f"absolute {score:g}", score, "absolute") for score in config.absolute_thresholds)]


def _read(
    dataset: EpisodeDataset, negatives: Negatives | None, config: "EvalConfig", indices: list[int]
) -> Group:
    group = read_group(dataset, indices, config.extra_metrics, config.prompt)
    return group if negatives is None else negatives.read(group, config.prompt)


def _record(
    answer: Answer, config: "EvalConfig", dataset: EpisodeDataset, out: Path,
    negatives: Negatives | None = None
) -> list[Record]:
    """Saves the pictures that were asked for, and makes a record of each episode."""
    group, (counts, *swept) = answer.wait().group, answer.counts.tolist()
    masks, thresholds = answer.masks.numpy(), [name for name, *_ in sweep(config)]

    records = []
    for row, index in enumerate(dict.fromkeys(group.indices)):  # padding is left out
        if config.save_masks:
            save_image(_mask_file(out, index), masks[row].astype(np.uint8) * 255)
        if index < config.pictures:
            pairs, query, truth = group.shown(row)
            save_image(_picture_file(out, index), panel(pairs, query, masks[row], truth))

        class_id, query_name, supports = dataset.episodes[index].names()
        record = {"index": index, "class_id": class_id, "query": query_name, "supports": supports,
                  **_counts(counts[row]), "empty": group.empty_masks(row)}
        if swept:
            record["sweep"] = {
                name: _counts(at[row]) for name, at in zip(thresholds, swept, strict=True)}
        if group.originals:
            picture, truth = group.originals[row], group.query_masks[row].numpy()
            ignore = None if group.query_ignore is None else group.query_ignore[row].numpy()
            record["own_size"] = _counts(
                intersection_and_union(answer.own_size[row], picture.mask, picture.ignore))
            record["boundary"] = list(boundary_counts(masks[row], truth, ignore))
        if negatives is not None:
            record |= negatives.record(answer, row)
        records.append(record)
    return records


def _counts(inter_and_union: Any) -> dict[str, list[int]]:
    return dict(zip(("inter", "union"), inter_and_union, strict=True))


def _mask_file(out: Path, index: int) -> Path:
    return out / "masks" / f"{index:05d}.png"


def _picture_file(out: Path, index: int) -> Path:
    return out / "pictures" / f"{index:05d}.png"


def _is_drawn(config: "EvalConfig", out: Path, index: int) -> bool:
    """Whether the pictures that were asked for are there."""
    return not (config.save_masks and not _mask_file(out, index).is_file()
                or index < config.pictures and not _picture_file(out, index).is_file())
