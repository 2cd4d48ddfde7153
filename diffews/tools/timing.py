"""Time, memory and arithmetic of episodes and training steps: the plain way beside the fast way, run in turns."""

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
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffews.cli.settings import CHECKOUT, BenchmarkConfig, EvalConfig
from diffews.evaluation.evaluate import Group, ask, count_pixels, decode
from diffews.images.masks import above_threshold
from diffews.images.tensors import to_pixels
from diffews.models.find import WeightSource
from diffews.models.unet import DiffewsUNet
from diffews.models.vae import decode_latents
from diffews.models.weights import load_small_vae
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import (
    auto_batch,
    device_name,
    exact_arithmetic,
    memory_advice,
    pick_device,
    torch_dtype,
    vae_dtype,
)
from diffews.runtime.files import read_json, versions
from diffews.runtime.loading import Speed, open_pipeline, settle_fast
from diffews.training.adapters import make_optimizer
from diffews.training.step import StepInput, TrainingStep, encode_moments

SD21: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 1024}
    | {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "upcast_attention": True},
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    | {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
}
TRAINING_BYTES = 18  # a parameter: weight, gradient, Adam's two moments in fp32, a copy in half precision
AHEAD = 4  # groups in one timed run on a GPU, which computes one while the last is counted


@dataclass(frozen=True)
class Way:
    """One way to compute: its keys, its model, and the same model on torch's meta device, to count in."""

    config: BenchmarkConfig
    pipeline: DiffewsPipeline
    twin: DiffewsPipeline

    @property
    def bytes_on_gpu(self) -> int:
        """Bytes of the weights that lie on a GPU now."""
        parts = (part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module))
        return sum(tensor.nbytes for part in parts for tensor in part.parameters() if tensor.is_cuda)


@dataclass(frozen=True)
class Task:
    """What is timed: `work` does `units` episodes, queries or steps of `tflop` each, `batch` at once."""

    way: Way
    work: Callable[[], object]
    tflop: float
    units: int = 1
    batch: int = 1


def benchmark(config: BenchmarkConfig, source: WeightSource | None) -> dict[str, Any]:
    """Measures, and returns every figure: ms and TFLOP of one episode, query or step; memory in bytes."""
    device, measured, skipped = pick_device(config.device), {}, {}
    fast_keys = dataclasses.replace(settle_fast(config, device), batch=config.batch)
    off: dict[str, Any] = dict.fromkeys(("fast", "channels_last", "tf32", "compile", "low_memory"), False)
    plain_keys = dataclasses.replace(config, **off, dtype="fp32", batch=1, encoder=None, decoder=None)
    with memory_advice():
        ways = {"plain": open_way(plain_keys, source, device), "fast": open_way(fast_keys, source, device)}
        parts, parameters = count_parts(ways["plain"]), ways["plain"].pipeline.unet.num_parameters()
        for shots in (1, 5):
            tasks = {name: episodes(way, shots) for name, way in ways.items()}
            measured[f"{shots}-shot episode"] = measure(tasks)
        measured["cached query"] = measure({"plain": episodes(ways["plain"], 1), "fast": cached_queries(ways["fast"])})
        ways.clear()
        tasks.clear()
        gc.collect()
        if device.type == "cuda":
            low_keys = dataclasses.replace(fast_keys, low_memory=True, batch=1)  # cannot be undone on a pipeline
            measured["1-shot, low_memory"] = measure({"fast": episodes(open_way(low_keys, source, device), 1)})
            gc.collect()
        lack = lacking(parameters, device) if config.train else "train=false"
        if lack:
            skipped["training step"] = lack
        else:
            measured["training step"] = measure(training_steps(open_way(plain_keys, source, device)))
    return {
        "device": device_name(device),
        "cores": os.cpu_count(),
        "model": str(source.path) if source else f"{config.shapes}, random weights",
        "image_size": config.image_size,
        "versions": versions(),
        "keys": {"plain": dataclasses.asdict(plain_keys), "fast": dataclasses.asdict(fast_keys)},
        "peak_memory": "GPU memory of the way" if device.type == "cuda" else "largest RSS of the process until then",
        "tflop_of_parts": parts,
        "measured": measured,
        "skipped": skipped,
    }


