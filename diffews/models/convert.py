"""Turns a plain Stable Diffusion folder into a base."""

import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from diffews.errors import InputError
from diffews.files import new_folder
from diffews.models.unet import DiffewsUNet
from diffews.models.weights import check_base, encode_empty_prompt, load_module, load_vae, read_json, resolve
from diffews.pipeline import DiffewsPipeline


def init_base(sd: str, out: Path, dtype: torch.dtype, allow_bin: bool = False) -> None:
    """Writes a base: the UNet with `conv_in_ref`, the VAE, the empty prompt's embedding, text encoder and tokenizer.

    sd: folder or hub id of Stable Diffusion 1.x or 2.x. The folder `out` appears when it is complete.
    """
    if out.exists():
        raise InputError(f"out={out} exists; remove it or give another")
    source = check_base(resolve(sd, ("*.json", "unet/*", "vae/*", "text*", "tokenizer/*")), f"sd={sd}")
    if not (source / "unet" / "config.json").is_file():
        raise InputError(f"sd={sd}: no unet/config.json in it")
    is_base = "in_channels_ref" in read_json(source / "unet" / "config.json")
    unet = load_module(DiffewsUNet if is_base else UNet2DConditionModel, source / "unet", dtype, allow_bin)
    if not is_base:
        unet = DiffewsUNet.from_stable_diffusion(unet)
    pipeline = DiffewsPipeline(unet, load_vae(source, dtype, allow_bin), encode_empty_prompt(source, allow_bin))
    with new_folder(out) as folder:
        pipeline.save_pretrained(folder)
        for part in ("text_encoder", "tokenizer"):  # the reference's own code reads these
            shutil.copytree(source / part, folder / part)
