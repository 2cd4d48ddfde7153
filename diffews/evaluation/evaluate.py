"""Evaluation on episodes: one record an episode, every figure computed from the records."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from diffews.cli.settings import EvalConfig
from diffews.data.episodes import DecodedSample, EpisodeDataset, Sample
from diffews.data.prefetch import stream
from diffews.errors import InputError
from diffews.evaluation.metrics import (
    boundary_counts,
    intersection_and_union,
)
from diffews.evaluation.records import Record, Records, summarize
from diffews.images.drawing import panel, save_grid, save_image
from diffews.images.masks import above_threshold, scores_and_limit
from diffews.images.tensors import resize_scores, to_pixels
from diffews.models.find import WeightSource, hash_small_vae, hash_weights
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import (
    auto_batch,
    device_name,
    memory_advice,
    pick_device,
    process_device,
)
from diffews.runtime.files import check_run, open_run, read_json, versions, write_atomic
from diffews.runtime.loading import open_pipeline, settle_fast

GRID = 24  # most panels in pictures.png


@dataclass(frozen=True)
class Group:
    """The decoded episodes that are computed together; all pictures are uint8."""

    indices: list[int]  # the last group is padded by repeating its last episode
    query_rgb: Tensor  # [B, 3, S, S]
    query_masks: Tensor  # [B, S, S]
    query_ignore: Tensor | None  # [B, S, S]
    support_rgb: Tensor  # [B*n, 3, S, S]
    support_masks: Tensor  # [B*n, S, S]
    distinct: Tensor  # [B + 2*B*n], the same number for the same picture: queries, supports, support masks
    originals: list[DecodedSample]  # the queries at their own size, if they are asked for

    def shown(self, row: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
        """What a picture of one query shows: supports with masks, query, truth; images (S, S, 3), masks (S, S)."""
        shots = len(self.support_rgb) // len(self.indices)
        own = slice(row * shots, (row + 1) * shots)
        images = self.support_rgb[own].permute(0, 2, 3, 1).numpy()
        pairs = list(zip(images, self.support_masks[own].numpy(), strict=True))
        return pairs, self.query_rgb[row].permute(1, 2, 0).numpy(), self.query_masks[row].numpy()

    def pin_memory(self) -> "Group":
        """Returns the group in memory from which a GPU can copy while it computes."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("query_rgb", "support_rgb", "support_masks")}
        return dataclasses.replace(self, **pinned)


