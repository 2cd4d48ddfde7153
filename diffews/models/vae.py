"""A small VAE (diffusers' AutoencoderTiny) in place of the encoder or the decoder of the base's VAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffews.errors import InputError
from diffews.models.find import RECORD, latent_factor, resolve, weight_files
from diffews.models.weights import load_module
from diffews.runtime.files import hash_files, read_json

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny
    from torch import Tensor

SMALL_FILES = ("config.json", RECORD, "diffusion_pytorch_model*")  # what is fetched from the hub


def encode_latents(vae: "AutoencoderKL | AutoencoderTiny", images: "Tensor") -> "Tensor":
    """Encodes RGB [B, 3, H, W] in [-1, 1] -> scaled latents [B, 4, H/f, W/f]; of AutoencoderKL the posterior's mean.

    AutoencoderTiny has no posterior, and learnt latents that are scaled already: its factor is 1.
    """
    encoded = vae.encode(images)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return latents * vae.config.scaling_factor


def decode_latents(vae: "AutoencoderKL | AutoencoderTiny", latents: "Tensor") -> "Tensor":
    """Decodes scaled latents [B, 4, H/f, W/f] -> RGB [B, 3, H, W] in about [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample


def load_small_vae(
    folder: Path | str,
    part: Literal["encoder", "decoder"],
    vae_config: Mapping[str, Any],
    dtype: "torch.dtype",
    allow_bin: bool = False,
    vae_sha256: str | None = None,
) -> "AutoencoderTiny":
    """Loads an AutoencoderTiny of which one part stands in for the VAE's, for inference.

    folder: folder or hub id with config.json and the weights in the folder itself.
    vae_config: of the VAE that is stood in for. vae_sha256: its `hash_vae`, checked where the folder records one.

    Raises:
        InputError: for a folder that is missing or damaged, or does not fit the VAE.

    """
    try:
        found = resolve(str(folder), SMALL_FILES)
        check_small_vae(found, part, vae_config, vae_sha256)
        from diffusers import AutoencoderTiny

        return load_module(AutoencoderTiny, found, dtype, allow_bin)
    except InputError as error:
        raise InputError(f"{part}={folder}: {error}") from error


def check_small_vae(folder: Path, part: str, vae_config: Mapping[str, Any], vae_sha256: str | None) -> None:
    """Raises InputError unless this part of the folder's AutoencoderTiny has the VAE's latents; reads no weights."""
    if not folder.is_dir():
        raise InputError("no such folder; give a small VAE (AutoencoderTiny), or leave the key out to use the base's")
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderTiny":
        raise InputError(f"_class_name in config.json is {config.get('_class_name')!r}; give an AutoencoderTiny")
    stages, step = len(config.get(f"num_{part}_blocks", (0,) * 4)), config.get("upsampling_scaling_factor", 2)
    factor = (step if part == "decoder" else 2) ** (stages - 1)
    wanted = (vae_config["latent_channels"], latent_factor(vae_config["block_out_channels"]))
    for what, has, wants in zip(
        ("latent channels", "pixels a latent"), (config.get("latent_channels", 4), factor), wanted, strict=True
    ):
        if has != wants:
            raise InputError(f"it has {has} {what}, the base's VAE has {wants}; give one that was made for this VAE")
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if part == "encoder" and record.get("part") == "decoder":
        raise InputError("only its decoder was trained (`diffews distill-decoder`); use it as decoder=")
    if vae_sha256 and record.get("vae_sha256", vae_sha256) != vae_sha256:
        raise InputError("it was distilled from another VAE than the base's; make one with `diffews distill-decoder`")


def hash_small_vae(folder: str) -> str:
    """Returns the sha256 of a small VAE's weights and config; folder or hub id."""
    found = resolve(folder, SMALL_FILES)
    return hash_files([*weight_files(found), found / "config.json"])
