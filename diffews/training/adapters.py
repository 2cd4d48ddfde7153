"""What trains when not every weight does, low-rank additions, and the UNet published from it."""

from typing import Any

import torch
from torch import Tensor, nn

from diffews.errors import InputError
from diffews.models.unet import DiffewsUNet

LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # of self- and cross-attention


def add_lora(unet: DiffewsUNet, rank: int) -> None:
    """Freezes all but low-rank additions to attention, the new stem, and an image encoder."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("lora= needs the package peft; "
                         "install it with pip install 'diffews[lora]'") from None
    encoder = getattr(unet, "image_encoder", None)  # one that starts from nothing trains whole
    whole = [] if encoder is None else [p for p in encoder.parameters() if p.requires_grad]

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))
    unet.conv_in_ref.requires_grad_(True)
    for parameter in whole:
        parameter.requires_grad_(True)


def trained_tensors(unet: DiffewsUNet) -> dict[str, Tensor]:
    """Returns low-rank additions and what trains whole beside them, as files name them."""
    return {name.replace(".default.", "."): weight
            for name, weight in unet.named_parameters() if weight.requires_grad}


def make_optimizer(
    name: str, parameters: list[nn.Parameter], is_gpu: bool = False, **settings: Any
) -> torch.optim.Optimizer:
    """Returns torch's AdamW, or bitsandbytes' AdamW with 8-bit state.

    is_gpu: one kernel changes all weights, without a copy of them in between; it rounds otherwise.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=is_gpu or None, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError("optimizer=adamw8bit needs bitsandbytes; "
                         "install it with pip install 'diffews[8bit]'") from None
    return AdamW8bit(parameters, **settings)


@torch.no_grad()
def plain_unet(unet: DiffewsUNet) -> DiffewsUNet:
    """Returns a UNet on the CPU without adapters: low-rank additions are added to the weights."""
    deltas = {f"{name}.weight": module.get_delta_weight("default")
              for name, module in unet.named_modules() if hasattr(module, "get_delta_weight")}
    weights = {name.replace(".base_layer", ""): weight
               for name, weight in unet.state_dict().items() if ".lora_" not in name}

    plain = type(unet).from_config(unet.config)
    plain.load_state_dict({name: weight + deltas[name] if name in deltas else weight
                           for name, weight in weights.items()})
    return plain
