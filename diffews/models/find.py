"""Finds weights in every layout: the released ones, Stable Diffusion's, ours. Loads nothing."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffews.errors import InputError, shorten
from diffews.models.hub import HUB, WEIGHT_FILES, resolve
from diffews.runtime.files import hash_files, read_json, write_atomic

RECORD = "diffews.json"  # written beside trained weights: base, image size, config, versions
PRESENCE = "presence"  # folder of a weight dir's presence head
EXPORT = "export.json"  # what `diffews export format=onnx` says of the graphs beside it
DEFAULT_BASE = "stable-diffusion-2-1-ref8inchannels-tag4inchannels"
DEFAULT_IMAGE_SIZE = 512
DEFAULT_THRESHOLD = 0.25  # the paper's, share of the maximum that foreground exceeds

# what is fetched of a small VAE
SMALL_VAE_FILES = ("config.json", RECORD, "diffusion_pytorch_model*")

# a module's weights: the first of these that its folder holds
STEMS = ("diffusion_pytorch_model", "model")
SAFETENSORS = [
    f"{stem}.{suffix}" for suffix in ("safetensors", "safetensors.index.json", "fp16.safetensors")
    for stem in STEMS]
PICKLES = ["diffusion_pytorch_model.bin", "pytorch_model.bin"]


@dataclass(frozen=True)
class WeightDir:
    """Trained weights: where their parts lie, and what was recorded with them.

    path: the weight dir. unet: the folder of its UNet. base: the folder with VAE and text.
    record: what training wrote into the weight dir's diffews.json; empty for released weights.
    hub_id: as which it was fetched, if it was.
    """

    path: Path
    unet: Path
    base: Path
    record: dict[str, Any] = field(default_factory=dict)
    hub_id: str | None = None

    @property
    def name(self) -> str:
        """The weight dir's name, on the hub that of the subfolder or repository."""
        named = self.path if self.hub_id is None else self.hub_id.partition("@")[0]
        return os.path.basename(os.path.abspath(named))

    def image_size(self, asked: int | None = None) -> int:
        """Returns the side in pixels to work at: as asked, else as recorded, else 512.

        Raises:
            InputError: for a size that is not a multiple of the VAE's factor.

        """
        size = asked or self.record.get("image_size", DEFAULT_IMAGE_SIZE)
        if not isinstance(size, int):
            raise InputError(f"{self.path / RECORD}: image_size is {size!r}, not an integer")
        check_image_size(size, self.base)
        return size

    def threshold(self, asked: float | None = None) -> float:
        """Returns the threshold: as asked, else as recorded, else 0.25."""
        found = self.record.get("threshold", DEFAULT_THRESHOLD) if asked is None else asked
        if type(found) not in (int, float) or not 0 <= found < 1:
            raise InputError(f"{self.path / RECORD}: threshold is {shorten(found)}, not in [0, 1)")
        return float(found)


# ---- weight dirs and bases ----


def find_weights(
    weight: str | Path, base: str | Path | None = None, key: str = "weight"
) -> WeightDir:
    """Finds the UNet in DIR/unet/unet, DIR/unet or DIR, and the base that goes with it.

    weight, base: folder or hub:owner/name; where base is None, as `find_base` finds it.
    key: which named it, for errors.

    Raises:
        InputError: for a folder that is missing, or in which nothing is found.

    """
    folder = resolve(str(weight), WEIGHT_FILES)
    if not folder.is_dir():
        raise InputError(
            f"{key}={weight}: no such folder; see weight/README.md for where weights can be had")
    if (folder / EXPORT).is_file():
        raise InputError(f"{key}={weight} holds graphs ({EXPORT}), which `segment` and "
                         "diffews.onnx read; give the weight dir that they were made of")

    for candidate in (folder / "unet" / "unet", folder / "unet", folder):
        if (candidate / "config.json").is_file():
            break
    else:
        raise InputError(f"{key}={weight}: no config.json in unet/unet, unet or the folder itself")

    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    hub_id = str(weight) if str(weight).startswith(HUB) else None
    return WeightDir(folder, candidate, find_base(folder, base, record), record, hub_id)


