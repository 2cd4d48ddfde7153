"""What the commands beside the way of the data do: weights to convert and hand on, small models.

As in `commands.py`, torch is imported inside the functions, after the checks.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffews.cli.tool_settings import (
    BenchmarkConfig, DistillConfig, ExportConfig, InitBaseConfig, MakeShapesConfig, TinyBaseConfig)
from diffews.errors import InputError
from diffews.images.files import find_masks
from diffews.models.find import (
    DEFAULT_IMAGE_SIZE, PRESENCE, WeightDir, check_base, check_image_size, find_weights,
    hash_weights, vae_factor)
from diffews.models.hub import resolve
from diffews.runtime.files import check_new
from diffews.runtime.locks import one_writer
from diffews.variants import Variant


def run_make_shapes(config: MakeShapesConfig) -> None:
    """Writes the shapes benchmark."""
    from diffews.tools.shapes import make_shapes

    with one_writer(Path(config.out) / "COCO2014", new=True):
        make_shapes(Path(config.out), config.seed)
    print(f"wrote {config.out}/COCO2014")


def run_init_base(config: InitBaseConfig) -> None:
    """Converts Stable Diffusion to a base."""
    from diffews.runtime.device import torch_dtype
    from diffews.tools.init_base import init_base

    with one_writer(Path(config.out), new=True):
        init_base(config.sd, Path(config.out), torch_dtype(config.dtype), config.allow_bin)
    print(f"wrote {config.out}")


def run_export(config: ExportConfig) -> None:
    """Writes weights in another precision, or as graphs."""
    source, out = find_weights(config.weight, config.base), Path(config.out)
    check_new(out)
    if config.format == "diffusers":
        from diffews.runtime.device import torch_dtype
        from diffews.tools.init_base import export_weights

        results = read_runs_of(source, config.runs)
        with one_writer(out, new=True):
            export_weights(
                source, out, torch_dtype(config.dtype or "fp16"), config.include_base, results)
        print(f"wrote {config.out}")
        return

    # a graph is a fixed computation, that of the released variant
    size = source.image_size(config.image_size)
    own, released = Variant.read(source.record.get("variant")).asdict(), Variant().asdict()
    for name in ("interaction", "injection", "supervision", "generation"):
        if own[name] != released[name]:
            raise InputError(
                f"weight={config.weight} was trained with {name}={own[name]}; "
                f"format={config.format} writes {name}={released[name]} alone, use "
                "format=diffusers")
    for package in ("onnx", "onnxscript", "onnxruntime") if config.format == "onnx" else ():
        if find_spec(package) is None:
            raise InputError(f"format=onnx needs the package {package}; "
                             "pip install 'diffews[onnx]'")

    if (source.path / PRESENCE).is_dir():
        print("diffews: graphs have no presence head; that of these weights is left out, and no "
              "mask will be emptied by it", file=sys.stderr)

    from diffews.tools.export import export_graphs

    with one_writer(out, new=True):
        export_graphs(source, out, config.format, size, config.dynamic_size, config.encoder,
                      config.decoder)
    print(f"wrote {config.out}: {', '.join(sorted(file.name for file in out.iterdir()))}")


def read_runs_of(source: WeightDir, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Reads evaluations of a weight dir, verified, for its model card.

    Raises:
        InputError: for a run of other weights.

    """
    from diffews.evaluation.tables import read_run

    results = [read_run(Path(run)).result for run in runs]
    own = hash_weights(source)["weight_sha256"] if runs else ""
    for run, result in zip(runs, results, strict=True):
        if result.get("weight_sha256") != own:
            raise InputError(f"runs={run} is an evaluation of other weights than {source.path}")
    return results


def run_make_tiny_base(config: TinyBaseConfig) -> None:
    """Trains the tiny VAE."""
    out = Path(config.out)
    check_new(out)

    from diffews.tools.tiny import make_tiny_base

    with one_writer(out, new=True):
        make_tiny_base(config, out)
    print(f"wrote {out}")


def run_distill_decoder(config: DistillConfig) -> None:
    """Trains a small decoder, and prints what it saves."""
    out = Path(config.out)
    check_new(out)
    base = check_base(resolve(config.base), f"base={config.base}")
    check_image_size(config.image_size, base)
    if config.masks is not None:
        find_masks(Path(config.masks))

    # the decoder doubles the side from one size to the next, as the VAE's does
    sizes = vae_factor(base).bit_length()
    blocks = config.blocks or [3, 1, *[0] * sizes][:sizes]
    if len(blocks) != sizes:
        raise InputError(
            f"blocks={','.join(map(str, blocks))}: the VAE in {base} has {sizes} sizes; give "
            f"{sizes} numbers")

    from diffews.tools.distill import distill_decoder

    with one_writer(out, new=True):
        theirs, ours = distill_decoder(replace(config, blocks=blocks), base, out)
    print(
        f"wrote {out}: decoding a latent of 16 x 16 takes {ours / 1e6:.1f} million multiply-adds, "
        f"{ours / theirs:.3f} of the VAE's {theirs / 1e6:.1f} million")


def run_benchmark(config: BenchmarkConfig) -> None:
    """Prints a table, and all of it as JSON in the last line."""
    source, size = None, config.image_size or DEFAULT_IMAGE_SIZE
    if config.weight is not None:
        source = find_weights(config.weight, config.base)
        size = source.image_size(config.image_size)
        if Variant.read(source.record.get("variant")) != Variant():
            raise InputError(
                f"weight={config.weight}: made with another variant than the released one, which "
                "alone is measured")

    from diffews.tools.timing import measure_all, timing_table

    results = measure_all(replace(config, image_size=size), source)
    print(timing_table(results))
    print(json.dumps(results))
