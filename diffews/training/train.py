"""Training: both passes in one step, episodes by (seed, index) alone, exact restarts."""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.training_utils import EMAModel
from tqdm import tqdm

from diffews.data.episodes import Benchmark, EpisodeDataset
from diffews.data.latents import LatentCache
from diffews.data.prefetch import stream
from diffews.data.training import (
    BatchReader, EpisodeReader, PixelReader, Renderings, TrainingBatch, TrainingEpisodes)
from diffews.errors import InputError, printable, says_how_to_go_on
from diffews.evaluation.groups import count_pixels, read_group, segment_group
from diffews.evaluation.metrics import Scores
from diffews.images.drawing import panel, save_image
from diffews.models.find import (
    WeightDir, base_folders, hash_base, hash_small_vae, hash_vae, latent_factor, refuse_pickles)
from diffews.models.lora import save_lora
from diffews.models.unet import DiffewsUNet
from diffews.models.weights import check_parts, load_text, load_unet, load_vae
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import process_device
from diffews.runtime.files import (
    check_run, counted_values, default_values, hash_files, open_run)
from diffews.runtime.processes import in_step, one_run, together
from diffews.training.adapters import (
    LORA_LAYERS, add_lora, make_optimizer, plain_unet, trained_tensors)
from diffews.training.checkpoints import (
    list_checkpoints, load_state, save_checkpoint, save_weight_dir)
from diffews.training.engine import Stepper, is_on_cpu, make_accelerator, make_schedule
from diffews.training.log import StepLog
from diffews.training.memory import settle_checkpointing
from diffews.training.pixel_loss import learned_threshold, make_loss
from diffews.training.start import load_start, make_record, start_files
from diffews.training.step import StepInput, TrainingStep, encode_batch, encode_moments
from diffews.variants import Variant

if TYPE_CHECKING:
    from diffews.cli.training_settings import TrainConfig

PANELS = 6  # episodes in the picture of a validation
OUT_OF_MEMORY = (
    "the GPU is out of memory; turn on, in this order: checkpointing=true, batch=1 with a larger "
    "accumulate=, cache=DIR, optimizer=adamw8bit, lora=16, a smaller shots=")


def train(
    config: "TrainConfig", benchmark: Benchmark, base: Path,
    validation: EpisodeDataset | None = None, init: WeightDir | None = None,
) -> None:
    """Trains and leaves out/unet/unet, a weight dir that `diffews eval` takes.

    Args:
        config: see `TrainConfig` for the keys.
        benchmark: the training lists.
        base: folder with VAE, text and the UNet to start from.
        validation: episodes that are evaluated on the way, if any.
        init: trained weights to start from, in place of the base's UNet.

    Raises:
        InputError: for an `out` of another run, or that another process writes into, parts that do
            not load or fit, a loss that is not finite, or a GPU that is too small.

    """
    PartialState(cpu=is_on_cpu(config))
    try:
        with one_run(Path(config.out)), together():
            Trainer(config, benchmark, base, init).run(validation)
    except torch.OutOfMemoryError:
        raise InputError(OUT_OF_MEMORY) from None