def find_base(folder: Path, base: str | Path | None, record: dict[str, Any]) -> Path:
    """Finds a weight dir's base: as given, as recorded, or one of two names beside the weight dir.

    Raises:
        InputError: when there is none; it names every place that was tried.

    """
    if base is not None:
        return check_base(resolve(str(base)), f"base={base}")

    beside = Path(os.path.abspath(folder)).parent  # of a link itself, not of what it points to
    candidates = [beside / "base", beside / DEFAULT_BASE]
    if "base" in record:
        name = record["base"]
        if not isinstance(name, str):
            raise InputError(f"{folder / RECORD}: base is {name!r}, not a folder; give base=DIR")
        recorded = folder / name
        is_here = recorded.is_dir() and not name.startswith(HUB)
        candidates.insert(0, recorded if is_here else resolve(name, may_fetch=False))
    if isinstance(record.get("base_path"), str):  # of an exported folder, which may have moved
        candidates.insert(1, Path(record["base_path"]))
    for candidate in candidates:
        if (candidate / "vae").is_dir():
            return check_base(candidate, f"base {candidate}")

    nothing = "" if "base" in record else "nothing recorded in the weight dir, "
    if str(record.get("base")).startswith(HUB):
        nothing = "what a file names is not fetched; "
    raise InputError(
        f"no base (VAE and text encoder) for {folder}: {nothing}"
        f"tried {', '.join(map(str, candidates))}; give base=DIR")


def check_base(base: Path, name: str) -> Path:
    """Returns the base if it has a VAE and the text condition, or what computes it.

    name: what errors call it, such as `base=DIR`.
    """
    if not base.is_dir():
        raise InputError(
            f"{name}: no such folder; see weight/README.md for where a base can be had")
    if not (base / "vae" / "config.json").is_file():
        raise InputError(
            f"{name}: no vae/config.json in it; a base has the layout of Stable Diffusion")
    texts = (base / "text.safetensors", base / "text_encoder" / "config.json")
    if not any(file.is_file() for file in texts):
        raise InputError(f"{name}: neither text.safetensors nor text_encoder/config.json in it")
    return base


# ---- sizes ----


def latent_factor(block_out_channels: Sequence[int]) -> int:
    """Returns how many pixels make one latent along a side in a VAE of these blocks.

    Each block but the last halves: 8 for Stable Diffusion's four.
    """
    return 2 ** (len(block_out_channels) - 1)


def vae_factor(base: Path) -> int:
    """Returns the `latent_factor` of a base's VAE."""
    config = base / "vae" / "config.json"
    channels = read_json(config).get("block_out_channels")
    if not isinstance(channels, list) or not 1 <= len(channels) <= 16:
        raise InputError(
            f"{config}: block_out_channels is {shorten(channels)}, no list of 1 to 16; is this a "
            "VAE?")
    return latent_factor(channels)


def check_image_size(size: int, base: Path) -> None:
    """Raises InputError unless the size is a multiple of the VAE's factor."""
    factor = vae_factor(base)
    if size < factor or size % factor:
        raise InputError(
            f"image_size={size} is not a multiple of {factor}, the factor of the VAE in {base}")


def check_small_vae(
        folder: Path, part: str, vae_config: Mapping[str, Any], vae_sha256: str | None) -> None:
    """Checks, by its config alone, that part of an AutoencoderTiny can stand in for the base's.

    part: "encoder" or "decoder". vae_config: of the base's VAE. vae_sha256: its `hash_vae`, which
    is compared with what the folder records, if both are known.

    Raises:
        InputError: for a folder that is missing or does not fit.

    """
    if not folder.is_dir():
        raise InputError(
            "no such folder; give a small VAE (AutoencoderTiny), or leave the key out to use the "
            "base's")
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind != "AutoencoderTiny":
        raise InputError(f"_class_name in config.json is {kind!r}; give an AutoencoderTiny")

    # its latents must be those of the VAE: as many channels, each as many pixels wide
    stages = len(config.get(f"num_{part}_blocks", (0,) * 4))
    step = config.get("upsampling_scaling_factor", 2) if part == "decoder" else 2
    channels, factor = config.get("latent_channels", 4), step ** (stages - 1)
    for what, has, wants in (
            ("latent channels", channels, vae_config["latent_channels"]),
            ("pixels a latent", factor, latent_factor(vae_config["block_out_channels"]))):
        if has != wants:
            raise InputError(
                f"it has {has} {what}, the base's VAE has {wants}; give one that was made for "
                "this VAE")

    # and it must have been made for this use
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if part == "encoder" and record.get("part") == "decoder":
        raise InputError(
            "only its decoder was trained (`diffews distill-decoder`); use it as decoder=")
    if vae_sha256 and record.get("vae_sha256", vae_sha256) != vae_sha256:
        raise InputError(
            "it was distilled from another VAE than the base's; make one with "
            "`diffews distill-decoder`")


