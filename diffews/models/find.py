"""Finds weights in every layout of the released weights, Stable Diffusion folders, and our own; loads nothing."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffews.errors import InputError, refuse
from diffews.runtime.files import hash_files, read_json, write_atomic

RECORD = "diffews.json"  # written beside trained weights: base, image size, config, versions
DEFAULT_BASE = "stable-diffusion-2-1-ref8inchannels-tag4inchannels"
DEFAULT_IMAGE_SIZE = 512
MODEL_FILES = ("vae/*", "text*", "tokenizer/*")  # what evaluation reads of a base
BASE_FILES = ("unet/*", "image_encoder/*", *MODEL_FILES)  # and training


@dataclass(frozen=True)
class WeightSource:
    """Where a model's parts lie: the weight dir, its UNet's folder, the base, and what was recorded in training."""

    path: Path
    unet: Path
    base: Path
    record: dict[str, Any] = field(default_factory=dict)

    def image_size(self, asked: int | None = None) -> int:
        """Returns the side in pixels to work at: asked, else recorded, else 512; checked against the VAE's factor."""
        size = asked or self.record.get("image_size", DEFAULT_IMAGE_SIZE)
        if not isinstance(size, int):
            raise InputError(f"{self.path / RECORD}: image_size is {size!r}, not an integer")
        check_image_size(size, self.base)
        return size


def find_weights(weight: str | Path, base: str | Path | None = None) -> WeightSource:
    """Finds the UNet in DIR/unet/unet, DIR/unet or DIR, and the base that goes with it; loads nothing."""
    folder = Path(weight)
    if not folder.is_dir():
        raise InputError(f"weight={weight}: no such folder; see weight/README.md for where weights can be had")
    for candidate in (folder / "unet" / "unet", folder / "unet", folder):
        if (candidate / "config.json").is_file():
            break
    else:
        raise InputError(f"weight={weight}: no config.json in unet/unet, unet or the folder itself")
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    return WeightSource(folder, candidate, find_base(folder, base, record), record)


def find_base(folder: Path, base: str | Path | None, record: dict[str, Any]) -> Path:
    """Finds the base: as given (folder or hub id), as recorded, or one of two names beside the weight dir."""
    if base is not None:
        return check_base(resolve(str(base)), f"base={base}")
    beside = Path(os.path.abspath(folder)).parent  # of a link itself, not of what it points to
    candidates = [beside / "base", beside / DEFAULT_BASE]
    if "base" in record:
        recorded = folder / record["base"]
        candidates.insert(0, recorded if recorded.is_dir() else resolve(record["base"]))
    for candidate in candidates:
        if (candidate / "vae").is_dir():
            return check_base(candidate, f"base {candidate}")
    names = ", ".join(str(candidate) for candidate in candidates)
    recorded = "" if "base" in record else "nothing recorded in the weight dir, "
    raise InputError(f"no base (VAE and text encoder) for {folder}: {recorded}tried {names}; give base=DIR")


def check_base(base: Path, name: str) -> Path:
    """Checks that a base has a VAE and the text condition, or what computes it."""
    if not base.is_dir():
        raise InputError(f"{name}: no such folder; see weight/README.md for where a base can be had")
    if not (base / "vae" / "config.json").is_file():
        raise InputError(f"{name}: no vae/config.json in it; a base has the layout of Stable Diffusion")
    if not (base / "text.safetensors").is_file() and not (base / "text_encoder" / "config.json").is_file():
        raise InputError(f"{name}: neither text.safetensors nor text_encoder/config.json in it")
    return base


def resolve(name: str, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """Returns a local folder as it is, and fetches a hub id such as `owner/name` through huggingface_hub."""
    path = Path(name)
    if path.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or path.parent.exists():
        return path
    from huggingface_hub import snapshot_download

    with refuse(f"{name} is no folder and could not be fetched from the hub"):
        return Path(snapshot_download(name, allow_patterns=list(patterns)))


def vae_factor(base: Path) -> int:
    """Returns how many pixels make one latent along a side: 8 for Stable Diffusion."""
    config = base / "vae" / "config.json"
    channels = read_json(config).get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise InputError(f"{config}: block_out_channels is missing; is this a VAE?")
    return latent_factor(channels)


def latent_factor(block_out_channels: Sequence[int]) -> int:
    """Returns how many pixels make one latent along a side in a VAE of these blocks: each but the last halves."""
    return 2 ** (len(block_out_channels) - 1)


def check_image_size(size: int, base: Path) -> None:
    """Raises InputError unless the size is a multiple of the VAE's factor."""
    factor = vae_factor(base)
    if size < factor or size % factor:
        raise InputError(f"image_size={size} is not a multiple of {factor}, the factor of the VAE in {base}")


def weight_files(folder: Path, allow_bin: bool = True) -> list[Path]:
    """Returns the files that hold a module's weights: one file, or the index and its shards."""
    stems = ("diffusion_pytorch_model", "model")
    suffixes = [".safetensors", ".safetensors.index.json", ".fp16.safetensors"]
    for name in (stem + suffix for suffix in suffixes for stem in stems):
        if (folder / name).is_file():
            shards: set[Path] = set()
            if ".index." in name:
                index = read_json(folder / name).get("weight_map")
                if not isinstance(index, dict):
                    raise InputError(f"{folder / name} lacks the key 'weight_map'")
                shards = {folder / str(shard) for shard in index.values()}
            return [folder / name, *sorted(shards)]
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        if (folder / name).is_file():
            if allow_bin:
                return [folder / name]
            raise InputError(
                f"{folder / name} is a pickle; convert it to safetensors, or allow it with allow_bin=true"
            )
    raise InputError(f"{folder}: no {stems[0]}.safetensors in it")


def hash_weights(source: WeightSource) -> dict[str, str]:
    """Returns the sha256 of the UNet's weight files and of the base's: VAE with its config, and text condition."""
    return {"weight_sha256": hash_files(weight_files(source.unet)), "base_sha256": hash_base(source.base)}


def hash_base(base: Path) -> str:
    """Returns the sha256 of a base's VAE, its config (which scales latents), and what the text is made of."""
    text = base / "text.safetensors"
    texts = [text] if text.is_file() else weight_files(base / "text_encoder")
    return hash_files([*weight_files(base / "vae"), base / "vae" / "config.json", *texts])


def hash_vae(base: Path) -> str:
    """Returns the sha256 of a base's VAE: its weights and its config, which scales latents."""
    return hash_files([*weight_files(base / "vae"), base / "vae" / "config.json"])


def write_record(folder: Path, place: Path, record: dict[str, Any]) -> None:
    """Writes diffews.json into a folder that will lie at `place`; a local base is recorded relative to it."""
    base = str(record["base"])
    relative = os.path.relpath(Path(base).resolve(), place.resolve()) if Path(base).exists() else base
    write_atomic(folder / RECORD, json.dumps({**record, "base": relative}, indent=1) + "\n")
