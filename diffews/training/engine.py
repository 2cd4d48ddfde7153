"""What a training run runs on: processes, precision, learning rate, and its optimizer steps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import is_tensorboard_available
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffews.errors import InputError, first_line
from diffews.runtime.device import pick_device
from diffews.training import LR_END
from diffews.training.step import StepInput

if TYPE_CHECKING:
    from diffews.cli.training_settings import TrainConfig

MOST_SKIPPED = 30  # steps in a row; float16's scale falls from 2^16 to nothing in so many


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


@dataclass
class Stepper:
    """Takes optimizer steps; between two of them a GPU is not waited for.

    Attributes:
        accelerator: of `make_accelerator`.
        module: gives the loss of a `StepInput`; prepared by the accelerator, as is the optimizer.
        optimizer: changes the parameters.
        schedule: of the learning rate.
        parameters: what trains.
        clip: largest norm of the gradient.
        ema: average of the parameters, if any.
        skipped: so many last steps were left out, since float16 overflowed in their gradients.

    """

    accelerator: Accelerator
    module: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    parameters: list[nn.Parameter]
    clip: float
    ema: EMAModel | None = None
    skipped: int = 0
    _losses: list[Tensor] = field(default_factory=list)
    _scale: float = 1.0

    def add(self, step: StepInput) -> None:
        """Adds the gradients of a batch; the last one of a step changes the parameters."""
        accelerator = self.accelerator
        if not self._losses and accelerator.scaler is not None:
            self._scale = accelerator.scaler.get_scale()  # the GPU has nothing to do just now
        with accelerator.accumulate(self.module):
            loss = self.module(step)
            self._losses.append(loss.detach())

            # while gradients accumulate, accelerate makes the last two do nothing
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def finish(self) -> Tensor:
        """Ends the step, and waits for what it gave.

        A step that float16's scaler left out moves neither the schedule nor the average: they
        count changes of the parameters.

        Returns:
            The loss of each batch that was added, the mean over all processes, on the CPU.

        Raises:
            InputError: after `MOST_SKIPPED` steps in a row that were left out.

        """
        mine, self._losses = torch.stack(self._losses), []
        everyones = self.accelerator.gather(mine).reshape(-1, len(mine))
        losses = torch.stack([losses.mean() for losses in everyones.T.contiguous()]).cpu()

        if self._was_skipped():
            self.skipped += 1
            if self.skipped >= MOST_SKIPPED:
                raise InputError(f"the gradients of {self.skipped} steps in a row do not fit into "
                                 "fp16; use dtype=bf16, or a lower lr=")
            return losses

        self.skipped = 0
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return losses

    def _was_skipped(self) -> bool:
        """Whether the scaler has just left a step out.

        Accelerate's own `step_was_skipped` is blind to a fused optimizer, which is called and then
        does nothing.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() < self._scale
