"""Turns a Stable Diffusion folder into a base, and trained weights into a folder to hand on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffews.errors import InputError
from diffews.models.card import model_card
from diffews.models.find import (
    PRESENCE, RECORD, WeightDir, base_folders, check_base, refuse_pickles, weight_files,
    write_record)
from diffews.models.hub import BASE_FILES, resolve
from diffews.models.presence import open_presence
from diffews.models.weights import (
    encode_empty_prompt, load_text, load_unet, load_vae, save_text, start_unet)
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.files import check_new, new_folder, write_atomic

COPIED = ("text_encoder", "tokenizer")  # the reference's own code reads these of a base


def init_base(sd: str, out: Path, dtype: torch.dtype, allow_bin: bool = False) -> None:
    """Writes a base: the UNet with `conv_in_ref`, the VAE, and the empty prompt's embedding.

    sd: folder or hub:owner/name of Stable Diffusion 1.x or 2.x.
    out: the folder to write, which appears when it is complete; must not exist.
    dtype: in which UNet and VAE are stored. allow_bin: whether pickled weights may be read.

    Raises:
        InputError: for an `out` that exists, and an `sd` that is not whole.

    """
    check_new(out)
    source = check_base(resolve(sd, BASE_FILES), f"sd={sd}")
    weight_files(source / "unet")  # a UNet without weights is no Stable Diffusion
    if not allow_bin:
        refuse_pickles(*(source / part for part in ("unet", "vae", "text_encoder")))

    for part in COPIED:
        _check_inside(source, source / part)

    unet = start_unet(source, dtype)
    pipeline = DiffewsPipeline(unet, load_vae(source, dtype), encode_empty_prompt(source))
    with new_folder(out) as folder:
        pipeline.save_pretrained(folder)
        for part in COPIED:
            shutil.copytree(source / part, folder / part)


def _check_inside(source: Path, part: Path) -> None:
    """Raises InputError for a link that leads out of the folder: the copy would hold its target."""
    roots = [source.resolve()]
    if roots[0].parent.name == "snapshots":  # of the hub's cache, which links into its blobs
        roots.append(roots[0].parents[1] / "blobs")
    for file in (part, *part.rglob("*")):
        target = file.resolve()
        if not any(target.is_relative_to(root) for root in roots):
            raise InputError(f"{file} is a link out of {source}; put the file itself there")
        if not (target.is_file() or target.is_dir()):
            raise InputError(f"{file} is neither file nor folder; remove it")


def export_weights(
        source: WeightDir, out: Path, dtype: torch.dtype, include_base: bool = False,
        results: Sequence[dict[str, Any]] = ()) -> None:
    """Writes the UNet of a weight dir or checkpoint as `out`/unet/unet, with its record.

    dtype: the precision in which it is stored. include_base: copies what evaluation reads of the
    base to `out`/base, with a model card, so that the folder is whole; else the record says where
    the base lies, from `out` and from the root, so that either may move. results: result.json of
    evaluations, for the card.
    """
    check_new(out)
    refuse_pickles(source.unet, *base_folders(source.base) * include_base)
    with new_folder(out) as folder:
        unet = load_unet(source.unet, dtype)
        unet.save_pretrained(folder / "unet" / "unet")

        # a presence head goes along, and is from now on that of the weights as written
        presence = open_presence(source, "auto", unet)
        presence.save(folder / PRESENCE, folder / "unet" / "unet")
        if not include_base:
            place = str(source.base.resolve())
            write_record(folder, out, {**source.record, "base": place, "base_path": place})
            return

        load_vae(source.base, torch.float32)  # what is copied is a VAE
        vae = source.base / "vae"
        (folder / "base" / "vae").mkdir(parents=True)
        for file in (vae / "config.json", *weight_files(vae)):
            shutil.copyfile(file, folder / "base" / "vae" / file.name)
        save_text(load_text(source.base), folder / "base")
        record = {**source.record, "base": "base"}
        write_atomic(folder / RECORD, json.dumps(record, indent=1) + "\n")
        write_atomic(folder / "README.md", model_card(out.name, source.record, results))