# ---- models and pictures ----


def open_way(config: BenchmarkConfig, source: WeightSource | None, device: torch.device) -> Way:
    """Loads or makes the model as the keys say."""
    print(f"making the model: dtype={config.dtype} channels_last={config.channels_last}", file=sys.stderr)
    exact_arithmetic(config.threads, config.tf32)
    loaded = open_pipeline(config, source, device, config.threads) if source else random_pipeline(config, device)
    with torch.device("meta"):
        copies = {
            name: part and type(part).from_config(part.config).eval()
            for name in ("unet", "vae", "encoder", "decoder")
            for part in (getattr(loaded, name),)
        }
    text, keys = {name: tensor.to("meta") for name, tensor in loaded.text.items()}, loaded.config.variant_keys
    twin = DiffewsPipeline(**copies, text=text, image_size=loaded.config.image_size, variant_keys=keys)
    twin._text()  # computed once, and not counted
    return Way(config, loaded, twin)


def random_pipeline(config: BenchmarkConfig, device: torch.device) -> DiffewsPipeline:
    """Makes a model with random weights, in the precisions that `load.build_pipeline` gives its parts."""
    base, dtype = CHECKOUT / "weight" / "tiny" / "base", torch_dtype(config.dtype)
    shapes = SD21 if config.shapes == "sd21" else {p: read_json(base / p / "config.json") for p in ("unet", "vae")}
    torch.manual_seed(0)
    with device:
        unet = DiffewsUNet.from_config(shapes["unet"]).eval().requires_grad_(False)
        vae = AutoencoderKL.from_config(shapes["vae"]).eval().requires_grad_(False)
    torch.nn.Module.to(unet, dtype)  # diffusers' own `to` warns of modules that are not there
    torch.nn.Module.to(vae, vae_dtype(dtype))
    text = {name: torch.randn(1, n, unet.config.cross_attention_dim) for name, n in (("eval", 2), ("train", 77))}
    small = {
        part: load_small_vae(folder, part, vae, config.allow_bin)
        for part, folder in (("encoder", config.encoder), ("decoder", config.decoder))
        if folder is not None
    }
    pipeline = DiffewsPipeline(unet, vae, text, int(config.image_size or 0), **small)
    pipeline.to(device)
    Speed(config.channels_last, config.compile, config.low_memory).apply(pipeline)
    return pipeline


def random_group(batch: int, shots: int, size: int) -> Group:
    """Draws so many decoded episodes; no picture occurs twice."""
    rgb, masks = (functools.partial(torch.randint, high, dtype=torch.uint8) for high in (256, 2))
    queries, supports = rgb(size=(batch, 3, size, size)), rgb(size=(batch * shots, 3, size, size))
    marks = masks(size=(batch, size, size)), masks(size=(batch * shots, size, size))
    numbers = torch.arange(batch + 2 * batch * shots)
    return Group(list(range(batch)), queries, marks[0], None, supports, marks[1], numbers, [])


# ---- what is timed ----


def episodes(way: Way, shots: int) -> Task:
    """Episodes as `evaluate` computes them: encoded, segmented, thresholded, and counted one group behind."""
    pipeline, size, batch = way.pipeline, int(way.config.image_size or 0), way.config.batch
    device, groups, settings = pipeline._execution_device, 1, EvalConfig(shots=shots)
    if not isinstance(batch, int):
        batch = auto_batch(lambda b: decode(pipeline, random_group(b, shots, size), shots), device, size)
    group = random_group(batch, shots, size)
    if device.type == "cuda":
        group, groups = group.pin_memory(), AHEAD

    def work() -> None:
        waiting = ask(pipeline, group, settings)
        for _ in range(groups - 1):
            answer = ask(pipeline, group, settings)
            count_pixels(group, waiting.arrived()[0])
            waiting = answer
        count_pixels(group, waiting.arrived()[0])

    tflop = count(lambda: decode(way.twin, random_group(1, shots, size), shots))
    return Task(way, work, tflop, batch * groups, batch)


