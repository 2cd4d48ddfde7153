"""What a training run starts from, and what is recorded of it beside the weights."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffews.models.find import WeightDir, refuse_pickles, weight_files
from diffews.models.unet import DiffewsUNet
from diffews.models.weights import continue_unet, start_unet
from diffews.runtime.files import versions
from diffews.training.pixel_loss import learned_threshold
from diffews.variants import Method, Variant

if TYPE_CHECKING:
    from diffews.cli.training_settings import TrainConfig

LINEAGE = ("benchmark", "fold", "config", "init")  # of a record: on which classes it was trained


def load_start(
    config: "TrainConfig", base: Path, init: WeightDir | None, method: Method
) -> DiffewsUNet:
    """Loads the UNet that training starts from, in float32: the base's, or trained weights.

    Raises:
        InputError: for weights that do not load, or pickles that were not allowed.

    """
    reads_pixels = method.interaction.reads_pixels
    if not config.allow_bin:
        encoders = [base / "image_encoder"] if reads_pixels else []
        refuse_pickles(base / "unet" if init is None else init.unet, *encoders)
    if init is not None:
        return continue_unet(init.unet, base, torch.float32)
    return start_unet(base, torch.float32, config.seed, reads_pixels)


def start_files(base: Path, init: WeightDir | None, method: Method) -> list[Path]:
    """Returns the files of what `load_start` loads, for a run's identity."""
    unet = base / "unet"
    files = [*unet.glob("*.safetensors"), *unet.glob("*.bin")] or [unet / "config.json"]
    if init is not None:
        files = weight_files(init.unet)
    if method.interaction.reads_pixels:
        files += (base / "image_encoder").glob("*.*")
    return sorted(files)


def make_record(
    config: "TrainConfig", variant: Variant, init: WeightDir | None, step: int
) -> dict[str, Any]:
    """What is kept beside weights of so many steps.

    With trained weights as a start, also on which classes those were trained, and theirs.
    """
    named = ("image_size", "benchmark", "fold", "shots", "steps")
    before = {} if init is None else {
        "init": {name: init.record[name] for name in LINEAGE if name in init.record}}
    return {
        "base": str(config.base), "variant": variant.asdict(),
        **{name: getattr(config, name) for name in named},
        "threshold": learned_threshold(config, step), **before,
        "config": dataclasses.asdict(config), "versions": versions()}
