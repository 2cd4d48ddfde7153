"""Training: both passes in one step, episodes that are a function of (seed, index), exact restarts."""

import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from diffews.cli.settings import LR_END, TrainConfig
from diffews.data.episodes import Benchmark, EpisodeDataset
from diffews.data.latents import LatentCache
from diffews.data.prefetch import stream
from diffews.data.training import (
    BatchReader,
    PixelSource,
    Renderings,
    Source,
    TrainingBatch,
    TrainingEpisodes,
)
from diffews.errors import InputError, first_line
from diffews.images.tensors import to_pixels
from diffews.models.find import (
    base_folders, hash_base, hash_vae, latent_factor, refuse_pickles)
from diffews.models.unet import DiffewsUNet
from diffews.models.weights import load_text, load_unet, load_vae, start_unet
from diffews.pipeline import DiffewsPipeline, check_parts
from diffews.runtime.device import process_device
from diffews.runtime.files import check_run, hash_files, open_run, versions
from diffews.training.adapters import add_lora, make_optimizer, plain_unet
from diffews.training.checkpoints import (
    list_checkpoints,
    load_state,
    save_checkpoint,
    save_weight_dir,
)
from diffews.training.log import StepLog
from diffews.training.step import StepInput, TrainingStep, encode_moments
from diffews.training.validation import eval_mode, validate
from diffews.variants import Variant

UNCHANGED_BY = {  # keys that a resumed run may change, since they do not change the result
    *("out", "data", "images", "annotations", "base", "cache", "stop_at", "resume", "checkpoint_every", "keep"),
    *("workers", "device", "allow_bin", "tracker", "validate_every", "validate_episodes", "validate_on"),
    "batch",  # what counts is batch times processes: global_batch
}
OUT_OF_MEMORY = (
    "the GPU is out of memory; turn on, in this order: checkpointing=true, batch=1 with a larger accumulate=, "
    "cache=DIR, optimizer=adamw8bit, lora=16, a smaller shots="
)


