"""Device, precision and arithmetic, decided in one place."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from diffews.errors import InputError, refuse

MOST_BATCH = 32  # beyond it a GPU gains nothing
CPU_PIXELS = 8 * 64 * 64  # of a batch; a larger one leaves the caches and is no faster
TO_SPARE = 0.85  # share of the free memory that is counted on


def pick_device(name: str) -> torch.device:
    """Returns the named device; "auto" takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"

    with refuse(f"device={name} cannot be used", RuntimeError, AssertionError):
        device = torch.device(name)
        # one of several processes takes its own GPU before it asks for anything there
        rank = os.environ.get("LOCAL_RANK")
        if device.type == "cuda" and device.index is None and rank is not None:
            torch.cuda.set_device(int(rank) % max(torch.cuda.device_count(), 1))
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


def auto_batch(
        run: Callable[[int], object], device: torch.device, image_size: int) -> tuple[int, str]:
    """Returns how many episodes to compute at once, and why; on a GPU, as many as fit.

    run: computes so many, which share no picture. image_size: their side in pixels.
    """
    if device.type != "cuda":
        batch = max(1, CPU_PIXELS // image_size**2)
        return batch, f"on a CPU more of {image_size} px leave its caches"

    def peak(count: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        run(count)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    # what is reserved is ours to use
    def room() -> float:
        free = torch.cuda.mem_get_info(device)[0]
        return TO_SPARE * (free + torch.cuda.memory_reserved(device))

    return largest_batch(peak, room)


def largest_batch(peak: Callable[[int], int], room: Callable[[], float]) -> tuple[int, str]:
    """Returns a batch whose peak fits, close to the largest, and why.

    It is doubled as long as it fits, then halved in between: a straight line from two small ones
    would be wrong, since what is computed in chunks grows no further from some batch on.

    Args:
        peak: computes a batch and gives the bytes that it took.
        room: bytes that may be taken.

    """
    taken = {1: peak(1)}

    def fits(count: int) -> bool:
        try:
            taken[count] = peak(count)
        except torch.OutOfMemoryError:
            return False
        return taken[count] <= room()

    batch, beyond = 1, 2
    while beyond <= MOST_BATCH and fits(beyond):
        batch, beyond = beyond, 2 * beyond
    if batch == MOST_BATCH:
        return batch, f"{batch} take {taken[batch] / 1e9:.1f} GB, and more gain nothing"

    while beyond - batch > max(1, batch // 4):
        middle = (batch + beyond) // 2
        batch, beyond = (middle, beyond) if fits(middle) else (batch, middle)
    return batch, (f"{batch} take {taken[batch] / 1e9:.1f} of {room() / 1e9:.1f} GB, "
                   f"{beyond} do not fit")


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
            "the GPU is out of memory; use batch=1, then dtype=bf16 or fp16, then low_memory=true, "
            "or a smaller image_size="
        ) from None


def exact_arithmetic(threads: int, tf32: bool = False) -> None:
    """Fixes what rounding depends on.

    threads: of the CPU; 0 leaves the number as torch has it.
    tf32: lets a GPU compute in TF32. It never chooses kernels by timing them, since another choice
    gives other bytes.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
