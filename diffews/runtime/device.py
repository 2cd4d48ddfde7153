"""Device, precision and arithmetic, decided in one place."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from diffews.errors import InputError, refuse

MOST_BATCH = 32  # beyond it a GPU gains nothing
CPU_PIXELS = 8 * 64 * 64  # of a batch; a larger one leaves the caches and is no faster


def pick_device(name: str) -> torch.device:
    """Returns the named device; "auto" takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"

    with refuse(f"device={name} cannot be used", RuntimeError, AssertionError):
        device = torch.device(name)
        torch.empty(0, device=device)
        # events, streams and pinned memory belong to the current device
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    return device


def process_device(device: torch.device) -> torch.device:
    """Returns the device that accelerate gave to this process, the CPU without a number.

    A move to `cpu:0` copies weights that lie in a mapped file, and rounding depends on how tensors
    are aligned: one process and several would not give the same bytes.
    """
    return torch.device("cpu") if device.type == "cpu" else device


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the VAE's precision beside a UNet of this one.

    Under float16 Stable Diffusion's VAE overflows, so it stays in float32.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def torch_dtype(name: str) -> torch.dtype:
    """Returns torch's type for fp32, bf16 or fp16."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def all_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def half_precision(device: torch.device) -> str:
    """Returns the half precision that the device is fast in."""
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16"


def auto_batch(run: Callable[[int], object], device: torch.device, image_size: int) -> int:
    """Returns how many images to compute at once; on a GPU, as many as its memory holds.

    run: computes so many; it is called with 1 and 2, and the growth of the peak memory says how
    many fit. image_size: their side in pixels.
    """
    if device.type != "cuda":
        return max(1, CPU_PIXELS // image_size**2)

    peaks = []
    for count in (1, 2):
        torch.cuda.reset_peak_memory_stats(device)
        try:
            run(count)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            return 1
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device))

    # the first image holds what all share; 15 % stays to spare
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    room = 0.85 * free - peaks[0]
    return int(max(1, min(MOST_BATCH, 1 + room // max(peaks[1] - peaks[0], 1))))


def device_name(device: torch.device) -> str:
    """Returns a name to write into results."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def memory_advice() -> Iterator[None]:
    """Turns a GPU's lack of memory into one line that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            "the GPU is out of memory; use batch=1, low_memory=true, dtype=fp16 or a smaller "
            "image_size="
        ) from None


def exact_arithmetic(threads: int, tf32: bool = False) -> None:
    """Fixes what rounding depends on.

    threads: of the CPU; 0 leaves the number as torch has it.
    tf32: lets a GPU compute in TF32, and choose kernels by timing them.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = not tf32
    torch.backends.cudnn.benchmark = tf32
