"""Finds and loads weights: every layout of the released weights, Stable Diffusion folders, and our own."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffews.errors import InputError
from diffews.runtime.files import hash_files, read_json, write_atomic

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, ModelMixin
    from torch import Tensor

    from diffews.models.unet import DiffewsUNet

RECORD = "diffews.json"  # written beside trained weights: base, image size, config, versions
DEFAULT_BASE = "stable-diffusion-2-1-ref8inchannels-tag4inchannels"
DEFAULT_IMAGE_SIZE = 512
MODEL_FILES = ("vae/*", "text*", "tokenizer/*")  # what evaluation reads of a base
BASE_FILES = ("unet/*", "image_encoder/*", *MODEL_FILES)  # and training
TEXT_KEYS = ("eval", "train")
_UNET_CLASSES = ("DiffewsUNet", "TokenUNet", "MyUNet2DConditionModel", "UNet2DConditionModel")


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

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's errors have no common base class
        raise InputError(f"{name} is no folder and could not be fetched from the hub ({first_line(error)})") from error


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


def load_unet(folder: Path, dtype: "torch.dtype", allow_bin: bool = False) -> "DiffewsUNet":
    """Loads a fine-tuned UNet; a plain Stable Diffusion UNet without `conv_in_ref` is an error."""
    from diffews.models.unet import DiffewsUNet

    config = read_json(folder / "config.json")
    if config.get("_class_name") not in _UNET_CLASSES:
        raise InputError(f"{folder / 'config.json'}: _class_name is {config.get('_class_name')!r}, not a DiffewS UNet")
    if config["_class_name"] == "TokenUNet":
        from diffews.models.token_unet import TokenUNet

        return load_module(TokenUNet, folder, dtype, allow_bin)
    return load_module(DiffewsUNet, folder, dtype, allow_bin)


def start_unet(
    base: Path, dtype: "torch.dtype", seed: int = 0, allow_bin: bool = False, with_tokens: bool = False
) -> "DiffewsUNet":
    """Returns the UNet that training starts from: base/unet, with `conv_in_ref` added if it has none.

    Where base/unet holds config.json alone, the weights are drawn from `seed`. with_tokens: a TokenUNet, with the
    CLIP vision model of base/image_encoder, which is likewise loaded and then not trained, or drawn from the seed.
    """
    if with_tokens:
        return _start_token_unet(base, dtype, seed, allow_bin)
    import torch

    from diffews.models.unet import DiffewsUNet

    folder = base / "unet"
    if not (folder / "config.json").is_file():
        raise InputError(f"{base}: no unet/config.json in it, which training starts from")
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        unet, missing = _load(DiffewsUNet, folder, dtype, allow_bin, may_lack=True)
        _check_complete(folder, [name for name in missing if not name.startswith("conv_in_ref.")])
        if not missing:
            return unet
    else:
        torch.manual_seed(seed)
        unet = DiffewsUNet.from_config(read_json(folder / "config.json"))
    unet.start_support_stem()
    return unet


def _start_token_unet(base: Path, dtype: "torch.dtype", seed: int, allow_bin: bool) -> "DiffewsUNet":
    import torch
    from transformers import CLIPVisionModelWithProjection

    from diffews.models.token_unet import TokenUNet

    plain, folder = start_unet(base, dtype, seed, allow_bin), base / "image_encoder"
    if not (folder / "config.json").is_file():
        raise InputError(f"{base}: no image_encoder/config.json in it, which interaction=cross_attention needs")
    torch.manual_seed(seed)
    unet = TokenUNet.from_config({**plain.config, "image_encoder_config": read_json(folder / "config.json")}).to(dtype)
    unet.load_state_dict({**unet.state_dict(), **plain.state_dict()})
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        pickled = weight_files(folder, allow_bin)[0].name.endswith(".bin")
        try:
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                str(folder), dtype=dtype, local_files_only=True, use_safetensors=not pickled
            )
            unet.image_encoder.load_state_dict(encoder.state_dict())
        except Exception as error:  # transformers raises many kinds
            cure = "save CLIP's vision model there, as weight/README.md says"
            raise InputError(f"{folder} does not load ({first_line(error)}); {cure}") from error
        unet.image_encoder.requires_grad_(False)
    return unet


def load_vae(base: Path, dtype: "torch.dtype", allow_bin: bool = False) -> "AutoencoderKL":
    """Loads the VAE of a base."""
    from diffusers import AutoencoderKL

    return load_module(AutoencoderKL, base / "vae", dtype, allow_bin)


def load_module(cls: "type[ModelMixin]", folder: Path, dtype: "torch.dtype", allow_bin: bool) -> Any:
    """Loads a diffusers module for inference; missing or misshapen tensors and damaged files are errors."""
    module, missing = _load(cls, folder, dtype, allow_bin)
    _check_complete(folder, missing)
    return module.eval().requires_grad_(False)


def _load(
    cls: "type[ModelMixin]", folder: Path, dtype: "torch.dtype", allow_bin: bool, may_lack: bool = False
) -> tuple[Any, list[str]]:
    """Loads a diffusers module -> the module and the names of the tensors that the file lacks."""
    from diffusers.utils import logging

    file = weight_files(folder, allow_bin)[0]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is checked below
    try:
        module, info = cls.from_pretrained(
            str(folder),
            torch_dtype=dtype,
            variant="fp16" if ".fp16." in file.name else None,
            use_safetensors=not file.name.endswith(".bin"),  # diffusers reads .bin with weights_only=True
            low_cpu_mem_usage=not may_lack,  # which gives no memory to a tensor that the file lacks
            output_loading_info=True,
            local_files_only=True,
        )
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error
    except Exception as error:  # diffusers and safetensors raise many kinds for a damaged or foreign file
        raise InputError(f"{file} does not load into {cls.__name__} ({first_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        config = folder / "config.json"
        raise InputError(f"{file} holds {len(unexpected)} tensors that {config} has no place for, as {unexpected[0]}")
    return module, sorted(info["missing_keys"])


def _check_complete(folder: Path, missing: list[str]) -> None:
    if missing:
        cure = "; make a base of it with `diffews init-base`" if missing[0].startswith("conv_in_ref.") else ""
        raise InputError(f"{folder}: the weights lack {len(missing)} tensors, the first is {missing[0]}{cure}")


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


def load_text(base: Path, allow_bin: bool = False) -> "dict[str, Tensor]":
    """Returns the empty prompt's embedding, float32: `eval` [1, 2, C] (BOS, EOS) and `train` [1, 77, C] (padded)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = base / "text.safetensors"
    if not file.is_file():
        return encode_empty_prompt(base, allow_bin)
    try:
        text = load_file(file)
        return {key: text[key].float() for key in TEXT_KEYS}
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}); it needs the keys eval and train") from error


