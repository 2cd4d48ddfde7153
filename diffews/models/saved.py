"""A DiffewsPipeline as files, and as its parts.

It does what diffusers' pipelines do, and is as strict as `load_pipeline`: every tensor has its
place, and float16 keeps the VAE in float32.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import create_repo
from torch import Tensor

from diffews.errors import InputError, nearest, refuse
from diffews.models.card import model_card
from diffews.models.attention import SupportBank
from diffews.models.find import (
    PRESENCE, WeightDir, base_folders, find_weights, refuse_pickles, write_record)
from diffews.models.hashing import WeightsHash
from diffews.models.hub import HUB_KEYS, resolve
from diffews.models.presence import NoPresence, open_presence
from diffews.models.weights import (
    load_small_vae, load_text, load_unet, load_vae, save_text)
from diffews.runtime.device import pick_device, vae_dtype
from diffews.runtime.files import read_json, write_atomic

INDEX = "model_index.json"
SETTINGS = ("image_size", "threshold", "variant_keys")  # beside the parts, in the config
KEPT = ("denoising_steps", "ensemble", "presence")  # attributes that are set after construction


UPLOAD_KEYS = ("repo_id", "private", "token", "create_pr", "commit_message")


class SavedPipeline(DiffusionPipeline):
    """The base of DiffewsPipeline."""

    text: dict[str, Tensor]
    presence: NoPresence

    def __init__(self) -> None:
        super().__init__()
        self._weights_hash = WeightsHash()

    # ---- the parts ----

    @property
    def components(self) -> dict[str, Any]:
        """All that the constructor takes: the modules, the text, and what changes masks."""
        settings = {name: self.config[name] for name in SETTINGS}
        return {**super().components, "text": self.text, **settings}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Makes another pipeline of a DiffewsPipeline's parts, without copying them.

        kwargs: what the constructor takes, instead of the pipeline's own; dtype (or torch_dtype)
        converts the parts, which are the first one's, too.
        """
        if not isinstance(pipeline, SavedPipeline):
            raise InputError(
                f"from_pipe takes a DiffewsPipeline, not a {type(pipeline).__name__}, whose UNet "
                "reads no support")
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
        made = cls(**{**pipeline.components, **kwargs})
        for name in KEPT:
            if name == "presence" and "unet" in kwargs:  # a head is of one UNet
                continue
            setattr(made, name, getattr(pipeline, name))
        return made if dtype is None else made.to(dtype)

    def enable_sequential_cpu_offload(
            self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keeps weights in main memory until their layer runs; see diffusers' pipelines."""
        if device is not None and torch.device(device).type == "cpu":
            raise InputError("enable_sequential_cpu_offload moves weights from main memory to "
                             f"another device; device={device} is no other")
        super().enable_sequential_cpu_offload(gpu_id, device)

    # ---- banks ----

    def save_bank(self, bank: SupportBank, path: str | Path) -> None:
        """Writes a bank with the hash of the weights that recorded it."""
        self.method.interaction.check_bank_use("a bank to save")
        bank.save(path, self.weights_sha256)

    def load_bank(self, path: str | Path) -> SupportBank:
        """Reads a bank that `save_bank` wrote; a bank of other weights is an InputError."""
        self.method.interaction.check_bank_use("a bank to read")
        bank = SupportBank.load(path, self._execution_device, self.weights_sha256)
        self.unet.check_bank(bank)
        return bank.to(dtype=self.unet.dtype)

    @property
    def weights_sha256(self) -> str:
        """Hash of every tensor that a bank depends on: UNet, VAE, text, in their precision here."""
        modules = (self.unet, self.encoder or self.vae)
        return self._weights_hash.read(modules, self.text["eval"])

    # ---- the files ----

    def save_pretrained(
            self, save_directory: str | Path, push_to_hub: bool = False,
            results: Sequence[dict[str, Any]] = (), **kwargs: Any) -> None:
        """Writes a weight dir and base in one: unet/, vae/, text.safetensors, model_index.json.

        Args:
            save_directory: a folder, new or not.
            push_to_hub: upload the folder afterwards, with a model card (README.md) unless there is
                one; repo_id (by default the folder's name), private, token, create_pr and
                commit_message are then as diffusers takes them.
            results: result.json of evaluations of these weights, for the card.
            kwargs: as diffusers' pipelines take them (variant, max_shard_size, ...); no pickles.

        """
        hub = {name: kwargs.pop(name) for name in UPLOAD_KEYS if name in kwargs}
        if hub and not push_to_hub:
            raise InputError(f"{next(iter(hub))}= is for push_to_hub=True")
        if not kwargs.get("safe_serialization", True):
            raise InputError("safe_serialization=False writes pickles, which are not read; "
                             "leave it out")
        super().save_pretrained(save_directory, **kwargs)
        folder, keys = Path(save_directory), self.config.variant_keys
        save_text(self.text, folder)

        record = {"base": str(folder), **{k: self.config[k] for k in ("image_size", "threshold")}}
        if keys is not None:
            record["variant"] = dict(keys)
        write_record(folder, folder, record)
        self.presence.save(folder / PRESENCE, folder / "unet", kwargs.get("variant"))
        if push_to_hub:
            self._push(folder, {**self.unet.training_record, **record}, results, **hub)

    def _push(
            self, folder: Path, record: dict[str, Any], results: Sequence[dict[str, Any]],
            repo_id: str | None = None, private: bool | None = None, token: str | None = None,
            **kwargs: Any) -> None:
        """Makes the hub's repository if there is none, and uploads the folder with its card."""
        name = repo_id or folder.resolve().name
        with refuse(f"{folder} could not be uploaded as {name}"):
            name = create_repo(name, exist_ok=True, private=private, token=token).repo_id
            if not (folder / "README.md").is_file():
                card = model_card(name.rpartition("/")[2], record, results, f"hub:{name}")
                write_atomic(folder / "README.md", card)
            self._upload_folder(str(folder), name, token=token, **kwargs)

    @classmethod
    def from_pretrained(
            cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads what `save_pretrained` wrote, as strictly as `load_pipeline`; no pickles.

        Args:
            pretrained_model_name_or_path: a folder, or hub:owner/name[/subfolder][@revision].
            kwargs: revision, token, cache_dir, local_files_only, force_download, as the hub takes
                them; variant, of weights as model.fp16.safetensors; dtype (or torch_dtype), one or
                {"unet": ..., "default": ...}; device_map, the name of a device; and what the
                constructor takes, instead of what lies in the folder.

        Raises:
            InputError: for what is missing, damaged, does not belong together, or is not known.

        """
        hub = {name: kwargs.pop(name) for name in HUB_KEYS if name in kwargs}
        variant, device = kwargs.pop("variant", None), kwargs.pop("device_map", None) or "cpu"
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        if kwargs.pop("use_safetensors", True) is False:
            raise InputError("use_safetensors=False reads pickles; leave it out")
        kwargs.pop("low_cpu_mem_usage", None)  # memory is always spared
        _check_keys(kwargs, [*_parts_of(cls), *SETTINGS, *HUB_KEYS, "variant", "dtype"])
        if device == "balanced":
            raise InputError("device_map='balanced' would part the UNet from the VAE; name a "
                             "device, or call enable_model_cpu_offload()")

        folder = resolve(str(pretrained_model_name_or_path), ("*",), **hub)
        index = _read_index(folder)
        source = _find_saved(folder, index)
        refuse_pickles(source.unet, *base_folders(source.base))
        if variant is not None:
            _check_variant(folder, variant)

        # the largest part last; what the caller gives is not read
        parts = {"image_size": source.image_size(), "threshold": source.threshold(),
                 "variant_keys": source.record.get("variant"), **kwargs}
        if "vae" not in parts:
            parts["vae"] = load_vae(source.base, _dtype_of("vae", dtype), variant)
        for name in ("encoder", "decoder"):
            if name not in parts and index.get(name, [None])[0]:
                parts[name] = load_small_vae(folder / name, name, parts["vae"], variant=variant)
        if "text" not in parts:
            parts["text"] = load_text(source.base)
        if "unet" not in parts:
            parts["unet"] = load_unet(source.unet, _dtype_of("unet", dtype), variant)
        pipeline = cls(**parts).to(pick_device(str(device)))
        if "unet" not in kwargs:
            pipeline.unet.training_record = source.record
            pipeline.presence = open_presence(source, "auto", pipeline.unet, variant)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Says how to load; `DiffusionPipeline.from_pretrained` would leave gaps to chance."""
        raise InputError(
            "DiffusionPipeline cannot load a DiffewsPipeline; write `from diffews import "
            "DiffewsPipeline` and DiffewsPipeline.from_pretrained(...)")


def _parts_of(cls: type[DiffusionPipeline]) -> list[str]:
    modules, _ = cls._get_signature_keys(cls)
    return [*modules, "text"]


def _check_keys(given: dict[str, Any], known: list[str]) -> None:
    for name in given:
        if name == "quantization_config":
            raise InputError("quantization_config is the UNet's; give unet=DiffewsUNet."
                             "from_pretrained(folder / 'unet', quantization_config=...)")
        if name not in known:
            raise InputError(f"from_pretrained takes no {name!r}{nearest(name, known)}")


def _read_index(folder: Path) -> dict[str, Any]:
    """Reads model_index.json of a folder that `save_pretrained` wrote."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; what lies on the hub is hub:owner/name")
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: no {INDEX} in it, as save_pretrained writes it; weight dirs "
                         "are loaded by diffews.load_pipeline")
    index = read_json(folder / INDEX)
    if index.get("_class_name") != "DiffewsPipeline":
        raise InputError(f"{folder / INDEX} is of a {index.get('_class_name')}, not of a "
                         "DiffewsPipeline")
    return index


def _find_saved(folder: Path, index: dict[str, Any]) -> WeightDir:
    """Finds the parts; what diffews.json does not say is taken from model_index.json."""
    found = find_weights(folder, folder, "pretrained_model_name_or_path")
    said = {"image_size": index.get("image_size"), "threshold": index.get("threshold"),
            "variant": index.get("variant_keys")}
    record = {**{k: v for k, v in said.items() if v is not None}, **found.record}
    return replace(found, record=record)


def _check_variant(folder: Path, variant: str) -> None:
    """Raises InputError if no part has weights of that variant."""
    if not re.fullmatch(r"\w[\w-]*", variant):
        raise InputError(f"variant={variant!r} is no word")
    if not any(folder.glob(f"*/*.{variant}.*")) and not any(folder.glob(f"*/*.{variant}-*")):
        raise InputError(f"{folder}: no weights of variant={variant!r} in it, as "
                         f"unet/diffusion_pytorch_model.{variant}.safetensors")


def _dtype_of(part: str, dtype: torch.dtype | dict[str, torch.dtype]) -> torch.dtype:
    """The precision of a part; under float16 the VAE keeps float32 unless it is named."""
    if isinstance(dtype, dict):
        default = dtype.get("default", torch.float32)
        return dtype.get(part, vae_dtype(default) if part == "vae" else default)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype={dtype!r} is no torch.dtype")
    return vae_dtype(dtype) if part == "vae" else dtype
