"""From weight dirs to pipelines."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from diffews.cli.settings import ModelKeys
from diffews.errors import InputError
from diffews.models.find import RECORD, WeightSource, find_weights, hash_vae
from diffews.models.vae import load_small_vae
from diffews.models.weights import load_text, load_unet, load_vae
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.device import (
    Speed,
    all_cores,
    exact_arithmetic,
    half_precision,
    memory_advice,
    pick_device,
    torch_dtype,
    vae_dtype,
)
from diffews.variants import Variant

ModelKeysT = TypeVar("ModelKeysT", bound=ModelKeys)


def load_pipeline(
    weight: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    allow_bin: bool = False,
) -> DiffewsPipeline:
    """Loads a weight dir (DIR/unet/unet, DIR/unet or DIR) with its base.

    base: folder or hub id with vae/ and text.safetensors or text_encoder/ + tokenizer/; by default as recorded in the
    weight dir, else a folder beside it. Half precision is the UNet's; the VAE stays in float32 under float16, where
    Stable Diffusion's overflows. Pickled `.bin` weights are read (weights only) when `allow_bin` says so.
    """
    return build_pipeline(find_weights(weight, base), dtype, device, allow_bin)


def build_pipeline(
    source: WeightSource,
    dtype: torch.dtype,
    device: torch.device | str,
    allow_bin: bool = False,
    encoder: str | None = None,
    decoder: str | None = None,
    speed: Speed | None = None,
) -> DiffewsPipeline:
    """Loads the weights that `find_weights` found; see `load_pipeline`.

    encoder, decoder: folders of small VAEs that replace the VAE's halves.
    """
    unet = load_unet(source.unet, dtype, allow_bin)
    vae = load_vae(source.base, vae_dtype(dtype), allow_bin)
    parts: list[tuple[Literal["encoder", "decoder"], str | None]] = [("encoder", encoder), ("decoder", decoder)]
    small = {
        part: load_small_vae(folder, part, vae.config, vae.dtype, allow_bin, hash_vae(source.base))
        for part, folder in parts
        if folder is not None
    }
    text, keys = load_text(source.base, allow_bin), source.record.get("variant")
    try:
        Variant.read(keys)
    except InputError as error:
        raise InputError(f"{source.path / RECORD}: {error}") from None
    pipeline = DiffewsPipeline(unet, vae, text, source.image_size(), **small, variant_keys=keys)
    pipeline.to(pick_device(str(device)))
    speed_up(pipeline, speed or Speed())
    return pipeline


def settle_fast(config: ModelKeysT, device: torch.device) -> ModelKeysT:
    """Returns the config with `fast` replaced by the keys that it stands for on this device."""
    if not config.fast:
        return config
    is_gpu = device.type == "cuda"
    chosen: dict[str, Any] = {"fast": False, "channels_last": True, "tf32": is_gpu}
    if is_gpu and config.dtype == "fp32":
        chosen["dtype"] = half_precision(device)
    if not is_gpu and getattr(config, "threads", None) == 1:
        chosen["threads"] = all_cores()
    if getattr(config, "batch", None) == 1:
        chosen["batch"] = "auto"
    return dataclasses.replace(config, **chosen)


@memory_advice()
def open_pipeline(config: ModelKeys, source: WeightSource, device: torch.device, threads: int) -> DiffewsPipeline:
    """Loads the weights as a command's keys say, and sets the arithmetic of this process."""
    exact_arithmetic(threads, config.tf32)
    speed = Speed(config.channels_last, config.compile, config.low_memory)
    pipeline = build_pipeline(
        source, torch_dtype(config.dtype), device, config.allow_bin, config.encoder, config.decoder, speed
    )
    if config.ensemble > 1 and not pipeline.method.generation.doubles_input:
        raise InputError("ensemble= averages answers to different noise; these weights start from none, leave it out")
    pipeline.denoising_steps, pipeline.ensemble = config.denoising_steps, config.ensemble
    return pipeline


def speed_up(pipeline: DiffewsPipeline, speed: Speed) -> None:
    """Applies what changes speed or memory, and rounding with it; see `Speed`."""
    vaes = [vae for vae in (pipeline.vae, pipeline.encoder, pipeline.decoder) if vae is not None]
    if speed.channels_last:
        for module in (pipeline.unet, *vaes):
            module.to(memory_format=torch.channels_last)
    if speed.low_memory:
        pipeline.vae.enable_slicing()
        if pipeline.device.type == "cuda":
            pipeline.enable_model_cpu_offload(device=pipeline.device)
    if speed.compile:
        for module in (pipeline.unet, *(half for vae in vaes for half in (vae.encoder, vae.decoder))):
            module.compile()
