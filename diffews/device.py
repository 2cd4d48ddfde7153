"""Device, precision and arithmetic, decided in one place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diffews.errors import InputError


def pick_device(name: str) -> torch.device:
    """Returns the named device; "auto" takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used ({str(error).splitlines()[0]})") from None
    return device


def torch_dtype(name: str) -> torch.dtype:
    """Returns torch's type for fp32, bf16 or fp16."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def device_name(device: torch.device) -> str:
    """Returns a name to write into results."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def memory_advice() -> Iterator[None]:
    """Turns a GPU's lack of memory into one line that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError("the GPU is out of memory; use batch=1, a smaller image_size=, or dtype=fp16") from None


def exact_arithmetic(threads: int) -> None:
    """Fixes what rounding depends on: the number of CPU threads (0: as torch has it), no TF32, no timed kernels."""
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
