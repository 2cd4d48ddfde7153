"""Runs the package on a GPU that does not exist; says what each row would take, as JSON lines.

python tests/dry_run/dry_run.py FOLDER [sd21 | tiny] [NAME ...]     (all names but the planted ones)

FOLDER keeps the compiled shim. Each line holds a row's name, the peak of the bytes on the device,
kernels, where the host waited, and what was refused. Exit code 0, or 3 where torch's private parts
have moved.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda

if __name__ == "__main__":
    try:
        fake_cuda.install(Path(sys.argv[1]))
    except fake_cuda.Moved as moved:
        sys.exit(print(moved) or 3)

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.training_utils import EMAModel
from torch._subclasses.fake_tensor import FakeTensorMode

from diffews import pipeline
from diffews.cli.tool_settings import BenchmarkConfig
from diffews.data.training import TrainingBatch
from diffews.evaluation.groups import count_group, segment_group
from diffews.pipeline import DiffewsPipeline
from diffews.tools.timing import random_group, random_pipeline
from diffews.training.adapters import add_lora, make_optimizer
from diffews.training.engine import Stepper
from diffews.training.pixel_loss import PixelLoss
from diffews.training.step import TrainingStep, encode_batch, latent_loss
from diffews.variants import GENERATIONS, INJECTIONS, INTERACTIONS, SUPERVISIONS

DEVICE = torch.device("cuda", 0)
SIDES = {"sd21": 512, "tiny": 64}
EPISODES = {  # name -> keys of the model, and shots, batch
    **{
        f"eval {shots}-shot {dtype}": ({"dtype": dtype}, shots, 1)
        for shots in (1, 5)
        for dtype in ("fp32", "fp16", "bf16")
    },
    "eval 1-shot fp32, low_memory": ({"dtype": "fp32", "low_memory": True}, 1, 1),
    "eval 1-shot bf16, batch 8": ({"dtype": "bf16"}, 1, 8),
    "eval 5-shot bf16, batch 8": ({"dtype": "bf16"}, 5, 8),
}
STEPS = {  # name -> what `train` is given
    "train 1 shot": {"shots": 1},
    "train 1 shot, fp32": {"shots": 1, "dtype": "fp32"},
    "train 1 shot, bf16": {"shots": 1, "dtype": "bf16"},
    "train 7 shots": {"shots": 7},
    "train 1 shot, checkpointing": {"shots": 1, "checkpointing": True},
    "train 7 shots, checkpointing": {"shots": 7, "checkpointing": True},
    "train 7 shots, checkpointing, ema": {"shots": 7, "checkpointing": True, "ema": 0.999},
    "train 2 shots, lora 16": {"shots": 2, "lora": 16},
    "train 2 shots, lora 16, checkpointing": {"shots": 2, "lora": 16, "checkpointing": True},
    "train 1 shot, pixel loss": {"shots": 1, "pixel": True},
    "train 1 shot, pixel loss, checkpointing": {"shots": 1, "pixel": True, "checkpointing": True},
}


def watch(shapes: str, run: Callable[[Any, int], None], keys: dict[str, Any]) -> dict[str, Any]:
    """Makes a model, runs it, and returns what was seen; errors of ours are `refused`."""
    start, refused, size = time.process_time(), "", SIDES[shapes]
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = BenchmarkConfig(image_size=size, shapes=shapes, **keys)
        pipe = random_pipeline(config, DEVICE)
        seen = fake_cuda.make_watch()
        parts = (pipe.unet, pipe.vae)
        seen.hold([x for m in parts for x in (*m.parameters(), *m.buffers())])
        try:
            with seen:
                run(pipe, size)
        except (TypeError, RuntimeError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "/diffews/" in frame.filename]
            where = f"{Path(ours[-1].filename).name} {ours[-1].name}" if ours else "no line of ours"
            refused = f"{type(error).__name__} {str(error).splitlines()[0]} at {where}"
    return {
        "gb": seen.peak / 1e9,
        "kernels": seen.kernels,
        "waits": dict(seen.waits),
        "refused": refused,
        "seconds": round(time.process_time() - start, 1),
    }


def evaluate(shots: int, batch: int) -> Callable[[Any, int], None]:
    """A group of episodes, as `eval` computes it."""

    def run(pipe: Any, size: int) -> None:
        group = random_group(batch, shots, size).pin_memory()
        count_group(segment_group(pipe, group, shots), group, [(0.25, "reference")])

    return run


def variant(**words: str) -> Callable[[Any, int], None]:
    """A group of two episodes of another of the paper's choices."""

    def run(pipe: Any, size: int) -> None:
        parts = pipe.unet, pipe.vae, pipe.text
        other = DiffewsPipeline(*parts, image_size=size, variant_keys=words)
        evaluate(2, 2)(other, size)

    return run


