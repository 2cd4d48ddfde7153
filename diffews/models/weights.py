"""Loads weights, strictly: a tensor too many, too few or of another shape is an InputError."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from diffews.errors import InputError, refuse
from diffews.models.checks import check_config
from diffews.models.find import (
    SMALL_VAE_FILES, check_small_vae, refuse_pickles, weight_files)
from diffews.models.hub import resolve
from diffews.models.token_unet import TokenUNet
from diffews.models.unet import DiffewsUNet
from diffews.runtime.files import read_json
from diffews.runtime.finite import check_finite

TEXT_KEYS = ("eval", "train")
DAMAGED = "the file is damaged, or its values do not fit this precision"
UNETS = {  # what config.json may call them
    **dict.fromkeys(
        ("DiffewsUNet", "MyUNet2DConditionModel", "UNet2DConditionModel"), DiffewsUNet),
    "TokenUNet": TokenUNet}


# ---- the UNet ----


def load_unet(folder: Path, dtype: torch.dtype, variant: str | None = None) -> DiffewsUNet:
    """Loads a fine-tuned UNet; a plain Stable Diffusion UNet without `conv_in_ref` is an error.

    variant: of the files' names, see `weight_files`.
    """
    name = read_json(folder / "config.json").get("_class_name")
    if str(name) not in UNETS:
        raise InputError(f"{folder / 'config.json'}: _class_name is {name!r}, not a DiffewS UNet")
    return load_module(UNETS[str(name)], folder, dtype, variant)


def start_unet(
        base: Path, dtype: torch.dtype, seed: int = 0, with_tokens: bool = False) -> DiffewsUNet:
    """Returns the UNet that training starts from: base/unet, with `conv_in_ref` if it has none.

    seed: draws the weights where base/unet holds config.json alone.
    with_tokens: a TokenUNet, with the CLIP vision model of base/image_encoder. That is either
    loaded and then not trained, or drawn from the seed.
    """
    if with_tokens:
        return _start_token_unet(base, dtype, seed)
    folder = base / "unet"
    if not (folder / "config.json").is_file():
        raise InputError(f"{base}: no unet/config.json in it, which training starts from")

    if _has_weights(folder):
        unet, missing = _load(DiffewsUNet, folder, dtype, may_lack="conv_in_ref.")
        if not missing:
            return unet
    else:
        check_config(DiffewsUNet, folder, with_weights=False)
        torch.manual_seed(seed)
        unet = DiffewsUNet.from_config(read_json(folder / "config.json"))
    unet.start_support_stem()
    return unet


def continue_unet(folder: Path, base: Path, dtype: torch.dtype) -> DiffewsUNet:
    """Loads a trained UNet to train further; an image encoder that knew pictures stays frozen."""
    unet = load_unet(folder, dtype).requires_grad_(True)
    if isinstance(unet, TokenUNet) and _has_weights(base / "image_encoder"):
        unet.image_encoder.requires_grad_(False)
    return unet


def _start_token_unet(base: Path, dtype: torch.dtype, seed: int) -> DiffewsUNet:
    plain, folder = start_unet(base, dtype, seed), base / "image_encoder"
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{base}: no image_encoder/config.json in it, which interaction=cross_attention needs")

    check_config(CLIPVisionModelWithProjection, folder, _has_weights(folder))
    torch.manual_seed(seed)
    settings = {**plain.config, "image_encoder_config": read_json(folder / "config.json")}
    unet = TokenUNet.from_config(settings).to(dtype)
    unet.load_state_dict({**unet.state_dict(), **plain.state_dict()})

    # an image encoder that knows pictures already stays as it is
    if _has_weights(folder):
        cure = "save CLIP's vision model there, as weight/README.md says"
        with refuse(f"{folder} does not load", cure=cure):
            encoder = _read(CLIPVisionModelWithProjection, folder, dtype=dtype)
            unet.image_encoder.load_state_dict(encoder.state_dict())
            check_finite(encoder.named_parameters(), str(folder), DAMAGED)
        unet.image_encoder.requires_grad_(False)
    return unet


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


# ---- the VAE, and any module of diffusers ----


def load_vae(base: Path, dtype: torch.dtype, variant: str | None = None) -> AutoencoderKL:
    """Loads the VAE of a base."""
    return load_module(AutoencoderKL, base / "vae", dtype, variant)


def load_small_vae(
        folder: Path | str, part: str, vae: AutoencoderKL, allow_bin: bool = False,
        vae_sha256: str | None = None, variant: str | None = None) -> AutoencoderTiny:
    """Loads an AutoencoderTiny, one part of which stands in for that of the base's VAE.

    folder: folder or hub:owner/name with config.json and the weights in the folder itself.
    part: "encoder" or "decoder". vae: the base's, whose precision it takes.
    vae_sha256: the `hash_vae` of the base, checked where the folder records one.

    Raises:
        InputError: for a folder that is missing or damaged, or does not fit the VAE.

    """
    try:
        found = resolve(str(folder), SMALL_VAE_FILES)
        with refuse("config.json is not that of a small VAE", TypeError, ArithmeticError):
            check_small_vae(found, part, vae.config, vae_sha256)
        if not allow_bin:
            refuse_pickles(found)
        return load_module(AutoencoderTiny, found, vae.dtype, variant)
    except InputError as error:
        raise InputError(f"{part}={folder}: {error}") from error


def load_module(
        cls: type[ModelMixin], folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Loads a module of diffusers, for inference.

    Raises:
        InputError: for tensors that are missing, misshapen or left over, and for damaged files.

    """
    return _load(cls, folder, dtype, variant=variant)[0].eval().requires_grad_(False)


