"""Low-rank additions to a UNet, from files of diffusers, peft, kohya or `train lora=`."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import save_file
from torch import Tensor

from diffews.errors import InputError, refuse, shorten
from diffews.models.hub import HUB_KEYS, resolve
from diffews.models.presence import HeadPresence, NoPresence
from diffews.runtime.files import new_folder, read_json
from diffews.runtime.finite import check_finite

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_CONFIG, PEFT_PREFIX = "adapter_config.json", "base_model.model."
UNET = "unet."
SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora")
METADATA = "lora_adapter_metadata"  # where diffusers looks for the settings in a file


class LoraPipeline(StableDiffusionLoraLoaderMixin):
    """What a pipeline does with adapters; the text is constant, so they are the UNet's alone."""

    presence: NoPresence
    _lora_loadable_modules = ["unet"]
    _replaced: dict[str, Tensor] | None = None  # what a file of `train lora=` took the place of

    def load_lora_weights(
            self, pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
            adapter_name: str | None = None, hotswap: bool = False, **kwargs: Any) -> None:
        """Adds an adapter; other methods of diffusers (set_adapters, fuse_lora, ...) know it then.

        What `train lora=` trained whole, the support stem, takes the place of the UNet's until
        `unload_lora_weights`.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder with one, a hub id
                as `hub:owner/name`, or the tensors by name.
            adapter_name, hotswap: see diffusers.
            kwargs: weight_name of the file in its folder; revision, token, ... for the hub.

        Raises:
            InputError: for a file that is none, or of layers that this UNet does not have.

        """
        try:
            import peft  # noqa: F401
        except ImportError:
            raise InputError("adapters need the package peft; "
                             "install it with pip install 'diffews[lora]'") from None
        given, metadata = pretrained_model_name_or_path_or_dict, None
        name = "the adapter" if isinstance(given, dict) else str(given)
        if not isinstance(given, dict):
            hub = {key: kwargs.pop(key) for key in HUB_KEYS if key in kwargs}
            given = resolve(str(given), ("*.safetensors", PEFT_CONFIG), **hub)
            if not given.exists():
                raise InputError(f"{given}: no such file; what lies on the hub is hub:owner/name")
            metadata = _peft_settings(given)

        with refuse(f"{name} is no file of low-rank additions"):
            state, alphas, own = self.lora_state_dict(
                dict(given) if isinstance(given, dict) else str(given), use_safetensors=True,
                return_lora_metadata=True, **kwargs)
        state = {UNET + key.removeprefix(PEFT_PREFIX).removeprefix(UNET): tensor
                 for key, tensor in state.items() if not key.startswith("text_encoder")}
        own = {UNET + key.removeprefix(UNET): value for key, value in (own or {}).items()}
        whole = {key: state.pop(key) for key in list(state) if "lora" not in key}
        self._check_additions(name, state, whole)

        with refuse(f"{name} does not load"):
            self.load_lora_into_unet(
                state, alphas, self.unet, adapter_name, _pipeline=self, hotswap=hotswap,
                metadata=own or metadata)
        self._replace(whole)

        # a presence head knows the weights as they were
        if isinstance(self.presence, HeadPresence):
            warnings.warn("the presence head is of the weights without the adapter, and is not "
                          "asked any more", stacklevel=2)
            self.presence = NoPresence()

    def fuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Adds adapters into the weights; see diffusers."""
        super().fuse_lora(list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Undoes `fuse_lora`."""
        super().unfuse_lora(list(components), **kwargs)

    def unload_lora_weights(self) -> None:
        """Takes all adapters away, and what came whole with them."""
        super().unload_lora_weights()
        self._replace(self._replaced or {})
        self._replaced = None

    def _check_additions(
            self, name: str, state: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
        """Raises InputError for layers and tensors that the UNet does not have."""
        if not state:
            raise InputError(f"{name} holds no additions to a UNet (unet.*.lora_A.weight)")
        check_finite({**state, **whole}.items(), name, "it is damaged")
        layers = {layer.replace(".base_layer", "") for layer, _ in self.unet.named_modules()}
        for key in state:
            layer = key.removeprefix(UNET).partition(".lora")[0].partition(".processor")[0]
            if layer not in layers:
                raise InputError(f"{name}: {shorten(key)} is of a layer that this UNet has not")

        known = self._own_tensors()
        for key, tensor in whole.items():
            own = known.get(key.removeprefix(UNET))
            if own is None or own.shape != tensor.shape:
                raise InputError(f"{name}: {shorten(key)} is no low-rank addition, and no tensor "
                                 "of this UNet")
        if whole and self._replaced:
            raise InputError(f"{name} replaces {shorten(next(iter(whole)))}, as an adapter before "
                             "did; call unload_lora_weights() first")

    def _own_tensors(self) -> dict[str, Tensor]:
        return {name.replace(".base_layer", ""): tensor
                for name, tensor in self.unet.state_dict().items() if ".lora_" not in name}

    @torch.no_grad()
    def _replace(self, whole: dict[str, Tensor]) -> None:
        known = self._own_tensors()
        before = {key: known[key.removeprefix(UNET)].clone() for key in whole}
        for key, tensor in whole.items():
            known[key.removeprefix(UNET)].copy_(tensor)
        self._replaced = before or self._replaced


def _peft_settings(place: Path) -> dict[str, Any] | None:
    """Reads peft's settings beside its weights, as diffusers takes them; None where none are."""
    file = (place if place.is_dir() else place.parent) / PEFT_CONFIG
    if not file.is_file():
        return None
    settings = read_json(file)
    return {UNET + name: settings[name] for name in SETTINGS if settings.get(name) is not None}


def save_lora(tensors: dict[str, Tensor], rank: int, layers: list[str], folder: Path) -> None:
    """Writes a new folder with a file that `load_lora_weights` reads.

    tensors: low-rank additions and what was trained whole, by their names in the UNet.
    """
    check_finite(tensors.items(), f"{folder}, not written", "training went astray")
    settings = {"r": rank, "lora_alpha": rank, "target_modules": layers}
    metadata = {METADATA: json.dumps({UNET + name: value for name, value in settings.items()})}
    with new_folder(folder) as partial:
        named = {UNET + name: tensor.detach().cpu().contiguous()
                 for name, tensor in tensors.items()}
        save_file(named, partial / LORA_FILE, {"format": "pt", **metadata})