# ---- mistakes, which must be found ----


def planted(name: str, mistake: Callable[..., Any]) -> Callable[[Any, int], None]:
    """An episode with a function of the pipeline exchanged for one that makes a mistake."""

    def run(pipe: Any, size: int) -> None:
        right = getattr(pipeline, name)
        setattr(pipeline, name, lambda *given: mistake(right, *given))
        try:
            evaluate(1, 1)(pipe, size)
        finally:
            setattr(pipeline, name, right)

    return run


def other_device(right: Any, vae: Any, images: Any) -> Any:
    """A picture stays in main memory."""
    return right(vae, images.cpu())


def other_dtype(right: Any, vae: Any, latents: Any) -> Any:
    """Half-precision latents meet a VAE in full precision."""
    return right(vae, latents.half())


def waits(right: Any, vae: Any, latents: Any) -> Any:
    """The host looks at a value before it goes on."""
    rgb = right(vae, latents)
    return rgb if rgb.max().item() < 1e9 else rgb * 0


PLANTED = {
    "planted device": planted("encode_latents", other_device),
    "planted dtype": planted("decode_latents", other_dtype),
    "planted wait": planted("decode_latents", waits),
}
VARIANTS = {
    f"variant {word}": variant(**{choice: word})
    for choice, words in (
        ("interaction", INTERACTIONS[1:2]),
        ("injection", INJECTIONS[1:]),
        ("supervision", SUPERVISIONS[1:]),
        ("generation", GENERATIONS[1:]),
    )
    for word in words
}


def train(
    shots: int,
    checkpointing: bool = False,
    ema: float = 0.0,
    lora: int = 0,
    pixel: bool = False,
    dtype: str = "fp16",
) -> Callable[[Any, int], None]:
    """One batch and the end of its step, as `train` takes them.

    It finds what every step but the first finds: Adam's moments, and, since gradients accumulate,
    those of the batch before.
    """

    def run(pipe: Any, size: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        accelerator = Accelerator(mixed_precision="no" if dtype == "fp32" else dtype)

        # what trains
        unet = pipe.unet.train().requires_grad_(True)
        if lora:
            add_lora(unet, lora)
        pipe.method.freeze_unused(unet)
        loss = PixelLoss(1.0, pipe.vae) if pixel else latent_loss
        if checkpointing:
            unet.enable_gradient_checkpointing()
            pipe.vae.enable_gradient_checkpointing()
        parameters = [weight for weight in unet.parameters() if weight.requires_grad]

        # how it trains
        optimizer = make_optimizer("adamw", parameters, is_gpu=True, lr=1e-5, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        step = TrainingStep(unet, pipe.text["train"].to(DEVICE), pipe.method, loss)
        for weight in parameters:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        module, optimizer = accelerator.prepare(step, optimizer)
        average = EMAModel(parameters, decay=ema) if ema else None
        stepper = Stepper(accelerator, module, optimizer, schedule, parameters, 1.0, average)

        side = size // (2 ** (len(pipe.vae.config.block_out_channels) - 1))
        noise = torch.randn(1, 2 + 2 * shots, pipe.vae.config.latent_channels, side, side)
        batch, draws = make_batch(shots, size, pixel), [np.random.default_rng(0)]
        stepper.add(encode_batch(batch, pipe.vae, pipe.method, draws, noise.pin_memory()))
        stepper.finish()

    return run


def make_batch(shots: int, size: int, truth: bool) -> TrainingBatch:
    """One episode of noise, as a loader gives it to a GPU."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randint(256, (*shape, size, size), dtype=torch.uint8)

    masks = noise(1) % 2 if truth else None
    pictures = noise(1, 3), noise(1, 3), noise(1, shots, 3), noise(1, shots, 3)
    return TrainingBatch([], [0], shots, *pictures, truth=masks).pin_memory()


def rows() -> dict[str, tuple[Callable[[Any, int], None], dict[str, Any]]]:
    """What can be run, and with which keys of the model, by name."""
    found = {name: (evaluate(*sizes), keys) for name, (keys, *sizes) in EPISODES.items()}
    found |= {name: (train(**keys), {}) for name, keys in STEPS.items()}
    return {**found, **{name: (run, {}) for name, run in (VARIANTS | PLANTED).items()}}


def main(shapes: str, names: list[str]) -> None:
    """Runs the rows of these names, or all."""
    for name, (run, keys) in rows().items():
        if name in names or not names and name not in PLANTED:
            print(json.dumps({"name": name, **watch(shapes, run, keys)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[2] if len(sys.argv) > 2 else "sd21", sys.argv[3:])
