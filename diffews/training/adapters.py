"""What trains when not every weight does: LoRA on the attention layers, and the weights that are published from it."""

from typing import Any

import torch
from torch import Tensor, nn

from diffews.errors import InputError
from diffews.models.unet import DiffewsUNet

LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # of self- and cross-attention


def add_lora(unet: DiffewsUNet, rank: int) -> None:
    """Freezes the UNet but for low-rank additions to its attention layers and the new stem `conv_in_ref`."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("lora= needs the package peft; install it with pip install 'diffews[lora]'") from None
    encoder = getattr(unet, "image_encoder", None)  # one that starts from nothing trains whole
    whole = [] if encoder is None else [p for p in encoder.parameters() if p.requires_grad]
    unet.requires_grad_(False)
    for parameter in whole:
        parameter.requires_grad_(True)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))
    unet.conv_in_ref.requires_grad_(True)


def make_optimizer(name: str, parameters: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """Returns torch's AdamW, or bitsandbytes' AdamW with 8-bit state."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            "optimizer=adamw8bit needs bitsandbytes; install it with pip install 'diffews[8bit]'"
        ) from None
    return AdamW8bit(parameters, **settings)


@torch.no_grad()
def merged_state(unet: DiffewsUNet) -> dict[str, Tensor]:
    """Returns the UNet's weights under their plain names, on the CPU, with low-rank additions added in."""
    deltas = {
        f"{name}.weight": module.get_delta_weight("default")
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    state = {
        name.replace(".base_layer", ""): tensor for name, tensor in unet.state_dict().items() if ".lora_" not in name
    }
    return {name: (tensor + deltas[name] if name in deltas else tensor).cpu() for name, tensor in state.items()}


def plain_unet(unet: DiffewsUNet) -> DiffewsUNet:
    """Returns a UNet of the same weights without adapters, to be saved."""
    plain = type(unet).from_config(unet.config)
    plain.load_state_dict(merged_state(unet))
    return plain
