"""Time, memory and arithmetic of episodes and training steps: plain beside fast, run in turns."""

import dataclasses
import functools
import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diffews.data.training import TrainingBatch
from diffews.evaluation.groups import Group, count_group, segment_group
from diffews.images.paint import to_pixels
from diffews.models.find import DEFAULT_THRESHOLD, WeightDir
from diffews.models.unet import DiffewsUNet
from diffews.models.weights import load_small_vae
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import (
    auto_batch, device_name, exact_arithmetic, memory_advice, pick_device, torch_dtype, vae_dtype)
from diffews.runtime.files import CHECKOUT, read_json, versions
from diffews.runtime.loading import Speed, open_pipeline, settle_fast
from diffews.tools.arithmetic import count_parts, count_tflop, make_twin
from diffews.training.adapters import make_optimizer
from diffews.training.step import TrainingStep, encode_batch

if TYPE_CHECKING:
    from diffews.cli.tool_settings import BenchmarkConfig

SD21: dict[str, dict[str, Any]] = {  # of Stable Diffusion 2.1; the rest is diffusers' default
    "unet": {
        "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
        "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True, "upcast_attention": True},
    "vae": {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4}}
# of a parameter that trains: weight, gradient, Adam's two moments in fp32, a copy in half precision
TRAINING_BYTES = 18
TINY_SIDE = 64  # pixels of the small random model's pictures
AHEAD = 4  # groups in one timed run on a GPU, which computes one while the last is counted
THRESHOLD = (DEFAULT_THRESHOLD, "reference")


@dataclass(frozen=True)
class Setup:
    """One way to compute.

    Attributes:
        config: its keys.
        pipeline: its model.

    """

    config: "BenchmarkConfig"
    pipeline: DiffewsPipeline

    @functools.cached_property
    def parts(self) -> dict[str, float]:
        """TFLOP of the model's parts, as `count_parts` gives them; training does not ask."""
        return count_parts(make_twin(self.pipeline), int(self.config.image_size or 0))

    @property
    def bytes_on_gpu(self) -> int:
        """Bytes of the weights that lie on a GPU now."""
        parts = [p for p in self.pipeline.components.values() if isinstance(p, torch.nn.Module)]
        return sum(weight.nbytes for part in parts for weight in part.parameters()
                   if weight.is_cuda)


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        setup: that computes it.
        run: does it once.
        tflop: of one unit: an episode, a query or a training step.
        units: that one run does.
        batch: units that are computed at once.

    """

    setup: Setup
    run: Callable[[], object]
    tflop: float
    units: int = 1
    batch: int = 1


def measure_all(config: "BenchmarkConfig", source: WeightDir | None) -> dict[str, Any]:
    """Measures episodes, cached queries and training steps.

    Args:
        config: the command's keys; those of the fast setup are what they say.
        source: the weights; None takes random ones.

    Returns:
        All that was measured: ms and TFLOP of one unit of work, memory in bytes.

    """
    device = pick_device(config.device)
    config = settle_model(config, device)
    fast_config = dataclasses.replace(settle_fast(config, device), batch=config.batch)
    off: dict[str, Any] = dict.fromkeys(
        ("fast", "channels_last", "tf32", "compile", "low_memory"), False)
    plain_config = dataclasses.replace(
        config, **off, dtype="fp32", batch=1, encoder=None, decoder=None)

    measured, skipped = {}, {}
    with memory_advice():
        plain = open_setup(plain_config, source, device)
        fast = open_setup(fast_config, source, device)
        parts = plain.parts
        parameters = plain.pipeline.unet.num_parameters()
        for shots in (1, 5):
            measured[f"{shots}-shot episode"] = time_in_turns(
                {"plain": episode_work(plain, shots), "fast": episode_work(fast, shots)})
        measured["cached query"] = time_in_turns(
            {"plain": episode_work(plain, 1), "fast": cached_query_work(fast)})

        # low_memory cannot be undone on a pipeline; the others make room first
        del plain, fast
        gc.collect()
        if device.type == "cuda":
            low = dataclasses.replace(fast_config, low_memory=True, batch=1)
            measured["1-shot, low_memory"] = time_in_turns(
                {"fast": episode_work(open_setup(low, source, device), 1)})
            gc.collect()

        lack = missing_memory(parameters, device) if config.train else "train=false"
        if lack:
            skipped["training step"] = lack
        else:
            setup = open_setup(plain_config, source, device)
            measured["training step"] = time_in_turns(training_work(setup))

    return {
        "device": device_name(device), "cores": os.cpu_count(),
        "model": str(source.path) if source else f"{config.shapes}, random weights",
        "image_size": config.image_size, "versions": versions(),
        "keys": {"plain": dataclasses.asdict(plain_config),
                 "fast": dataclasses.asdict(fast_config)},
        "peak_memory": "GPU memory of the setup" if device.type == "cuda"
        else "largest RSS of the process until then",
        "tflop_of_parts": parts, "measured": measured, "skipped": skipped}


# ---- models and images ----


def settle_model(config: "BenchmarkConfig", device: torch.device) -> "BenchmarkConfig":
    """Returns the config with the random model that fits the device: full size is a GPU's."""
    shapes, size = config.shapes, config.image_size
    if shapes == "auto":
        shapes = "sd21" if device.type == "cuda" else "tiny"
    side = 512 if shapes == "sd21" or config.weight else TINY_SIDE
    return dataclasses.replace(config, shapes=shapes, image_size=size or side)


def open_setup(
    config: "BenchmarkConfig", source: WeightDir | None, device: torch.device
) -> Setup:
    """Loads or makes the model as the keys say."""
    print(f"making the model: dtype={config.dtype} channels_last={config.channels_last}",
          file=sys.stderr)
    exact_arithmetic(config.threads, config.tf32)
    pipeline = (open_pipeline(config, source, device, config.threads) if source
                else random_pipeline(config, device))
    return Setup(config, pipeline)


def random_pipeline(config: "BenchmarkConfig", device: torch.device) -> DiffewsPipeline:
    """Makes a model with random weights, in the precisions that weights would be loaded in."""
    base, dtype = CHECKOUT / "weight" / "tiny" / "base", torch_dtype(config.dtype)
    tiny = {part: read_json(base / part / "config.json") for part in ("unet", "vae")}
    shapes = tiny if config.shapes == "tiny" else SD21
    torch.manual_seed(0)
    with device:
        unet = DiffewsUNet.from_config(shapes["unet"]).eval().requires_grad_(False)
        vae = AutoencoderKL.from_config(shapes["vae"]).eval().requires_grad_(False)
    torch.nn.Module.to(unet, dtype)  # diffusers' own `to` warns of modules that are not there
    torch.nn.Module.to(vae, vae_dtype(dtype))

    channels = unet.config.cross_attention_dim
    text = {name: torch.randn(1, n, channels) for name, n in (("eval", 2), ("train", 77))}
    folders: dict[Literal["encoder", "decoder"], str | None] = {
        "encoder": config.encoder, "decoder": config.decoder}
    small = {part: load_small_vae(folder, part, vae, config.allow_bin)
             for part, folder in folders.items() if folder is not None}
    pipeline = DiffewsPipeline(unet, vae, text, int(config.image_size or 0), **small)
    pipeline.to(device)
    Speed(config.channels_last, config.compile, config.low_memory).apply(pipeline)
    return pipeline


def random_group(batch: int, shots: int, size: int) -> Group:
    """Makes so many decoded episodes of noise; no image occurs twice."""
    count = batch * shots

    def noise(values: int, *shape: int) -> Tensor:
        return torch.randint(values, (*shape, size, size), dtype=torch.uint8)

    return Group(
        indices=list(range(batch)), query_rgb=noise(256, batch, 3), query_masks=noise(2, batch),
        query_ignore=None, support_rgb=noise(256, count, 3), support_masks=noise(2, count),
        distinct=torch.arange(batch + 2 * count), originals=[])


# ---- what is timed ----


def episode_work(setup: Setup, shots: int) -> Work:
    """Episodes as `evaluate` computes them; a GPU is not waited for between groups."""
    pipeline, size, batch = setup.pipeline, int(setup.config.image_size or 0), setup.config.batch
    device, groups = pipeline._execution_device, 1
    if not isinstance(batch, int):
        batch, _ = auto_batch(
            lambda count: segment_group(pipeline, random_group(count, shots, size), shots),
            device, size)
    group = random_group(batch, shots, size)
    if device.type == "cuda":
        group, groups = group.pin_memory(), AHEAD

    def run() -> None:
        found = (segment_group(pipeline, group, shots) for _ in range(groups))
        for answer in [count_group(segmentation, group, [THRESHOLD]) for segmentation in found]:
            answer.wait()

    parts = setup.parts
    tflop = ((1 + 2 * shots) * parts["vae_encode"] + shots * parts["support_pass"]
             + parts[f"query_pass_{shots}"] + parts["vae_decode"])
    return Work(setup, run, tflop, batch * groups, batch)


@torch.no_grad()
def cached_query_work(setup: Setup) -> Work:
    """Queries of one support set that was encoded before."""
    batch, size = episode_work(setup, 1).batch, int(setup.config.image_size or 0)
    group = random_group(batch, 1, size)
    support, mask = to_pixels(group.support_rgb[:1]), group.support_masks[:1]
    pipeline, parts = setup.pipeline, setup.parts
    bank = pipeline.encode_support_pixels(support, mask, 1)

    @torch.no_grad()
    def segment() -> Tensor:
        pixels = to_pixels(group.query_rgb.to(pipeline._execution_device))
        return pipeline.segment(pixels, bank).masks(*THRESHOLD).cpu()

    tflop = parts["vae_encode"] + parts["query_pass_1"] + parts["vae_decode"]
    return Work(setup, segment, tflop, batch, batch)


def training_work(setup: Setup) -> dict[str, Work]:
    """Training steps of one 1-shot episode: in fp32; on a GPU also with fp16 autocast and TF32."""
    device, size = setup.pipeline.device, int(setup.config.image_size or 0)
    images = torch.randint(256, (4, 1, 3, size, size), dtype=torch.uint8)
    batch = TrainingBatch([], [0], 1, images[0], images[1], images[2:3], images[3:])
    twin = make_twin(setup.pipeline)
    for model in (setup.pipeline, twin):
        model.unet.train().requires_grad_(True).enable_gradient_checkpointing()
    parameters = list(setup.pipeline.unet.parameters())
    optimizer = make_optimizer("adamw", parameters, lr=1e-5, weight_decay=0.01)

    def loss_of(model: DiffewsPipeline, half: bool) -> Tensor:
        step = TrainingStep(model.unet, model.text["train"].to(model.device), model.method)
        draws = [np.random.default_rng(0)]
        shown = encode_batch(batch, model.vae, model.method, draws, noise=None)
        with torch.autocast(device.type, torch.float16, enabled=half):
            return step(shown)

    def work(half: bool) -> Work:
        scaler = torch.amp.GradScaler(device.type, enabled=half)

        def run() -> None:
            scaler.scale(loss_of(setup.pipeline, half)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        dtype = "fp16" if half else "fp32"
        config = dataclasses.replace(setup.config, tf32=half, dtype=dtype)
        return Work(dataclasses.replace(setup, config=config), run, tflop)

    tflop = count_tflop(lambda: loss_of(twin, False).backward())
    setups = {"plain": False, "fast": True} if device.type == "cuda" else {"plain": False}
    return {name: work(half) for name, half in setups.items()}


def missing_memory(parameters: int, device: torch.device) -> str | None:
    """Says why training does not fit into the memory that is free; None if it may."""
    need = TRAINING_BYTES * parameters
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    else:
        return "the free memory is not known on this system"
    if free >= need:
        return None
    return f"{free / 1e9:.1f} GB are free, weights and Adam need {need / 1e9:.1f}"


# ---- timing ----


def time_in_turns(works: dict[str, Work]) -> dict[str, Any]:
    """Runs each work once to warm up, then in turns as often as the keys say.

    Each run follows a large matrix product in the same arithmetic; the fastest of those is what a
    work is held to.

    Returns:
        Medians by the works' names, and, of two works, the ratio of their times.

    """
    config, start = next(iter(works.values())).setup.config, time.perf_counter()
    rows: dict[str, Any] = {
        name: {"all_ms": [], "batch": work.batch, "tflop": work.tflop, "matrix_tflops": 0.0}
        for name, work in works.items()}
    for turn in range(1 + config.repeats):
        for name, work in works.items():
            row, setup, device = rows[name], work.setup, work.setup.pipeline._execution_device
            exact_arithmetic(setup.config.threads, setup.config.tf32)
            speed = matrix_tflops(torch_dtype(setup.config.dtype), device)
            row["matrix_tflops"] = max(row["matrix_tflops"], speed)

            # the peak is this setup's: the weights of the others lie beside it
            weights = {id(w.setup.pipeline): w.setup.bytes_on_gpu for w in works.values()}
            seconds, peak = run_timed(work.run, device)
            row["peak_bytes"] = peak - sum(weights.values()) + weights[id(setup.pipeline)]
            if turn:
                row["all_ms"].append(seconds / work.units * 1e3)
        print(".", end="", flush=True, file=sys.stderr)
        if turn and time.perf_counter() - start > config.seconds:
            break
    print(file=sys.stderr)

    for row in rows.values():
        row["ms"] = median(row["all_ms"])
        row["tflops"] = row["tflop"] / row["ms"] * 1e3
        row["share_of_matrix"] = row["tflops"] / row["matrix_tflops"]
    if len(works) == 2:
        rows["ratio"] = rows["plain"]["ms"] / rows["fast"]["ms"]
    return rows


def run_timed(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Runs once -> seconds and peak memory in bytes: allocated on the GPU, else the process's."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        elapsed, unit = time.perf_counter() - start, 1 if sys.platform == "darwin" else 1024
        return elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated(device)


def matrix_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """TFLOP/s of a large square matrix product, the faster of two."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / 1e12 / min(run_timed(lambda: left @ right, device)[0] for _ in range(2))
