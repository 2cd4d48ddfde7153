"""Trains a presence head on frozen weights: what it compares is computed once, then fitted."""

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from diffews.data.episodes import Benchmark, Episode, EpisodeDataset, EpisodeList, decode_sample
from diffews.data.negatives import draw_negative
from diffews.data.prefetch import stream
from diffews.data.training import MOST_ATTEMPTS, TrainingEpisodes
from diffews.errors import InputError, refuse, says_how_to_go_on
from diffews.evaluation.absent import auroc
from diffews.evaluation.groups import Group, read_group, segment_group
from diffews.models.attention import SupportBank
from diffews.models.find import (
    PRESENCE, RECORD, WeightDir, hash_weights, weight_files, write_record)
from diffews.models.presence import MEMBERS, HeadPresence, PresenceHead, make_head
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import memory_advice, pick_device
from diffews.runtime.files import (
    LOCK, check_run, counted_values, hash_files, new_folder, open_run, versions, write_atomic)
from diffews.runtime.loading import open_pipeline, settle_fast

if TYPE_CHECKING:
    from diffews.cli.training_settings import TrainPresenceConfig
    from diffews.images.masks import Segmentation

NEGATIVE_STREAM = 4  # second word of the seeds, beside those of training episodes
WORK = "presence.work"  # folder of what is kept for a run that goes on
CHUNK = 256  # queries whose comparisons lie in one file
HELD_OUT = 10  # one query in so many is not trained on, but measured
EPOCHS, BATCH, RATE, DECAY = 15, 64, 2e-3, 0.1  # of the fit


def train_presence(
    config: "TrainPresenceConfig", benchmark: Benchmark, source: WeightDir, out: Path, fold: int
) -> dict[str, Any]:
    """Trains a head and writes it into `out`/presence; the weights stay as they are.

    A run that was stopped goes on: what it computed lies in `out`/presence.work till the end.

    Args:
        config: the keys of `diffews train-presence`, image_size among them.
        benchmark: the training classes, none of which is novel.
        source: the weights.
        out: a weight dir of these weights, or a folder to become one.
        fold: whose classes are held out.

    Returns:
        The record of the head, with what it says of queries that were held out.

    """
    device = pick_device(config.device)
    config = settle_fast(config, device)
    pipeline = open_pipeline(config, source, device, config.threads)
    pipeline.method.interaction.check_bank_use("train-presence")
    head = make_head(pipeline.unet, config.kind, config.hidden)
    sha256 = hash_weights(source)
    identity = {
        **counted_values(config), **benchmark.reading, **sha256, "fold": fold,
        "image_size": config.image_size, "device": device.type,
        "list_sha256": _hash_lists(benchmark)}
    check_run(out / WORK, identity)

    with memory_advice():
        inputs, labels = compute_inputs(config, benchmark, pipeline, head, out, identity)

    # one query in ten says what the head is worth; classes and pictures are those of training
    groups = torch.arange(len(labels)) // (2 * config.shots)
    held = groups % HELD_OUT == HELD_OUT - 1 if groups[-1] >= HELD_OUT else groups < 0
    with says_how_to_go_on(lambda: "the same command goes on from the fit"):
        fit_head(head, inputs[~held], labels[~held], config.seed)
    record = {
        "benchmark": config.benchmark, "fold": fold,
        "seen": [benchmark.class_names[c] for c in benchmark.class_ids],
        "config": counted_values(config),
        "versions": versions()}
    if held.any():
        with torch.no_grad():
            said = head.eval()(inputs[held][:, None])
        record["held_out_auroc"] = auroc(said.numpy(), labels[held].numpy() > 0)

    if out.resolve() != source.path.resolve():
        hand_on_weights(source, out)
    with new_folder(out / PRESENCE) as folder:
        HeadPresence(head, record).save(folder, source.unet)
    shutil.rmtree(out / WORK)
    return record


# ---- what the head compares ----