def empty_prompt_ids(base: Path) -> dict[str, list[int]]:
    """Returns the token ids of the empty prompt: BOS, EOS in evaluation; in training padded with `!` (id 0) to 77."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(base / "tokenizer"), local_files_only=True)
    except Exception as error:
        raise InputError(f"{base / 'tokenizer'} does not load ({first_line(error)})") from error
    return {
        "eval": tokenizer("", padding="do_not_pad").input_ids,
        "train": tokenizer("", padding="max_length", max_length=77).input_ids,
    }


def encode_empty_prompt(base: Path, allow_bin: bool = False) -> "dict[str, Tensor]":
    """Computes the two text conditions with the base's text encoder; see `load_text`."""
    import torch
    from transformers import CLIPTextModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    ids = empty_prompt_ids(base)
    folder = base / "text_encoder"
    file = weight_files(folder, allow_bin)[0]
    try:
        encoder, info = CLIPTextModel.from_pretrained(
            str(folder),
            use_safetensors=not file.name.endswith(".bin"),
            variant="fp16" if ".fp16." in file.name else None,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:
        raise InputError(f"{folder} does not load ({first_line(error)})") from error
    if info["missing_keys"]:
        raise InputError(f"{file} lacks {len(info['missing_keys'])} tensors of the text encoder")
    with torch.no_grad():
        return {key: encoder.eval()(torch.tensor([ids[key]])).last_hidden_state for key in TEXT_KEYS}


def save_text(text: "dict[str, Tensor]", folder: Path) -> None:
    """Writes the empty prompt's embeddings as `text.safetensors`."""
    from safetensors.torch import save_file

    save_file({key: text[key].contiguous() for key in TEXT_KEYS}, folder / "text.safetensors")


def hash_weights(source: WeightSource) -> dict[str, str]:
    """Returns the sha256 of the UNet's weight files and of the base's: VAE with its config, and text condition."""
    return {"weight_sha256": hash_files(weight_files(source.unet)), "base_sha256": hash_base(source.base)}


def hash_base(base: Path) -> str:
    """Returns the sha256 of a base's VAE, its config (which scales latents), and what the text is made of."""
    text = base / "text.safetensors"
    texts = [text] if text.is_file() else weight_files(base / "text_encoder")
    return hash_files([*weight_files(base / "vae"), base / "vae" / "config.json", *texts])


def write_record(folder: Path, place: Path, record: dict[str, Any]) -> None:
    """Writes diffews.json into a folder that will lie at `place`; a local base is recorded relative to it."""
    base = str(record["base"])
    relative = os.path.relpath(Path(base).resolve(), place.resolve()) if Path(base).exists() else base
    write_atomic(folder / RECORD, json.dumps({**record, "base": relative}, indent=1) + "\n")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, for one-line messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
