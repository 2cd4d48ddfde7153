"""Times ONNX graphs against torch, exact and fast, in turns; counts pixels that differ.

python scripts/measure_onnx.py WEIGHT_DIR GRAPHS [base=DIR] [size=64] [threads=1] [seconds=30]
python scripts/measure_onnx.py WEIGHT_DIR GRAPHS [base=DIR] start=3
python scripts/measure_onnx.py WEIGHT_DIR GRAPHS data=DIR episodes=600

Times are of the wall and of the CPU; on a machine that does other things, those of the CPU count.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from diffews import load_pipeline
from diffews.data import load_benchmark
from diffews.onnx import OnnxPipeline
from diffews.runtime.device import CPU_PIXELS, exact_arithmetic
from diffews.runtime.loading import Speed


def measure(settings: dict[str, str], weight: str, graphs: str) -> None:
    """Prints milliseconds of a 1-shot episode, and of a query whose support is encoded."""
    size, threads = int(settings.get("size", 64)), int(settings.get("threads", 1))
    exact_arithmetic(threads)
    exact, fast = (load_pipeline(weight, settings.get("base"), presence="off") for _ in range(2))
    Speed(channels_last=True).apply(fast)
    ways = {"torch exact": exact, "torch fast": fast, "onnx": OnnxPipeline(graphs, None, threads)}

    # pictures at the model's size: what is timed is the model
    draw = np.random.default_rng(0)
    support, query = draw.integers(0, 256, (2, size, size, 3), np.uint8)
    mask = np.zeros((size, size), bool)
    mask[size // 4 : size // 2, size // 4 : size // 2] = True
    batch = max(1, CPU_PIXELS // size**2)

    calls: dict[str, Callable[[], Any]] = {}
    for name, pipe in ways.items():
        many = batch if name == "torch fast" else 1
        bank = pipe.encode_support(support, mask, size)
        calls[f"{name}, episode"] = lambda p=pipe, n=many: p(
            [query] * n,
            p.encode_support([[support]] * n, [[mask]] * n, size),
            image_size=size,
            batch=n,
        )
        calls[f"{name}, cached query"] = lambda p=pipe, b=bank, n=many: p(
            [query] * n, b, image_size=size, batch=n
        )

    # in turns, so that what else runs here hits all alike
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.monotonic() + float(settings.get("seconds", 30))
    while time.monotonic() < end or len(times["onnx, cached query"]) < 3:
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            count = batch if name.startswith("torch fast") else 1
            spent = time.perf_counter() - wall, time.process_time() - cpu
            times[name].append((spent[0] * 1000 / count, spent[1] * 1000 / count))
    for name, found in times.items():
        walls, cpus = zip(*found, strict=True)
        print(
            f"{name:<28} {median(walls):8.1f} ms, CPU {median(cpus):8.1f} ms "
            f"(least {min(cpus):.1f}), {len(found)} times"
        )


def measure_start(settings: dict[str, str], weight: str, graphs: str) -> None:
    """Prints seconds and memory of a process that opens a model and segments one picture."""
    head = "import numpy as np\n"
    body = (
        "x = np.zeros((64, 64, 3), np.uint8); m = np.zeros((64, 64), bool); m[9:40, 9:40] = True\n"
        "p(x, p.encode_support(x, m))\n"
        "import re; status = open('/proc/self/status').read()\n"  # of this process alone
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024, 'MiB at most', end=', ')\n"
    )
    of_torch = f"{weight!r}, {settings.get('base')!r}, presence='off'"
    ways = {
        "torch": f"from diffews import load_pipeline\np = load_pipeline({of_torch})\n",
        "onnx": f"from diffews.onnx import OnnxPipeline\np = OnnxPipeline({graphs!r}, threads=1)\n",
    }
    for _ in range(int(settings["start"])):
        for name, opened in ways.items():
            begin = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", head + opened + body])
            _, status, used = os.wait4(process.pid, 0)
            assert status == 0, name
            print(
                f"{name}: {time.perf_counter() - begin:.2f} s, CPU "
                f"{used.ru_utime + used.ru_stime:.2f} s"
            )


def count_flips(settings: dict[str, str], weight: str, graphs: str) -> None:
    """Prints how many pixels of the test episodes' masks differ between the two."""
    exact_arithmetic(1)
    torch_pipe = load_pipeline(weight, settings.get("base"), presence="off")
    onnx_pipe = OnnxPipeline(graphs, None, 1)
    size, fold = torch_pipe.config.image_size, int(settings.get("fold", 0))
    dataset = load_benchmark("coco20i", settings["data"], fold, image_size=size)
    total, differ, most, wrong = 0, 0, 0, 0
    for index in range(int(settings["episodes"])):
        e = dataset[index]
        pictures, masks, query = e.support_images, e.support_masks, e.query_image[None]
        bank = torch_pipe.encode_support_pixels(
            torch.from_numpy(pictures), torch.from_numpy(masks), len(masks)
        )
        want = torch_pipe.segment(torch.from_numpy(query), bank)
        want_mask = want.masks(0.25, "reference")[0].numpy()

        latents = onnx_pipe.encode_images(query)
        kept = onnx_pipe.encode_support_pixels(pictures, masks, len(masks))
        rgb, _ = onnx_pipe.segment(latents, kept)
        mask = rgb[0].mean(0) > 0.25 * rgb[0].max()
        flips = int((mask != want_mask).sum())
        total, differ, most = total + mask.size, differ + flips, max(most, flips)
        wrong += flips > 0
    print(f"{differ} of {total} pixels differ, at most {most} of an episode, in {wrong} episodes")


if __name__ == "__main__":
    weight, graphs, *words = sys.argv[1:]
    settings = dict(word.split("=", 1) for word in words)
    with torch.no_grad():
        if "start" in settings:
            measure_start(settings, weight, graphs)
        elif "episodes" in settings:
            count_flips(settings, weight, graphs)
        else:
            measure(settings, weight, graphs)
