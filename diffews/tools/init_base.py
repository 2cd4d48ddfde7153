"""Turns a plain Stable Diffusion folder into a base, and trained weights into a folder to hand on."""

import shutil
from pathlib import Path

import torch

from diffews.models.find import (
    BASE_FILES,
    WeightSource,
    check_base,
    resolve,
    weight_files,
    write_record,
)
from diffews.models.weights import encode_empty_prompt, load_unet, load_vae, start_unet
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.files import check_new, new_folder


def init_base(sd: str, out: Path, dtype: torch.dtype, allow_bin: bool = False) -> None:
    """Writes a base: the UNet with `conv_in_ref`, the VAE, the empty prompt's embedding, text encoder and tokenizer.

    sd: folder or hub id of Stable Diffusion 1.x or 2.x. The folder `out` appears when it is complete.
    """
    check_new(out)
    source = check_base(resolve(sd, BASE_FILES), f"sd={sd}")
    weight_files(source / "unet", allow_bin)  # a UNet without weights is no Stable Diffusion
    unet = start_unet(source, dtype, allow_bin=allow_bin)
    pipeline = DiffewsPipeline(unet, load_vae(source, dtype, allow_bin), encode_empty_prompt(source, allow_bin))
    with new_folder(out) as folder:
        pipeline.save_pretrained(folder)
        for part in ("text_encoder", "tokenizer"):  # the reference's own code reads these
            shutil.copytree(source / part, folder / part)


def export_weights(source: WeightSource, out: Path, dtype: torch.dtype) -> None:
    """Writes a weight dir's or checkpoint's UNet as `out`/unet/unet in the given precision, with its record."""
    check_new(out)
    with new_folder(out) as folder:
        load_unet(source.unet, dtype).save_pretrained(folder / "unet" / "unet")
        write_record(folder, out, {**source.record, "base": str(source.base)})
