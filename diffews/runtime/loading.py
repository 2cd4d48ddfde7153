"""From weight dirs to pipelines: `load_pipeline` for people, `open_pipeline` for commands."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from diffews.errors import InputError
from diffews.models.find import (
    RECORD, WeightDir, base_folders, find_weights, hash_vae, refuse_pickles)
from diffews.models.presence import open_presence
from diffews.models.weights import load_small_vae, load_text, load_unet, load_vae
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import (
    all_cores, exact_arithmetic, half_precision, memory_advice, pick_device, torch_dtype, vae_dtype)
from diffews.runtime.files import read_json
from diffews.variants import Variant

if TYPE_CHECKING:
    from diffews.cli.settings import ModelKeys

ModelKeysT = TypeVar("ModelKeysT", bound="ModelKeys")


@dataclasses.dataclass(frozen=True)
class Speed:
    """What trades the exact path for speed or memory.

    Each of these changes rounding, and may flip pixels that sit on the threshold.
    """

    channels_last: bool = False  # the memory layout that convolutions are fastest in
    compile: bool = False  # torch.compile of UNet and VAE: minutes at the start
    low_memory: bool = False  # parts wait in main memory, the VAE takes one picture at a time

    def apply(self, pipeline: DiffewsPipeline) -> None:
        """Applies the choices to a pipeline that is on its device; they cannot be undone."""
        vaes = [v for v in (pipeline.vae, pipeline.encoder, pipeline.decoder) if v is not None]
        if self.channels_last:
            for module in (pipeline.unet, *vaes):
                module.to(memory_format=torch.channels_last)

        if self.low_memory:
            pipeline.vae.enable_slicing()
            if pipeline.device.type == "cuda":
                pipeline.enable_model_cpu_offload(device=pipeline.device)

        if self.compile:
            halves = (half for vae in vaes for half in (vae.encoder, vae.decoder))
            for module in (pipeline.unet, *halves):
                module.compile()


def load_pipeline(
        weight: str | Path, base: str | Path | None = None, dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu", allow_bin: bool = False,
        presence: str = "auto") -> DiffewsPipeline:
    """Loads a weight dir (DIR/unet/unet, DIR/unet or DIR) with its base.

    base: folder or hub:owner/name with vae/ and text.safetensors or text_encoder/ + tokenizer/;
    by default as recorded in the weight dir, else a folder beside it.
    dtype: of the UNet. The VAE stays in float32 under float16, where Stable Diffusion's overflows.
    allow_bin: whether pickled `.bin` weights may be read (weights only).
    presence: who says whether the class is in a query at all: auto, the weight dir's head if it
    has one; off; cosine, which needs no head; or a head of the kind full or fast.

    Raises:
        InputError: for weights that are missing, damaged, or do not belong together.

    """
    return build_pipeline(
        find_weights(weight, base), dtype, device, allow_bin, presence=presence)


@memory_advice()
def open_pipeline(
        config: "ModelKeys", source: WeightDir, device: torch.device,
        threads: int) -> DiffewsPipeline:
    """Loads the weights as a command's keys say, and sets the arithmetic of this process."""
    exact_arithmetic(threads, config.tf32)
    pipeline = build_pipeline(
        source, torch_dtype(config.dtype), device, config.allow_bin, config.encoder, config.decoder,
        config.presence_kind())
    Speed(config.channels_last, config.compile, config.low_memory).apply(pipeline)

    if config.ensemble > 1 and not pipeline.method.generation.doubles_input:
        raise InputError(
            "ensemble= averages answers to different noise; these weights start from none, "
            "leave it out")
    pipeline.denoising_steps, pipeline.ensemble = config.denoising_steps, config.ensemble
    return pipeline


def build_pipeline(
        source: WeightDir, dtype: torch.dtype, device: torch.device | str,
        allow_bin: bool = False, encoder: str | None = None,
        decoder: str | None = None, presence: str = "off") -> DiffewsPipeline:
    """Loads the weights that `find_weights` found; see `load_pipeline`.

    encoder, decoder: folders of small VAEs that replace the VAE's halves.
    """
    if not allow_bin:
        refuse_pickles(source.unet, *base_folders(source.base))

    # the paper's choices that these weights were trained with
    variant_keys = source.record.get("variant")
    try:
        variant = Variant.read(variant_keys)
    except InputError as error:
        raise InputError(f"{source.path / RECORD}: {error}") from None
    reads_pixels = variant.build().interaction.reads_pixels
    name = read_json(source.unet / "config.json").get("_class_name")
    if reads_pixels and name != "TokenUNet":
        raise InputError(
            f"{source.path / RECORD}: variant says interaction={variant.interaction}, which needs "
            f"a TokenUNet; {source.unet / 'config.json'} is of a {name}")

    size = source.image_size()

    # the largest part last: what is wrong with the others is said without waiting for it
    vae = load_vae(source.base, vae_dtype(dtype))
    small = {
        part: load_small_vae(folder, part, vae, allow_bin, hash_vae(source.base))
        for part, folder in (("encoder", encoder), ("decoder", decoder)) if folder is not None}
    text, unet = load_text(source.base), load_unet(source.unet, dtype)
    pipeline = DiffewsPipeline(
        unet, vae, text, size, **small, variant_keys=variant_keys, threshold=source.threshold())
    pipeline.presence = open_presence(source, presence, unet)
    unet.training_record = source.record
    return pipeline.to(pick_device(str(device)))


def settle_fast(config: ModelKeysT, device: torch.device) -> ModelKeysT:
    """Returns the config with `fast` replaced by the keys that it stands for on this device.

    What was asked for stays: on a GPU a dtype other than fp32, on a CPU a number of threads, and
    everywhere a batch other than 1.
    """
    if not config.fast:
        return config
    is_gpu = device.type == "cuda"
    # channels_last was measured to pay on a CPU, and nowhere else so far
    chosen: dict[str, Any] = {
        "fast": False, "channels_last": config.channels_last or not is_gpu, "tf32": is_gpu}

    if is_gpu and config.dtype == "fp32":
        chosen["dtype"] = half_precision(device)
    if not is_gpu and getattr(config, "threads", None) == 1:
        chosen["threads"] = all_cores()
    if getattr(config, "batch", None) == 1:
        chosen["batch"] = "auto"
    return dataclasses.replace(config, **chosen)