class Trainer:
    """One training run: what it learns from, what it learns, and where it stands."""

    def __init__(self, config: TrainConfig, benchmark: Benchmark, base: Path) -> None:
        self.config, self.benchmark, self.base, self.out = config, benchmark, base, Path(config.out)
        self.variant = Variant.of(vars(config))
        self.method = self.variant.build()
        self.renderings = Renderings(self.method.supervision.target, self.method.injection.drawn)
        torch.set_num_threads(config.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # the reference's recipe
        self.accelerator = make_accelerator(config, self.out)
        self.episodes = TrainingEpisodes(benchmark, config.seed, config.pairs)
        self.step = 0
        check_run(self.out, self.identity)

        vae_dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32  # fp16 overflows
        with_tokens = self.method.interaction.reads_pixels
        if not config.allow_bin:
            encoders = [base / "image_encoder"] if with_tokens else []
            refuse_pickles(*base_folders(base), base / "unet", *encoders)
        self.vae = load_vae(base, vae_dtype).to(process_device(self.accelerator.device))
        self.text = load_text(base)
        self.unet = start_unet(base, torch.float32, config.seed, with_tokens).train()
        check_parts(self.unet, self.vae, self.text)
        if config.lora:
            torch.manual_seed(config.seed)  # the additions start at random
            add_lora(self.unet, config.lora)
        self.method.freeze_unused(self.unet)
        if config.checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.parameters = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(
            config.optimizer,
            self.parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.schedule = make_schedule(optimizer, config)
        step = TrainingStep(self.unet, self.text["train"], self.method)
        self.module, self.optimizer = self.accelerator.prepare(step, optimizer)
        self.ema = EMAModel(self.parameters, decay=config.ema) if config.ema else None
        if self.accelerator.is_main_process:  # now that everything is known to load
            open_run(self.out, self.identity)
            for class_id in self.episodes.skipped:
                name = f"class {class_id} ({benchmark.class_names[class_id]})"
                print(f"{name} has fewer than two pictures and is skipped", file=sys.stderr)
        self.accelerator.wait_for_everyone()

    @functools.cached_property  # it hashes gigabytes at full size
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that it goes on with."""
        kept = {name: v for name, v in dataclasses.asdict(self.config).items() if name not in UNCHANGED_BY}
        images = sorted(self.benchmark.images.items())
        lists = json.dumps([(c, [(s.name, s.object_id) for s in samples]) for c, samples in images])
        unet = self.base / "unet"
        start = [*unet.glob("*.safetensors"), *unet.glob("*.bin")] or [unet / "config.json"]
        if self.method.interaction.reads_pixels:
            start += (self.base / "image_encoder").glob("*.*")
        return {
            **kept,
            "dtype": {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision),
            "global_batch": self.config.batch * self.accelerator.num_processes,
            "start_sha256": hash_files(sorted(start)),
            "base_sha256": hash_base(self.base),
            "list_sha256": sha256(lists.encode()).hexdigest(),
        }

    def source(self) -> Source:
        """Where pictures come from: the disk, or the latent cache, which is filled first."""
        config, accelerator = self.config, self.accelerator
        if config.cache is None:
            return PixelSource(self.benchmark, config.image_size, self.renderings)
        side = config.image_size // latent_factor(self.vae.config.block_out_channels)
        latent = (self.vae.config.latent_channels, side, side)
        cache = LatentCache(
            Path(config.cache),
            self.benchmark,
            config.image_size,
            hash_vae(self.base),
            latent,
            str(self.vae.dtype),
            self.renderings,
        )
        if accelerator.is_main_process:
            cache.prepare()
        accelerator.wait_for_everyone()
        encode = functools.partial(encode_moments, self.vae)
        cache.fill(encode, config.workers, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        return cache

    def resume(self) -> None:
        """Goes on from the newest complete checkpoint, if there is any."""
        checkpoints = list_checkpoints(self.out)
        if not checkpoints:
            return
        state = load_state(checkpoints[-1])
        if "parameters" in state:
            with torch.no_grad():
                for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                    parameter.copy_(saved)
        else:
            self.unet.load_state_dict(load_unet(checkpoints[-1] / "unet", torch.float32).state_dict())
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        self.step = state["step"]

    def record(self) -> dict[str, Any]:
        """What is kept beside the weights."""
        named = ("image_size", "benchmark", "fold", "shots", "steps")
        return {
            "base": str(self.config.base),
            "variant": self.variant.asdict(),
            **{name: getattr(self.config, name) for name in named},
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
        }

    def save_checkpoint(self) -> None:
        """Writes a checkpoint of this step."""
        if not self.accelerator.is_main_process:
            return
        state = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.ema is not None or self.config.lora:  # what is published is not what trains
            state["parameters"] = [parameter.detach().cpu() for parameter in self.parameters]
        save_checkpoint(self.out, self.step, self.published(), state, self.record(), self.config.keep)

    def save_weight_dir(self) -> None:
        """Writes the released layout at the end of training."""
        save_weight_dir(self.out, self.published(), self.record())

    def validate(self, dataset: EpisodeDataset) -> float:
        """Returns the mIoU on a list of episodes and draws the first ones into out/validation/."""
        unet = self.published().to(self.accelerator.device)
        with eval_mode(unet):
            pipeline = DiffewsPipeline(
                unet, self.vae, self.text, self.config.image_size, variant_keys=self.variant.asdict()
            )
            picture = self.out / "validation" / f"step-{self.step:06d}.png"
            return validate(pipeline, dataset, self.config.shots, picture)

    def published(self) -> DiffewsUNet:
        """The UNet that is evaluated: averaged if `ema` is on, low-rank additions added in."""
        if self.ema is None and not self.config.lora:
            return self.unet
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        plain = plain_unet(self.unet)
        if self.ema is not None:
            self.ema.restore(self.parameters)
        return plain

    def step_input(self, batch: TrainingBatch) -> StepInput:
        """Encodes a batch, and draws the timesteps and noise of its generation."""
        shots, pictures = batch.shots, batch.pictures
        latents = self.latents(batch, 2 if self.method.interaction.reads_pixels else None)
        supports = latents if latents.shape[1] > 2 else to_pixels(pictures.to(self.accelerator.device))
        draws = [self.episodes.generation_draws(index) for index in batch.indices]
        return StepInput(
            *self.method.generation.training_pair(latents[:, 0], latents[:, 1], draws),
            images=supports[:, 2 : 2 + shots].flatten(0, 1),
            drawn=supports[:, 2 + shots :].flatten(0, 1),
            shots=shots,
        )

    def latents(self, batch: TrainingBatch, count: int | None = None) -> Tensor:
        """Scaled latents [B, P, 4, h, w] of the first `count` pictures: a sample of each posterior or its mean."""
        device, pictures = self.accelerator.device, batch.pictures[:, :count]
        if pictures.dtype == torch.uint8:
            pooled = [False] * (2 + batch.shots) + [self.renderings.drawn.pooled] * batch.shots
            moments = [
                encode_moments(self.vae, rgb, flag) for row in pictures for rgb, flag in zip(row, pooled, strict=False)
            ]
            pictures = torch.stack(moments).unflatten(0, pictures.shape[:2])
        mean, deviation = pictures.to(device).unbind(2)
        if self.config.sample_posterior:
            noise = torch.stack([self.episodes.noise(index, mean.shape[1:]) for index in batch.indices])
            mean = mean + deviation * noise.to(device)
        return mean * self.vae.config.scaling_factor

    def reader(self, source: Source) -> BatchReader:
        """What reads this process's batches."""
        config, accelerator = self.config, self.accelerator
        place = (accelerator.process_index, accelerator.num_processes)
        return BatchReader(self.episodes, source, config.batch, config.shots, *place)

    def optimizer_step(self, batches: Iterator[TrainingBatch]) -> float:
        """Takes `accumulate` batches and one optimizer step; returns their mean loss over all processes."""
        accelerator, losses = self.accelerator, []
        for _ in range(self.config.accumulate):
            batch = next(batches)
            with accelerator.accumulate(self.module):
                loss = self.module(self.step_input(batch))
                losses.append(accelerator.gather(loss.detach().reshape(1)).mean())
                if not math.isfinite(losses[-1]):
                    names = "; ".join(json.dumps(episode.names()) for episode in batch.episodes)
                    raise InputError(f"the loss of step {self.step + 1} is {losses[-1]:g}, on the episodes {names}")
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.parameters, self.config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        if self.ema is not None:
            self.ema.step(self.parameters)
        return float(torch.stack(losses).mean())


def train(config: TrainConfig, benchmark: Benchmark, base: Path, validation: EpisodeDataset | None = None) -> None:
    """Trains and leaves out/unet/unet, a weight dir that `diffews eval` takes. See `TrainConfig` for the keys."""
    try:
        _train(Trainer(config, benchmark, base), validation)
    except torch.OutOfMemoryError:
        raise InputError(OUT_OF_MEMORY) from None


def _train(run: Trainer, validation: EpisodeDataset | None) -> None:
    config = run.config
    if config.resume:
        run.resume()
    elif list_checkpoints(run.out):
        raise InputError(f"out={run.out} holds checkpoints of this run; say resume=latest, or give another out=")
    source = run.source()
    is_main = run.accelerator.is_main_process
    log = StepLog(run.out / "log.jsonl", run.step) if is_main else None
    run.accelerator.init_trackers("diffews", config={k: str(v) for k, v in dataclasses.asdict(config).items()})
    last = min(config.steps, config.stop_at or config.steps)
    micro_steps = range(run.step * config.accumulate, last * config.accumulate)
    batches = stream(run.reader(source).read, micro_steps, config.workers)
    episodes_a_step = config.batch * config.accumulate * run.accelerator.num_processes
    with tqdm(total=config.steps, initial=run.step, unit="step", disable=not is_main) as bar:
        while run.step < last:
            start, rate = time.perf_counter(), float(run.schedule.get_last_lr()[0])
            loss = run.optimizer_step(batches)
            seconds = time.perf_counter() - start
            shown = {"loss": f"{loss:.4f}", "lr": f"{rate:.1e}", "episodes/s": f"{episodes_a_step / seconds:.1f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            run.accelerator.log({"loss": loss, "lr": rate}, step=run.step)
            if log is not None:
                log.add(run.step, loss, float(rate))
            if run.step % config.checkpoint_every == 0 or run.step == last:
                run.save_checkpoint()
            if validation is not None and run.step % (config.validate_every or config.steps) == 0:
                if is_main:
                    miou = run.validate(validation)
                    run.accelerator.log({f"miou_{config.validate_on}": miou}, step=run.step)
                    shown_on = f"{len(validation)} episodes of {config.validate_on} classes"
                    bar.write(f"step {run.step}: mIoU {miou:.2f} on {shown_on}")
                run.accelerator.wait_for_everyone()
    if run.step == config.steps and is_main:
        run.save_weight_dir()
        if log is not None and log.losses:
            log.save_curve(run.out / "loss.png")
    run.accelerator.end_training()


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Sets up accelerate: processes, mixed precision, accumulation, tracker."""
    dtype = config.dtype
    if dtype == "auto":
        dtype = "fp16" if torch.cuda.is_available() and config.device != "cpu" else "fp32"
    if dtype == "fp16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("dtype=fp16 needs a GPU; on the CPU use dtype=fp32 or bf16")
    if config.tracker == "tensorboard" and not is_tensorboard_available():
        raise InputError("tracker=tensorboard needs tensorboard; install it with pip install 'diffews[tensorboard]'")
    try:
        return Accelerator(
            mixed_precision={"fp32": "no"}.get(dtype, dtype),
            gradient_accumulation_steps=config.accumulate,
            cpu=config.device == "cpu",
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=out,
        )
    except (ValueError, ImportError) as error:  # precision that the device lacks, tracker that is not installed
        raise InputError(f"dtype={config.dtype}, tracker={config.tracker}: {first_line(error)}") from None


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear decay (polynomial of power 1) to 1e-7 as in the reference, or one cycle; both are stepped once a step."""
    if config.schedule == "one_cycle":
        rise = 0.1 if config.warmup is None else config.warmup  # beta1 moves against it, between 0.85 and 0.95
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, config.steps + 1, pct_start=rise)
    warmup = round((config.warmup or 0) * config.steps)
    return get_polynomial_decay_schedule_with_warmup(optimizer, warmup, config.steps, lr_end=LR_END, power=1.0)