@torch.no_grad()
def cached_queries(way: Way) -> Task:
    """Queries of one support set that was encoded before."""
    batch, size = episodes(way, 1).batch, int(way.config.image_size or 0)
    group = random_group(batch, 1, size)
    bank, no_bank = (
        model.encode_support_tensors(to_pixels(group.support_rgb[:1]), group.support_masks[:1], 1)
        for model in (way.pipeline, way.twin)
    )

    @torch.no_grad()
    def segment(model: DiffewsPipeline, rgb: Tensor, bank: Any) -> Tensor:
        pixels = to_pixels(rgb.to(model._execution_device))
        decoded = model.recover(model.decode_masks(model.encode_images(pixels), bank), pixels)
        return above_threshold(decoded, 0.25, "reference")

    tflop = count(lambda: segment(way.twin, group.query_rgb[:1], no_bank))
    return Task(way, lambda: segment(way.pipeline, group.query_rgb, bank).cpu(), tflop, batch, batch)


def training_steps(way: Way) -> dict[str, Task]:
    """Training steps of one 1-shot episode: in fp32, and on a GPU also with the recipe's fp16 autocast and TF32."""
    device, group = way.pipeline.device, random_group(2, 1, int(way.config.image_size or 0))
    pictures = torch.cat([group.query_rgb, group.support_rgb])  # query, its mask, support, its mask
    for model in (way.pipeline, way.twin):
        model.unet.train().requires_grad_(True).enable_gradient_checkpointing()
    parameters = list(way.pipeline.unet.parameters())
    optimizer = make_optimizer("adamw", parameters, lr=1e-5, weight_decay=0.01)

    def loss_of(model: DiffewsPipeline, half: bool) -> Tensor:
        step = TrainingStep(model.unet, model.text["train"].to(model.device), model.method)
        latents = torch.stack([encode_moments(model.vae, rgb)[0] for rgb in pictures])
        latents = latents * model.vae.config.scaling_factor
        pair = model.method.generation.training_pair(latents[:1], latents[1:2], [np.random.default_rng(0)])
        with torch.autocast(device.type, torch.float16, enabled=half):
            return step(StepInput(*pair, images=latents[2:3], drawn=latents[3:], shots=1))

    def task(half: bool) -> Task:
        scaler = torch.amp.GradScaler(device.type, enabled=half)

        def work() -> None:
            scaler.scale(loss_of(way.pipeline, half)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        config = dataclasses.replace(way.config, tf32=half, dtype="fp16" if half else "fp32")
        return Task(dataclasses.replace(way, config=config), work, tflop)

    tflop = count(lambda: loss_of(way.twin, False).backward())
    return {"plain": task(False), "fast": task(True)} if device.type == "cuda" else {"plain": task(False)}


def lacking(parameters: int, device: torch.device) -> str | None:
    """Says why training does not fit into the memory that is free; None if it may."""
    need = TRAINING_BYTES * parameters
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    else:
        return "the free memory is not known on this system"
    return f"{free / 1e9:.1f} GB are free, weights and Adam need {need / 1e9:.1f}" if free < need else None


# ---- timing and counting ----


def measure(tasks: dict[str, Task]) -> dict[str, Any]:
    """Runs the tasks in turns, each once to warm up, as often as the keys say; gives medians and their ratio.

    Each run follows a large matrix product in the same arithmetic; the fastest of those is what a task is held to.
    """
    keys, start = next(iter(tasks.values())).way.config, time.perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    matrix, peaks = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0)
    for turn in range(1 + keys.repeats):
        for name, task in tasks.items():
            config, device = task.way.config, task.way.pipeline._execution_device
            exact_arithmetic(config.threads, config.tf32)
            matrix[name] = max(matrix[name], matrix_tflops(torch_dtype(config.dtype), device))
            others = {id(other.way.pipeline): other.way.bytes_on_gpu for other in tasks.values()}
            elapsed, peak = timed(task.work, device)
            peaks[name] = peak - sum(others.values()) + others[id(task.way.pipeline)]
            seconds[name] += [elapsed / task.units] if turn else []
        print(".", end="", flush=True, file=sys.stderr)
        if turn and time.perf_counter() - start > keys.seconds:
            break
    print(file=sys.stderr)
    figures: dict[str, Any] = {}
    for name, task in tasks.items():
        reached = task.tflop / median(seconds[name])
        figures[name] = {"ms": median(seconds[name]) * 1e3, "all_ms": [each * 1e3 for each in seconds[name]]}
        figures[name] |= {"batch": task.batch, "tflop": task.tflop, "tflops": reached, "matrix_tflops": matrix[name]}
        figures[name] |= {"share_of_matrix": reached / matrix[name], "peak_bytes": peaks[name]}
    if len(tasks) == 2:
        figures["ratio"] = figures["plain"]["ms"] / figures["fast"]["ms"]
    return figures


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Runs once -> seconds, and the peak memory in bytes: on a GPU what was allocated, else the process's RSS."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        elapsed, unit = time.perf_counter() - start, 1 if sys.platform == "darwin" else 1024
        return elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated(device)