def compute_inputs(
    config: "TrainPresenceConfig", benchmark: Benchmark, pipeline: DiffewsPipeline,
    head: PresenceHead, out: Path, identity: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Computes what the head is asked with, or reads what an earlier run has computed.

    Returns:
        Inputs [N, D] and labels [N] in {0, 1}: of each query a positive and a negative, of each
        of these one row a shot.

    """
    keeps = pipeline.presence = _Keeping(head, {})
    work, (last, partly) = out / WORK, divmod(config.queries, CHUNK)
    chunks = [range(n * CHUNK, n * CHUNK + CHUNK) for n in range(last)]
    chunks += [range(last * CHUNK, config.queries)] if partly else []
    files = [work / f"inputs-{chunk[0]:06d}.safetensors" for chunk in chunks]
    todo = [(chunk, file) for chunk, file in zip(chunks, files, strict=True) if not file.is_file()]

    # bad input is refused before anything is written
    assert config.image_size is not None
    episodes = TrainingEpisodes(benchmark, config.seed)
    read = functools.partial(
        read_questions, benchmark, episodes, config.image_size, config.shots)
    parts = [chunk[i : i + config.batch] for chunk, _ in todo
             for i in range(0, len(chunk), config.batch)]
    done = config.queries - sum(len(chunk) for chunk, _ in todo)
    if done:
        print(f"diffews: going on from query {done}", file=sys.stderr)
    groups = stream(read, parts, config.workers)

    bar = tqdm(total=config.queries, initial=done, unit="query", desc="compare")
    with bar, says_how_to_go_on(lambda: "the same command goes on from the last 256 queries"):
        for chunk, file in todo:
            rows: list[Tensor] = []
            for start in range(0, len(chunk), config.batch):
                group = next(groups)
                found = segment_group(pipeline, group, config.shots)
                found.check(group.names)
                rows.append(keeps.kept.flatten(0, 1).cpu())
                bar.update(len(chunk[start : start + config.batch]))
            open_run(work, identity)
            write_atomic(file, save({"inputs": torch.cat(rows)}))

    with refuse(f"{work} is damaged", cure="remove it to start again"):
        inputs = torch.cat([load_file(file)["inputs"] for file in files])
    labels = torch.tensor([1.0, 0.0]).repeat_interleave(config.shots).repeat(config.queries)
    return inputs, labels


class _Keeping(HeadPresence):
    """Keeps what its head would be asked with, [B, S, D], and asks nobody."""

    kept: Tensor

    def ask(
        self, found: "Segmentation", masks: Tensor, bank: SupportBank,
        encode_again: Callable[[Tensor], SupportBank]
    ) -> Tensor:
        self.kept = self.inputs(found, masks, bank, encode_again)
        return self.kept.new_zeros(len(self.kept))


def read_questions(
    benchmark: Benchmark, episodes: TrainingEpisodes, image_size: int, shots: int, indices: range
) -> Group:
    """Decodes queries, each with a positive and a negative support set, next to each other."""
    pairs = [draw_question(benchmark, episodes, image_size, shots, index) for index in indices]
    listed = EpisodeList(episode for pair in pairs for episode in pair)
    return read_group(EpisodeDataset(benchmark, listed, image_size), list(range(len(listed))))


def draw_question(
    benchmark: Benchmark, episodes: TrainingEpisodes, image_size: int, shots: int, index: int
) -> tuple[Episode, Episode]:
    """Draws query `index` with supports of its class, and supports of one that it does not hold.

    A function of (seed, index); what has an empty mask at this size is drawn again.

    Raises:
        InputError: if nothing is found in MOST_ATTEMPTS.

    """
    for attempt in range(MOST_ATTEMPTS):
        positive = episodes.draw(index, shots, attempt)
        draws = np.random.default_rng([episodes.seed, NEGATIVE_STREAM, index, attempt])
        negative = draw_negative(benchmark, positive.query, shots, draws)
        if negative is None:
            continue
        masks = [(positive.query, positive), *((s, positive) for s in positive.supports),
                 *((s, negative) for s in negative.supports)]
        if all(decode_sample(benchmark, sample, episode.class_id, image_size)[1].any()
               for sample, episode in masks):
            return positive, negative
    raise InputError(
        f"query {index}: in {MOST_ATTEMPTS} draws no picture was found that lacks one of the "
        f"{len(benchmark.class_ids)} training classes, with masks that mark something at "
        f"image_size={image_size}; give more classes, or a larger image_size=")


# ---- the fit ----


def fit_head(head: PresenceHead, inputs: Tensor, labels: Tensor, seed: int) -> None:
    """Fits each member of the head from another start, in another order.

    Args:
        head: fitted in place.
        inputs, labels: [N, D] and [N] in {0, 1}.
        seed: of the starts, the orders and dropout.

    """
    head.mean.copy_(inputs.mean(0))
    head.std.copy_(inputs.std(0, unbiased=False) + 1e-3)
    inputs = (inputs - head.mean) / head.std
    batch = min(BATCH, len(inputs))
    per_epoch = len(inputs) // batch

    with torch.random.fork_rng(devices=[]), tqdm(
            total=EPOCHS * per_epoch, unit="step", desc="fit") as bar:
        torch.manual_seed(seed)
        head.train().start()
        optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, RATE, EPOCHS * per_epoch + 1, pct_start=0.1)

        for _ in range(EPOCHS):
            orders = torch.stack([torch.randperm(len(inputs)) for _ in range(MEMBERS)])
            for rows in orders[:, : per_epoch * batch].split(batch, dim=1):
                said = head.logits(inputs[rows])
                # each member has its own loss: their sum leaves the others' gradients as they are
                losses = F.binary_cross_entropy_with_logits(said, labels[rows], reduction="none")
                optimizer.zero_grad()
                losses.mean(1).sum().backward()
                optimizer.step()
                schedule.step()
                bar.update()
    head.eval().requires_grad_(False)


# ---- files ----


def check_out(source: WeightDir, out: Path) -> None:
    """Raises InputError for a folder of something else than a stopped run, or these weights."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; give a folder")
    known = (WORK, LOCK, "unet", RECORD)
    own = out.is_dir() and out.resolve() == source.path.resolve()
    if not own and out.is_dir() and any(file.name not in known for file in out.iterdir()):
        raise InputError(f"out={out} is not empty; give the weight dir itself, or a new folder")


def hand_on_weights(source: WeightDir, out: Path) -> None:
    """Makes `out` a weight dir of the same weights, by links where the disk can; keeps what is."""
    target = out / "unet" / "unet"
    for file in (source.unet / "config.json", *weight_files(source.unet)):
        place = target / file.name
        if place.exists() and hash_files([place]) != hash_files([file]):
            raise InputError(f"out={out}: {place} is of other weights; give another folder")
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), place)
        except OSError:
            shutil.copyfile(file, place)
    write_record(out, out, {**source.record, "base": str(source.base)})


def _hash_lists(benchmark: Benchmark) -> str:
    """Returns a hash of the pictures of every class."""
    images = sorted(benchmark.images.items())
    lists = [(c, [(s.name, s.object_id) for s in samples]) for c, samples in images]
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()