# ---- weight files, their hashes, and the record beside them ----


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Returns the files that hold a module's weights: one file, or the index and its shards.

    variant: of diffusers' names, as fp16 of diffusion_pytorch_model.fp16.safetensors; a module that
    has no such file is in the plain one.
    """
    file = _weight_file(folder, variant)
    if file is None:
        raise InputError(f"{folder}: no {SAFETENSORS[0]} in it")
    if ".index." not in file.name:
        return [file]
    shards = read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{file} lacks the key 'weight_map'")
    names = sorted({str(shard) for shard in shards.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{file} names {shorten(name)}, which is no safetensors file beside it")
        if not (folder / name).is_file():
            raise InputError(f"{file} names {shorten(name)}, which is not there")
    return [file, *(folder / name for name in names)]


def refuse_pickles(*folders: Path) -> None:
    """Raises InputError if any of these folders has its weights in a pickle.

    Whoever loads a model asks this first, unless the user allows pickles with `allow_bin`; the
    loaders take what they find, a pickle with torch's weights-only unpickler.
    """
    for file in map(_weight_file, folders):
        if file is not None and file.name in PICKLES:
            raise InputError(
                f"{file} is a pickle; convert it to safetensors, or allow it with allow_bin=true")


def _weight_file(folder: Path, variant: str | None = None) -> Path | None:
    ends = [f"{variant}.safetensors", f"safetensors.index.{variant}.json"] if variant else []
    asked = [f"{stem}.{end}" for end in ends for stem in STEMS]
    files = (folder / name for name in asked + SAFETENSORS + PICKLES)
    return next((file for file in files if file.is_file()), None)


def base_folders(base: Path) -> list[Path]:
    """Returns the folders of a base whose weights evaluation loads."""
    text_is_kept = (base / "text.safetensors").is_file()
    return [base / "vae"] if text_is_kept else [base / "vae", base / "text_encoder"]


def hash_weights(source: WeightDir) -> dict[str, str]:
    """Returns the sha256 of the UNet's weights and of the base, under the keys of result.json."""
    return {
        "weight_sha256": hash_files(weight_files(source.unet)),
        "base_sha256": hash_base(source.base)}


def hash_base(base: Path) -> str:
    """Returns the sha256 of a base: its VAE as in `hash_vae`, and what the text is made of."""
    text = base / "text.safetensors"
    texts = [text] if text.is_file() else weight_files(base / "text_encoder")
    return hash_files([*weight_files(base / "vae"), base / "vae" / "config.json", *texts])


def hash_vae(base: Path) -> str:
    """Returns the sha256 of a base's VAE: its weights, and its config, which scales latents."""
    return hash_files([*weight_files(base / "vae"), base / "vae" / "config.json"])


def hash_small_vae(folder: str) -> str:
    """Returns the sha256 of a small VAE's weights and config; `folder` may be a hub id."""
    found = resolve(folder, SMALL_VAE_FILES)
    return hash_files([*weight_files(found), found / "config.json"])


def write_record(folder: Path, place: Path, record: dict[str, Any]) -> None:
    """Writes diffews.json into a folder that will lie at `place`.

    record: what to keep; its `base`, if it is a folder, is written relative to `place`, so that
    both can move together.
    """
    base = str(record["base"])
    if Path(base).exists():
        base = os.path.relpath(Path(base).resolve(), place.resolve())
    write_atomic(folder / RECORD, json.dumps({**record, "base": base}, indent=1) + "\n")