def matrix_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """TFLOP/s of a large square matrix product, the faster of two."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return 2 * side**3 / 1e12 / min(timed(lambda: left @ right, device)[0] for _ in range(2))


def count(work: Callable[[], object]) -> float:
    """TFLOP of what runs; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def count_parts(way: Way) -> dict[str, float]:
    """TFLOP of one picture in each part; `query_pass_N` reads N supports, `support_pass` none, and ends early."""
    twin, size = way.twin, int(way.config.image_size or 0)
    pixels, masks = torch.zeros(5, 3, size, size, device="meta"), torch.zeros(5, size, size, device="meta")
    latents = twin.encode_images(pixels[:1])
    encoding, decoding = (
        count(lambda: twin.encode_images(pixels[:1])),
        count(lambda: decode_latents(twin.vae, latents)),
    )
    supports = count(lambda: twin.encode_support_tensors(pixels[:1], masks[:1], 1)) - 2 * encoding
    parts = {"vae_encode": encoding, "vae_decode": decoding, "support_pass": supports}
    for shots in (1, 5):
        bank = twin.encode_support_tensors(pixels[:shots], masks[:shots], shots)
        parts[f"query_pass_{shots}"] = count(functools.partial(twin.decode_masks, latents, bank)) - decoding
    return parts


def table(report: dict[str, Any]) -> str:
    """Lays the figures out for people."""
    lines = [f"{report['model']}, {report['image_size']} px, on {report['device']} ({report['cores']} CPU cores)"]
    for name, keys in report["keys"].items():
        shown = ("dtype", "channels_last", "tf32", "compile", "low_memory", "encoder", "decoder", "threads")
        lines.append(f"{name}: " + " ".join(f"{key}={keys[key]}" for key in shown))
    lines.append("TFLOP: " + ", ".join(f"{name} {tflop:.4g}" for name, tflop in report["tflop_of_parts"].items()))
    lines.append(f"\n{'':20}{'':6}{'batch':>6}{'ms':>11}{'TFLOP':>9}{'TFLOP/s':>9}{'of matrix':>17}{'peak GiB':>10}")
    for title, figures in report["measured"].items():
        for name, row in figures.items():
            if name == "ratio":
                lines.append(f"{'':20}{row:.2f} = {figures['plain']['ms']:.2f} ms / {figures['fast']['ms']:.2f} ms")
                continue
            share = f"{row['share_of_matrix']:.1%} of {row['matrix_tflops']:.3f}"
            lines.append(
                f"{title:20}{name:6}{row['batch']:>6}{row['ms']:>11.2f}{row['tflop']:>9.4f}{row['tflops']:>9.4f}"
                f"{share:>17}{row['peak_bytes'] / 2**30:>10.2f}"
            )
    lines += [f"{title}: not measured, {reason}" for title, reason in report["skipped"].items()]
    return "\n".join([*lines, f"peak: {report['peak_memory']}"])
