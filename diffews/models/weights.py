"""Loads weights, strictly: a tensor too many or too few, another shape or a damaged file is an InputError."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from diffews.errors import InputError, refuse
from diffews.models.find import weight_files
from diffews.models.token_unet import TokenUNet
from diffews.models.unet import DiffewsUNet
from diffews.runtime.files import read_json

TEXT_KEYS = ("eval", "train")
_PLAIN = ("DiffewsUNet", "MyUNet2DConditionModel", "UNet2DConditionModel")  # what config.json may call our UNet
_UNET_CLASSES = {**dict.fromkeys(_PLAIN, DiffewsUNet), "TokenUNet": TokenUNet}


def load_unet(folder: Path, dtype: torch.dtype, allow_bin: bool = False) -> DiffewsUNet:
    """Loads a fine-tuned UNet; a plain Stable Diffusion UNet without `conv_in_ref` is an error."""
    config = read_json(folder / "config.json")
    cls = _UNET_CLASSES.get(str(config.get("_class_name")))
    if cls is None:
        raise InputError(f"{folder / 'config.json'}: _class_name is {config.get('_class_name')!r}, not a DiffewS UNet")
    return load_module(cls, folder, dtype, allow_bin)


def start_unet(
    base: Path, dtype: torch.dtype, seed: int = 0, allow_bin: bool = False, with_tokens: bool = False
) -> DiffewsUNet:
    """Returns the UNet that training starts from: base/unet, with `conv_in_ref` added if it has none.

    Where base/unet holds config.json alone, the weights are drawn from `seed`. with_tokens: a TokenUNet, with the
    CLIP vision model of base/image_encoder, which is likewise loaded and then not trained, or drawn from the seed.
    """
    if with_tokens:
        return _start_token_unet(base, dtype, seed, allow_bin)
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


def _start_token_unet(base: Path, dtype: torch.dtype, seed: int, allow_bin: bool) -> DiffewsUNet:
    plain, folder = start_unet(base, dtype, seed, allow_bin), base / "image_encoder"
    if not (folder / "config.json").is_file():
        raise InputError(f"{base}: no image_encoder/config.json in it, which interaction=cross_attention needs")
    torch.manual_seed(seed)
    unet = TokenUNet.from_config({**plain.config, "image_encoder_config": read_json(folder / "config.json")}).to(dtype)
    unet.load_state_dict({**unet.state_dict(), **plain.state_dict()})
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        pickled = weight_files(folder, allow_bin)[0].name.endswith(".bin")
        with refuse(f"{folder} does not load", cure="save CLIP's vision model there, as weight/README.md says"):
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                str(folder), dtype=dtype, local_files_only=True, use_safetensors=not pickled
            )
            unet.image_encoder.load_state_dict(encoder.state_dict())
        unet.image_encoder.requires_grad_(False)
    return unet


def load_vae(base: Path, dtype: torch.dtype, allow_bin: bool = False) -> AutoencoderKL:
    """Loads the VAE of a base."""
    return load_module(AutoencoderKL, base / "vae", dtype, allow_bin)


def load_module(cls: type[ModelMixin], folder: Path, dtype: torch.dtype, allow_bin: bool) -> Any:
    """Loads a diffusers module for inference; missing or misshapen tensors and damaged files are errors."""
    module, missing = _load(cls, folder, dtype, allow_bin)
    _check_complete(folder, missing)
    return module.eval().requires_grad_(False)


def _load(
    cls: type[ModelMixin], folder: Path, dtype: torch.dtype, allow_bin: bool, may_lack: bool = False
) -> tuple[Any, list[str]]:
    """Loads a diffusers module -> the module and the names of the tensors that the file lacks."""
    file = weight_files(folder, allow_bin)[0]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is checked below
    try:
        with refuse(f"{file} does not load into {cls.__name__}"):
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
        raise error if str(file) in str(error) else InputError(f"{folder / 'config.json'}: {error}") from error
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


def load_text(base: Path, allow_bin: bool = False) -> dict[str, Tensor]:
    """Returns the empty prompt's embedding, float32: `eval` [1, 2, C] (BOS, EOS) and `train` [1, 77, C] (padded)."""
    file = base / "text.safetensors"
    if not file.is_file():
        return encode_empty_prompt(base, allow_bin)
    with refuse(f"{file} cannot be read", cure="it needs the keys eval and train"):
        text = load_file(file)
        return {key: text[key].float() for key in TEXT_KEYS}


def empty_prompt_ids(base: Path) -> dict[str, list[int]]:
    """Returns the token ids of the empty prompt: BOS, EOS in evaluation; in training padded with `!` (id 0) to 77."""
    with refuse(f"{base / 'tokenizer'} does not load"):
        tokenizer = CLIPTokenizer.from_pretrained(str(base / "tokenizer"), local_files_only=True)
    return {
        "eval": tokenizer("", padding="do_not_pad").input_ids,
        "train": tokenizer("", padding="max_length", max_length=77).input_ids,
    }


def encode_empty_prompt(base: Path, allow_bin: bool = False) -> dict[str, Tensor]:
    """Computes the two text conditions with the base's text encoder; see `load_text`."""
    transformers_logging.disable_progress_bar()
    ids = empty_prompt_ids(base)
    folder = base / "text_encoder"
    file = weight_files(folder, allow_bin)[0]
    with refuse(f"{folder} does not load"):
        encoder, info = CLIPTextModel.from_pretrained(
            str(folder),
            use_safetensors=not file.name.endswith(".bin"),
            variant="fp16" if ".fp16." in file.name else None,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
        )
    if info["missing_keys"]:
        raise InputError(f"{file} lacks {len(info['missing_keys'])} tensors of the text encoder")
    with torch.no_grad():
        return {key: encoder.eval()(torch.tensor([ids[key]])).last_hidden_state for key in TEXT_KEYS}


def save_text(text: dict[str, Tensor], folder: Path) -> None:
    """Writes the empty prompt's embeddings as `text.safetensors`."""
    save_file({key: text[key].contiguous() for key in TEXT_KEYS}, folder / "text.safetensors")


def hash_tensors(*modules: torch.nn.Module, text: Tensor) -> str:
    """Returns the sha256 of the modules' tensors in their precision here, and of the text."""
    digest = sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            values = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            digest.update(name.encode() + values.tobytes())
    digest.update(text.cpu().numpy().tobytes())
    return digest.hexdigest()


def check_parts(unet: DiffewsUNet, vae: AutoencoderKL, text: dict[str, Tensor]) -> None:
    """Raises InputError unless the UNet takes the VAE's latents and the base's text."""
    latents, makes = unet.config.in_channels, vae.config.latent_channels
    words, known = unet.config.cross_attention_dim, text["eval"].shape[-1]
    apart = "weight and base do not belong together"
    if latents != makes:
        raise InputError(f"the UNet takes {latents} latent channels, the VAE makes {makes}; {apart}")
    if words != known:
        raise InputError(f"the UNet takes text of {words} channels, the base makes {known}; {apart}")