def _load(
        cls: type[ModelMixin], folder: Path, dtype: torch.dtype,
        may_lack: str | None = None, variant: str | None = None) -> tuple[Any, list[str]]:
    """Loads a module -> the module and the names of the tensors that the file lacks.

    may_lack: how the names of those begin that may be missing.
    """
    file, config = weight_files(folder, variant)[0], folder / "config.json"
    check_config(cls, folder, variant=variant)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is checked below
    try:
        with refuse(f"{file} does not load into {cls.__name__}"):
            # low_cpu_mem_usage gives no memory to a tensor that is missing
            module, info = _read(
                cls, folder, variant, torch_dtype=dtype, low_cpu_mem_usage=may_lack is None,
                output_loading_info=True)
    except InputError as error:
        raise error if str(file) in str(error) else InputError(f"{config}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)

    # diffusers would go on with either
    unexpected, missing = sorted(info["unexpected_keys"]), sorted(info["missing_keys"])
    if unexpected:
        raise InputError(
            f"{file} holds {len(unexpected)} tensors that {config} has no place for, "
            f"as {unexpected[0]}")
    lacking = [name for name in missing if may_lack is None or not name.startswith(may_lack)]
    if lacking:
        is_plain = lacking[0].startswith("conv_in_ref.")
        cure = "; make a base of it with `diffews init-base`" if is_plain else ""
        raise InputError(
            f"{folder}: the weights lack {len(lacking)} tensors, the first is {lacking[0]}{cure}")
    have = ((name, p) for name, p in module.named_parameters() if name not in missing)
    check_finite(have, str(file), DAMAGED)
    return module, missing


def _read(cls: Any, folder: Path, variant: str | None = None, **keys: Any) -> Any:
    """Reads a module of diffusers or transformers from the file that `weight_files` chose.

    Both libraries read a .bin with weights_only=True.
    """
    file = weight_files(folder, variant)[0]
    named = next((word for word in (variant, "fp16") if f".{word}." in file.name), None)
    return cls.from_pretrained(
        str(folder), variant=named,
        use_safetensors=file.suffix != ".bin", local_files_only=True, **keys)


# ---- the text condition ----


def load_text(base: Path) -> dict[str, Tensor]:
    """Returns the empty prompt's embedding, float32, as the base keeps it or computes it.

    `eval`: [1, 2, C] (BOS, EOS). `train`: [1, 77, C] (padded).
    """
    file = base / "text.safetensors"
    if not file.is_file():
        return encode_empty_prompt(base)
    with refuse(f"{file} cannot be read", cure="it needs the keys eval and train"):
        text = load_file(file)
        shapes = [list(text[key].shape) for key in TEXT_KEYS]
        if any(len(shape) != 3 or shape[0] != 1 or 0 in shape for shape in shapes) or (
                shapes[0][2] != shapes[1][2]):
            raise ValueError(f"eval and train have the shapes {shapes}, not [1, tokens, C]")
        check_finite(text.items(), str(file), DAMAGED)
        return {key: text[key].float() for key in TEXT_KEYS}


def save_text(text: dict[str, Tensor], folder: Path) -> None:
    """Writes the empty prompt's embeddings as `text.safetensors`."""
    check_finite(text.items(), f"{folder}/text.safetensors, not written")
    save_file({key: text[key].contiguous() for key in TEXT_KEYS}, folder / "text.safetensors")


def encode_empty_prompt(base: Path) -> dict[str, Tensor]:
    """Computes the two text conditions with the base's text encoder; see `load_text`."""
    transformers_logging.disable_progress_bar()
    ids, folder = empty_prompt_ids(base), base / "text_encoder"
    file = weight_files(folder)[0]
    try:
        check_config(CLIPTextModel, folder)
    except InputError as error:
        raise InputError(f"{folder} does not load ({error})") from error
    with refuse(f"{folder} does not load"):
        encoder, info = _read(
            CLIPTextModel, folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        raise InputError(f"{file} lacks {len(info['missing_keys'])} tensors of the text encoder")
    check_finite(encoder.named_parameters(), str(file), DAMAGED)

    with torch.no_grad():
        return {
            key: encoder.eval()(torch.tensor([ids[key]])).last_hidden_state for key in TEXT_KEYS}


def empty_prompt_ids(base: Path) -> dict[str, list[int]]:
    """Returns the token ids of the empty prompt.

    `eval`: BOS, EOS. `train`: the same, padded with `!` (id 0) to 77.
    """
    with refuse(f"{base / 'tokenizer'} does not load"):
        tokenizer = CLIPTokenizer.from_pretrained(str(base / "tokenizer"), local_files_only=True)
    return {
        "eval": tokenizer("", padding="do_not_pad").input_ids,
        "train": tokenizer("", padding="max_length", max_length=77).input_ids}


def check_parts(unet: DiffewsUNet, vae: AutoencoderKL, text: dict[str, Tensor]) -> None:
    """Raises InputError unless the UNet takes the VAE's latents and the base's text."""
    latents, makes = unet.config.in_channels, vae.config.latent_channels
    words, known = unet.config.cross_attention_dim, text["eval"].shape[-1]
    apart = "weight and base do not belong together"
    if latents != makes:
        raise InputError(
            f"the UNet takes {latents} latent channels, the VAE makes {makes}; {apart}")
    if words != known:
        raise InputError(
            f"the UNet takes text of {words} channels, the base makes {known}; {apart}")
