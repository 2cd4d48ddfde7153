"""What is refused before weights are read: configs that build nothing, tensors that are none."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging
from safetensors import safe_open

from diffews.errors import InputError, refuse, shorten
from diffews.models.find import weight_files
from diffews.runtime.files import read_json

MOST_LAYERS = 100  # of one kind; Stable Diffusion's CLIP has 24
MOST_SLACK = 1 << 24  # values that a config may ask for beyond those of its weights
MOST_VALUES = 10**10  # of a network that starts from nothing
FLOATS = ("F", "BF")  # how the types of floating point begin in a safetensors header


def check_config(
        cls: Any, folder: Path, with_weights: bool = True, variant: str | None = None) -> None:
    """Builds a module from config.json without memory, and compares it with its weights' headers.

    cls: a module of diffusers or transformers.

    Raises:
        InputError: for a config that does not build one, or asks for much more than the weights
            hold; for tensors of integer, bool or complex type.

    """
    file = folder / "config.json"
    config = read_json(file)
    for key, count in _sizes(config):
        if not isinstance(count, int) or not 0 <= count <= MOST_LAYERS:
            raise InputError(f"{file}: {key} is {shorten(count)}; at most {MOST_LAYERS} are built")

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with refuse(f"{file} does not build a {cls.__name__}"), torch.device("meta"):
            is_clip = hasattr(cls, "config_class") and cls.config_class is not None
            module = cls(cls.config_class(**config)) if is_clip else cls.from_config(config)
    except InputError as error:
        raise error if str(file) in str(error) else InputError(f"{file}: {error}") from None
    finally:
        logging.set_verbosity(verbosity)
    if isinstance(module, AutoencoderKL | AutoencoderTiny):
        check_vae(module, file)

    asked, held = sum(p.numel() for p in module.parameters()), MOST_VALUES
    if with_weights:
        held = 2 * _check_headers(folder, variant) + MOST_SLACK
    if asked > held:
        raise InputError(f"{file} asks for {asked:,} values, which its weights do not hold"
                         if with_weights else f"{file} asks for {asked:,} values, too many")


def check_vae(vae: AutoencoderKL | AutoencoderTiny, file: Path | str) -> None:
    """Raises InputError for a VAE that does not code RGB, or whose latents have no scale."""
    scale, channels = vae.config.scaling_factor, (vae.config.in_channels, vae.config.out_channels)
    if type(scale) not in (int, float) or not math.isfinite(scale) or scale <= 0:
        raise InputError(f"{file}: scaling_factor is {scale!r}, not a number above 0")
    if channels != (3, 3):
        raise InputError(f"{file}: in_channels, out_channels are {channels}; RGB has 3")


def _sizes(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what a config says of how many: the lengths of its lists, its numbers of layers."""
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list):
            yield f"the length of {key}", len(value)
        if "layers" in key or "blocks" in key:
            flat = (v for part in values for v in (part if isinstance(part, list) else [part]))
            yield from ((key, v) for v in flat if isinstance(v, int | float))


def _check_headers(folder: Path, variant: str | None) -> int:
    """Reads the headers of a module's safetensors files -> how many values they hold."""
    total = 0
    for file in weight_files(folder, variant):
        if file.suffix != ".safetensors":
            continue
        with refuse(f"{file} does not load"), safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                header = opened.get_slice(name)
                if not header.get_dtype().startswith(FLOATS) and not name.endswith("position_ids"):
                    raise InputError(
                        f"{file}: {name} is of type {header.get_dtype()}, not of floating point")
                total += math.prod(header.get_shape())
    if total == 0:
        return MOST_VALUES  # a pickle, whose sizes are known when it is read
    return total