def read_group(dataset: EpisodeDataset, indices: list[int], originals: bool = False) -> Group:
    """Decodes a group's episodes."""
    decoded = {index: dataset[index] for index in dict.fromkeys(indices)}
    episodes = [decoded[index] for index in indices]
    ignore = [episode.query_ignore for episode in episodes if episode.query_ignore is not None]
    named = [dataset.episodes[index] for index in indices]
    keys: list[tuple[Sample, int | None]] = [(episode.query, None) for episode in named]
    keys += [(support, None) for episode in named for support in episode.supports]
    keys += [(support, episode.class_id) for episode in named for support in episode.supports]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return Group(
        indices=indices,
        query_rgb=_stack([episode.query_rgb for episode in episodes]),
        query_masks=_stack([episode.query_mask for episode in episodes]),
        query_ignore=_stack(ignore) if ignore else None,
        support_rgb=_stack([episode.support_rgb for episode in episodes]).flatten(0, 1),
        support_masks=_stack([episode.support_masks for episode in episodes]).flatten(0, 1),
        distinct=torch.tensor([numbers[key] for key in keys]),
        originals=[dataset.decode_query(index) for index in dict.fromkeys(indices)] if originals else [],
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
    device = process_device(world.device) if world.num_processes > 1 else device
    config = settle_fast(config, device)
    load = functools.cache(functools.partial(open_pipeline, config, source, device, config.threads))
    config = settle_batch(config, dataset, load, device, out)
    batch, is_main = int(config.batch), world.is_main_process
    identity = run_identity(config, dataset, source, device)
    with in_step() as step:
        if is_main:
            step.mine = _open_records(out, identity, dataset, batch)
    records: Records = step.all[0]
    groups = [
        group
        for group in make_groups(len(dataset), batch)
        if group[-1] >= len(records) or not all(_is_drawn(config, out, index) for index in group)
    ]
    done, start = len(records), time.perf_counter()
    if groups:
        read = functools.partial(read_group, dataset, originals=config.extra_metrics)
        read(groups[0])  # bad input is refused before anything loads or is written
        pipeline = load()
        if config.kv_sampling is not None:
            pipeline.method.interaction.check_bank_use("kv_sampling=")
        with in_step():
            if is_main:
                open_run(out, identity)  # now that the weights are known to load
        start = time.perf_counter()
        own = stream(read, groups[world.process_index :: world.num_processes], config.workers, device.type == "cuda")
        answers = _answers(pipeline, own, config)
        bar = tqdm(total=len(dataset), initial=min(done, len(dataset)), unit="episode", disable=not is_main)
        with bar:
            for _ in range(0, len(groups), world.num_processes):  # in each round every process takes one group
                with in_step() as step:
                    step.mine = _count(next(answers, None), config, dataset, out)
                records.append([record for part in step.all for record in part], write=is_main)
                bar.set_postfix(mIoU=f"{records.scores.running_miou():.2f}", refresh=False)
                bar.update(len(records) - bar.n)
    if not world.is_main_process:
        return None
    seconds, fresh_count = time.perf_counter() - start, len(records) - done
    result = {
        **summarize(records.records[: len(dataset)], dataset),
        **identity,
        "device": device_name(device),
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "episodes_per_second": round(fresh_count / seconds, 3) if fresh_count else None,
    }
    write_atomic(out / "result.json", json.dumps(result, indent=1) + "\n")
    if config.pictures:
        files = [file for index in range(min(len(dataset), GRID)) for file in _picture_file(config, out, index)]
        save_grid([file for file in files if file.is_file()], out / "pictures.png")
    return result


@dataclass
class Step:
    """What each process found in a step that all take."""

    mine: Any = None
    all: list[Any] = field(default_factory=list)


@contextmanager
def in_step() -> Iterator[Step]:
    """A step that all processes take: what one refuses in it, all refuse at its end, and none waits for another."""
    step, error = Step(), None
    try:
        with memory_advice():
            yield step
    except (InputError, OSError) as caught:
        error = caught
    try:
        found = gather_object([(step.mine, error)])
    except RuntimeError:  # gloo: connection closed by peer
        raise InputError("another process of this run has ended; it says why") from None
    for _, error in found:
        if error is not None:
            raise error
    step.all = [mine for mine, _ in found]


def _open_records(out: Path, identity: dict[str, Any], dataset: EpisodeDataset, batch: int) -> Records:
    check_run(out, identity)
    for partial in [*out.glob(".*.partial"), *out.glob("*/.*.partial")]:  # left by a kill
        partial.unlink()
    return Records(out / "episodes.jsonl", dataset, batch)


def settle_batch(
    config: EvalConfig,
    dataset: EpisodeDataset,
    load: Callable[[], DiffewsPipeline],
    device: torch.device,
    out: Path,
) -> EvalConfig:
    """Returns the config with `batch=auto` replaced by what it stands for here; a run in `out` keeps its batch."""
    if config.batch != "auto":
        return config
    if (out / "run.json").is_file():
        return dataclasses.replace(config, batch=int(read_json(out / "run.json").get("batch", 1)))

    def run(count: int) -> None:
        decode(load(), read_group(dataset, [0] * count), config.shots)

    with in_step() as step:
        step.mine = auto_batch(run, device, dataset.image_size)
    return dataclasses.replace(config, batch=min(*step.all, len(dataset)))


def run_identity(
    config: EvalConfig, dataset: EpisodeDataset, source: WeightSource, device: torch.device
) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that it goes on with."""
    named = ["dtype", "batch", "threads", "threshold", "threshold_rule", "channels_last", "compile", "low_memory"]
    named += ["tf32", "kv_sampling", "denoising_steps", "ensemble", "extra_metrics"]
    small = {part: getattr(config, part) for part in ("encoder", "decoder")}
    return {
        **hash_weights(source),
        **{f"{part}_sha256": folder and hash_small_vae(folder) for part, folder in small.items()},
        "variant": source.record.get("variant"),
        "benchmark": config.benchmark,
        "fold": dataset.fold,
        "shots": config.shots,
        "image_size": dataset.image_size,
        "list_sha256": dataset.published.sha256,
        "objects_sha256": dataset.published.objects_sha256,
        "device": device.type,
        **{name: getattr(config, name) for name in named},
        "sweep": [name for name, _, _ in sweep(config)],
    }


def sweep(config: EvalConfig) -> list[tuple[str, float, str]]:
    """The thresholds that are counted beside the run's own: name, threshold, rule."""
    relative = [(f"relative {share:g}", share, config.threshold_rule) for share in config.relative_thresholds]
    return relative + [(f"absolute {score:g}", score, "absolute") for score in config.absolute_thresholds]


def make_groups(count: int, batch: int) -> list[list[int]]:
    """Cuts 0 .. count-1 into groups of `batch`; the last is padded by repeating its last index."""
    return [[min(i, count - 1) for i in range(start, start + batch)] for start in range(0, count, batch)]


@dataclass(frozen=True)
class Answer:
    """What a model says of a group's queries."""

    masks: Tensor  # bool [T, B, S, S]: at the run's threshold, then at those of the sweep
    own: list[Tensor]  # bool (H_i, W_i) of each query at its own size, if that is asked for
    ready: Any = None  # on a GPU, the event after which the masks have arrived in main memory

    def arrived(self) -> np.ndarray:
        """Waits for the masks and returns them, bool (T, B, S, S)."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.masks.numpy()


@torch.no_grad()
def decode(pipeline: DiffewsPipeline, group: Group, shots: int, kv_sampling: int | None = None) -> Tensor:
    """Segments a group's queries -> scores [B, 3, S, S] in [0, 1], whose mean over RGB is compared to a threshold."""
    device = pipeline._execution_device
    queries, supports, masks = (
        tensor.to(device, non_blocking=True) for tensor in (group.query_rgb, group.support_rgb, group.support_masks)
    )
    queries, supports = to_pixels(queries), to_pixels(supports)
    if len(group.indices) == 1:  # the exact path: each call of the VAE takes what the reference's takes
        bank, latents = pipeline.encode_support_tensors(supports, masks, shots), pipeline.encode_images(queries)
    else:
        latents, bank = pipeline.encode_episodes(queries, supports, masks, shots, group.distinct)
    if kv_sampling is not None:
        generator = torch.Generator().manual_seed(group.indices[0])
        bank = bank.sample(min(kv_sampling, bank.shots), generator)
    return pipeline.recover(pipeline.decode_masks(latents, bank), queries)


def predict(
    pipeline: DiffewsPipeline, group: Group, shots: int, threshold: float = 0.25, rule: str = "reference"
) -> np.ndarray:
    """Segments a group's queries -> bool (B, S, S)."""
    return above_threshold(decode(pipeline, group, shots), threshold, rule).cpu().numpy()


def ask(pipeline: DiffewsPipeline, group: Group, config: EvalConfig) -> Answer:
    """Segments a group's queries at every threshold; on a GPU it returns before the masks are there."""
    rgb = decode(pipeline, group, config.shots, config.kv_sampling)
    thresholds = [(config.threshold, config.threshold_rule), *((t, rule) for _, t, rule in sweep(config))]
    masks = torch.stack([above_threshold(rgb, threshold, rule) for threshold, rule in thresholds])
    _, limits = scores_and_limit(rgb, config.threshold, config.threshold_rule)
    own = [
        resize_scores(rgb[row], picture.mask.shape).gt(limits[row]).cpu()
        for row, picture in enumerate(group.originals)
    ]
    if masks.device.type != "cuda":
        return Answer(masks.cpu(), own)
    arrived = torch.empty(masks.shape, dtype=masks.dtype, pin_memory=True)
    arrived.copy_(masks, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return Answer(arrived, own, ready)


def _stack(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def count_pixels(group: Group, predictions: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Counts each episode's intersection and union, [background, foreground]; padding is left out."""
    counts = []
    for row in range(len(set(group.indices))):
        ignore = None if group.query_ignore is None else group.query_ignore[row].numpy()
        counts.append(intersection_and_union(predictions[row], group.query_masks[row].numpy(), ignore))
    return counts


def _answers(pipeline: DiffewsPipeline, groups: Iterator[Group], config: EvalConfig) -> Iterator[tuple[Group, Answer]]:
    """Asks one group ahead, so that a GPU computes while the last one is counted."""
    ahead = None
    for group in groups:
        answer = ask(pipeline, group, config)
        if ahead is not None:
            yield ahead
        ahead = (group, answer)
    if ahead is not None:
        yield ahead


def _count(
    answered: tuple[Group, Answer] | None, config: EvalConfig, dataset: EpisodeDataset, out: Path
) -> list[Record]:
    """Draws what was asked for, and counts; a process without a group in a round counts nothing."""
    if answered is None:
        return []
    group, answer = answered
    masks = answer.arrived()
    _draw(config, out, group, masks[0])
    counted = [count_pixels(group, predictions) for predictions in masks]
    records = []
    for row, index in enumerate(dict.fromkeys(group.indices)):
        names = dict(zip(("class_id", "query", "supports"), dataset.episodes[index].names(), strict=True))
        (inter, union), *others = (counts[row] for counts in counted)
        record = {"index": index, **names, "inter": inter, "union": union}
        if others:
            swept = zip(sweep(config), others, strict=True)
            record["sweep"] = {name: {"inter": inter, "union": union} for (name, _, _), (inter, union) in swept}
        if group.originals:
            picture, own = group.originals[row], answer.own[row].numpy()
            inter, union = intersection_and_union(own, picture.mask, picture.ignore)
            record["own_size"] = {"inter": inter, "union": union}
            ignore = None if group.query_ignore is None else group.query_ignore[row].numpy()
            record["boundary"] = list(boundary_counts(masks[0][row], group.query_masks[row].numpy(), ignore))
        records.append(record)
    return records


def _mask_file(config: EvalConfig, out: Path, index: int) -> list[Path]:
    return [out / "masks" / f"{index:05d}.png"] if config.save_masks else []


def _picture_file(config: EvalConfig, out: Path, index: int) -> list[Path]:
    return [out / "pictures" / f"{index:05d}.png"] if index < config.pictures else []


def _is_drawn(config: EvalConfig, out: Path, index: int) -> bool:
    return all(file.is_file() for file in _mask_file(config, out, index) + _picture_file(config, out, index))


def _draw(config: EvalConfig, out: Path, group: Group, predictions: np.ndarray) -> None:
    """Writes the masks and panels that were asked for."""
    for row, index in enumerate(dict.fromkeys(group.indices)):
        for file in _mask_file(config, out, index):
            save_image(file, predictions[row].astype(np.uint8) * 255)
        for file in _picture_file(config, out, index):
            supports, query, truth = group.shown(row)
            save_image(file, panel(supports, query, predictions[row], truth))