class Trainer:
    """One training run: what it learns from, what it learns, and where it stands."""

    def __init__(
        self, config: "TrainConfig", benchmark: Benchmark, base: Path,
        init: WeightDir | None = None,
    ) -> None:
        self.config, self.benchmark, self.base, self.out = config, benchmark, base, Path(config.out)
        self.init = init
        self.variant = Variant.of(vars(config))
        self.method = self.variant.build()
        injection = self.method.injection
        self.renderings = Renderings(
            self.method.supervision.target, injection.painted, injection.encodes_image,
            truth=config.pixel_loss > 0)
        self.episodes = TrainingEpisodes(benchmark, config.seed, config.pairs, config.weak_masks)
        self.step = 0

        # processes and arithmetic; TF32 is the reference's recipe
        torch.set_num_threads(config.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.accelerator = make_accelerator(config, self.out)
        check_run(self.out, self.identity, default_values(config))

        # what is frozen; in fp16 the VAE would overflow
        is_bf16 = self.accelerator.mixed_precision == "bf16"
        if not config.allow_bin:
            refuse_pickles(*base_folders(base))
        vae = load_vae(base, torch.bfloat16 if is_bf16 else torch.float32)
        self.vae = vae.to(process_device(self.accelerator.device))
        side = config.image_size // latent_factor(vae.config.block_out_channels)
        self.latent = (vae.config.latent_channels, side, side)
        self.text = load_text(base)

        # what trains
        self.unet = load_start(config, base, init, self.method)
        self.unet.train()
        check_parts(self.unet, self.vae, self.text)
        if config.lora:
            torch.manual_seed(config.seed)  # the additions start at random
            add_lora(self.unet, config.lora)
        self.method.freeze_unused(self.unet)
        self.parameters = [weight for weight in self.unet.parameters() if weight.requires_grad]
        is_checkpointing = settle_checkpointing(config, self.unet, side, self.accelerator)
        if is_checkpointing:
            self.unet.enable_gradient_checkpointing()

        # how it trains
        optimizer = make_optimizer(
            config.optimizer, self.parameters, lr=config.lr, betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay, is_gpu=self.accelerator.device.type == "cuda")
        self.schedule = make_schedule(optimizer, config)
        loss = make_loss(config, self.vae, base, is_checkpointing)
        step = TrainingStep(self.unet, self.text["train"], self.method, loss)
        self.module, self.optimizer = self.accelerator.prepare(step, optimizer)
        self.ema = EMAModel(self.parameters, decay=config.ema) if config.ema else None
        self.stepper = Stepper(
            self.accelerator, self.module, self.optimizer, self.schedule, self.parameters,
            config.clip, self.ema)

    @functools.cached_property  # it hashes gigabytes at full size
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that it goes on with."""
        images = sorted(self.benchmark.images.items())
        lists = json.dumps([(c, [(s.name, s.object_id) for s in samples]) for c, samples in images])

        small, precision = self.config.decoder, self.accelerator.mixed_precision
        return {
            **counted_values(self.config),
            **self.benchmark.reading,
            "dtype": "fp32" if precision == "no" else precision,
            "global_batch": self.config.batch * self.accelerator.num_processes,
            "start_sha256": hash_files(start_files(self.base, self.init, self.method)),
            "base_sha256": hash_base(self.base),
            "decoder_sha256": small and hash_small_vae(small),
            "list_sha256": sha256(lists.encode()).hexdigest()}

    def run(self, validation: EpisodeDataset | None) -> None:
        """Trains to the last step, from the newest checkpoint if that is asked for."""
        config, accelerator = self.config, self.accelerator
        if config.resume:
            self.resume()
        elif list_checkpoints(self.out):
            raise InputError(f"out={self.out} holds checkpoints of this run; "
                             "say resume=latest, or give another out=")

        if accelerator.is_main_process:
            for class_id in self.episodes.skipped:
                name = f"class {class_id} ({self.benchmark.class_names[class_id]})"
                print(f"{printable(name)} has fewer than two pictures and is skipped",
                      file=sys.stderr)

        # the batches of this process, from where the run stands
        last = min(config.steps, config.stop_at or config.steps)
        micro_steps = range(self.step * config.accumulate, last * config.accumulate)
        reader = self.batch_reader(self.episode_reader())
        batches = stream(reader.read, micro_steps, config.workers,
                         accelerator.device.type == "cuda")
        episodes = config.batch * config.accumulate * accelerator.num_processes  # of a step

        is_main, first = accelerator.is_main_process, self.step
        log: StepLog | None = None
        bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not is_main)
        with bar, says_how_to_go_on(self.how_to_go_on):
            while self.step < last:
                start, rate = time.perf_counter(), float(self.schedule.get_last_lr()[0])
                loss = self.optimizer_step(batches)
                speed = episodes / (time.perf_counter() - start)

                # nothing is written before a first step was taken
                if self.step == first + 1:
                    log = self.begin(first)
                bar.set_postfix({"loss": f"{loss:.4f}", "lr": f"{rate:.1e}",
                                 "episodes/s": f"{speed:.1f}"}, refresh=False)
                bar.update()
                accelerator.log({"loss": loss, "lr": rate}, step=self.step)
                if log is not None:
                    log.add(self.step, loss, rate)

                if self.step % config.checkpoint_every == 0 or self.step == last:
                    self.save_checkpoint()
                pause = config.validate_every or config.steps
                if validation is not None and self.step % pause == 0:
                    if is_main:
                        miou, classes = self.validate(validation), config.validate_on
                        accelerator.log({f"miou_{classes}": miou}, step=self.step)
                        bar.write(f"step {self.step}: mIoU {miou:.2f} "
                                  f"on {len(validation)} episodes of {classes} classes")
                    accelerator.wait_for_everyone()

        if self.step == config.steps and is_main:
            log = log or StepLog(self.out / "log.jsonl", self.step)
            save_weight_dir(self.out, self.published(), self.record())
            if config.lora and not (self.out / "lora").exists():
                with self.averaged():
                    save_lora(
                        trained_tensors(self.unet), config.lora, LORA_LAYERS, self.out / "lora")
            if log.losses:
                log.save_curve(self.out / "loss.png")
        accelerator.end_training()

    def begin(self, step: int) -> StepLog | None:
        """Makes the folder that of this run; returns its log, which goes on after so many steps.

        Only the main process has one.
        """
        is_main, config = self.accelerator.is_main_process, dataclasses.asdict(self.config)
        with in_step():
            if is_main:
                open_run(self.out, self.identity, default_values(self.config))
        shown_config = {name: str(value) for name, value in config.items()}
        self.accelerator.init_trackers("diffews", config=shown_config)
        return StepLog(self.out / "log.jsonl", step) if is_main else None

    def how_to_go_on(self) -> str:
        """What to do after an interrupt."""
        checkpoints = list_checkpoints(self.out)
        if not checkpoints:
            return "no checkpoint was written yet; the same command starts again"
        step = checkpoints[-1].name.removeprefix("checkpoint-")
        return f"the same command with resume=latest goes on from step {step}"

    def episode_reader(self) -> EpisodeReader:
        """What reads episodes: the disk, or the latent cache, which is filled first."""
        config, accelerator = self.config, self.accelerator
        if config.cache is None:
            return PixelReader(self.benchmark, config.image_size, self.renderings)

        cache = LatentCache(
            Path(config.cache), self.benchmark, config.image_size, self.renderings,
            hash_vae(self.base), self.latent, str(self.vae.dtype))
        with in_step() as step:  # several runs may read one that is filled
            step.mine = cache.is_filled()
        if all(step.all):
            return cache

        # each process encodes its share
        with one_run(cache.folder):
            with in_step():
                if accelerator.is_main_process:
                    cache.prepare()
            encode = functools.partial(encode_moments, self.vae)
            with in_step():
                cache.fill(encode, config.workers, accelerator.process_index,
                           accelerator.num_processes)
        return cache

    def batch_reader(self, reader: EpisodeReader) -> BatchReader:
        """What reads this process's batches."""
        config, accelerator = self.config, self.accelerator
        return BatchReader(self.episodes, reader, config.batch, config.shots,
                           accelerator.process_index, accelerator.num_processes)

    def optimizer_step(self, batches: Iterator[TrainingBatch]) -> float:
        """Takes `accumulate` batches and one step; returns their mean loss over all processes.

        Raises:
            InputError: for a loss that is not finite; it names the episodes.

        """
        shown = []
        for _ in range(self.config.accumulate):
            batch = next(batches)
            shown.append(batch.episodes)
            self.stepper.add(self.step_input(batch))
        losses = self.stepper.finish()

        # what float16 makes of a loss that is too large, its scaler has left out
        for loss, episodes in zip(losses, shown, strict=True):
            if not loss.isfinite() and self.stepper.skipped == 0:
                names = "; ".join(json.dumps(episode.names()) for episode in episodes)
                raise InputError(f"the loss of step {self.step + 1} is {loss:g}, "
                                 f"on the episodes {names}")
        self.step += 1
        return float(losses.mean())

    def step_input(self, batch: TrainingBatch) -> StepInput:
        """Encodes a batch; its randomness is a function of the seed and the episodes' indices."""
        draws = [self.episodes.generation_draws(index) for index in batch.indices]
        noise = None
        if self.config.sample_posterior:
            shape = (2 + 2 * batch.shots, *self.latent)
            noise = torch.stack([self.episodes.noise(index, shape) for index in batch.indices])
            noise = noise.pin_memory() if self.vae.device.type == "cuda" else noise
        step = encode_batch(batch, self.vae, self.method, draws, noise)
        is_on = self.step >= self.config.pixel_from
        return step if is_on else dataclasses.replace(step, truth=None)

    def validate(self, dataset: EpisodeDataset) -> float:
        """Returns the mIoU on a list of episodes; panels of the first go to out/validation/."""
        unet = self.published().to(self.accelerator.device).eval()
        pipeline = DiffewsPipeline(unet, self.vae, self.text, self.config.image_size,
                                   variant_keys=self.variant.asdict())

        threshold = learned_threshold(self.config, self.step)
        scores, panels = Scores(dataset.class_ids), []
        for index, episode in enumerate(dataset.episodes):
            group = read_group(dataset, [index])
            found = segment_group(pipeline, group, self.config.shots).check(group.names)
            masks = found.masks(threshold, "reference")
            scores.add(episode.class_id, *count_pixels(masks, group)[0].tolist())
            if index < PANELS:
                supports, query, truth = group.shown(0)
                panels.append(panel(supports, query, masks[0].cpu().numpy(), truth))

        save_image(self.out / "validation" / f"step-{self.step:06d}.png", np.vstack(panels))
        unet.train()
        return scores.running_miou()

    def published(self) -> DiffewsUNet:
        """The UNet that is evaluated: averaged if `ema` is on, low-rank additions added in."""
        if self.ema is None and not self.config.lora:
            return self.unet
        with self.averaged():
            return plain_unet(self.unet)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the average in the weights' place, if `ema` is on."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        yield
        self.ema.restore(self.parameters)

    def record(self) -> dict[str, Any]:
        """What is kept beside the weights."""
        return make_record(self.config, self.variant, self.init, self.step)

    def stateful(self) -> dict[str, Any]:
        """What has a state beside the weights, by the name that checkpoints give it."""
        parts = {"optimizer": self.optimizer, "schedule": self.schedule,
                 "scaler": self.accelerator.scaler, "ema": self.ema}
        return {name: part for name, part in parts.items() if part is not None}

    def save_checkpoint(self) -> None:
        """Writes a checkpoint of this step."""
        if not self.accelerator.is_main_process:
            return
        state = {name: part.state_dict() for name, part in self.stateful().items()}
        if self.ema is not None or self.config.lora:  # what is published is not what trains
            state["parameters"] = [weight.detach().cpu() for weight in self.parameters]
        save_checkpoint(
            self.out, self.step, self.published(), state, self.record(), self.config.keep)

    def resume(self) -> None:
        """Goes on from the newest complete checkpoint, if there is any."""
        checkpoints = list_checkpoints(self.out)
        if not checkpoints:
            return
        state = load_state(checkpoints[-1])

        if "parameters" in state:
            with torch.no_grad():
                for weight, saved in zip(self.parameters, state["parameters"], strict=True):
                    weight.copy_(saved)
        else:
            saved_unet = load_unet(checkpoints[-1] / "unet", torch.float32)
            self.unet.load_state_dict(saved_unet.state_dict())

        for name, part in self.stateful().items():
            part.load_state_dict(state[name])
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.step = state["step"]
        if self.accelerator.is_main_process:
            print(f"diffews: going on from step {self.step}", file=sys.stderr)
