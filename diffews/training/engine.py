"""What a training run runs on: processes, precision, learning rate."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup

from diffews.errors import InputError, first_line
from diffews.runtime.device import pick_device
from diffews.training import LR_END

if TYPE_CHECKING:
    from diffews.cli.training_settings import TrainConfig


def is_on_cpu(config: "TrainConfig") -> bool:
    """Whether this run computes on the CPU; accelerate joins its processes only when told so."""
    return pick_device(config.device).type == "cpu"


def make_accelerator(config: "TrainConfig", out: Path) -> Accelerator:
    """Sets up accelerate: processes, mixed precision, accumulation, tracker.

    Raises:
        InputError: for a precision that the device lacks, or a tracker that is not installed.

    """
    dtype, on_cpu = config.dtype, not torch.cuda.is_available() or is_on_cpu(config)
    if dtype == "auto":
        dtype = "fp32" if on_cpu else "fp16"
    if dtype == "fp16" and on_cpu:
        raise InputError("dtype=fp16 needs a GPU; on the CPU use dtype=fp32 or bf16")
    if config.tracker == "tensorboard" and not is_tensorboard_available():
        raise InputError("tracker=tensorboard needs tensorboard; "
                         "install it with pip install 'diffews[tensorboard]'")

    try:
        return Accelerator(
            mixed_precision="no" if dtype == "fp32" else dtype,
            gradient_accumulation_steps=config.accumulate, cpu=is_on_cpu(config),
            log_with=None if config.tracker == "none" else config.tracker, project_dir=out)
    except (ValueError, ImportError) as error:
        reason = first_line(error)
        raise InputError(f"dtype={config.dtype}, tracker={config.tracker}: {reason}") from None


def make_schedule(
    optimizer: torch.optim.Optimizer, config: "TrainConfig"
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear decay to 1e-7 as in the reference, or one cycle; both are stepped once a step."""
    if config.schedule == "one_cycle":  # beta1 moves against the rate, between 0.85 and 0.95
        rise = 0.1 if config.warmup is None else config.warmup
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, config.steps + 1, pct_start=rise)
    warmup = round((config.warmup or 0) * config.steps)
    return get_polynomial_decay_schedule_with_warmup(
        optimizer, warmup, config.steps, lr_end=LR_END, power=1.0)
