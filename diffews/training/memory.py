"""What training takes of a GPU's memory, counted, and whether it must compute activations again."""

import sys
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from diffews.models.unet import DiffewsUNet

if TYPE_CHECKING:
    from diffews.cli.training_settings import TrainConfig

TO_SPARE = 0.9  # share of the free memory that is counted on; workspaces take of the rest
MOMENTS = {"adamw": 8, "adamw8bit": 2}  # bytes that the optimizer keeps of a parameter

# bytes that the backward pass needs, of the query and of a support, for each channel of each token
# in one level of the UNet; so much tests/dry_run counts on Stable Diffusion 2.1's shapes
KEPT = {"no": (1540, 910), "fp16": (855, 505), "bf16": (855, 505)}
KEPT_BY_DECODER = 24_200  # of a pixel, by the base's decoder in fp32, for the pixel loss


def settle_checkpointing(
    config: "TrainConfig", unet: DiffewsUNet, side: int, accelerator: Accelerator
) -> bool:
    """Returns whether activations are computed again in the backward pass.

    side: of a latent. `checkpointing=auto` says yes on a GPU that would be too small without.
    """
    device = accelerator.device
    if isinstance(config.checkpointing, bool):
        return config.checkpointing
    if device.type != "cuda":
        return False

    need = training_bytes(config, unet, side, accelerator.mixed_precision)
    free = torch.cuda.mem_get_info(device)[0]
    is_needed = need > TO_SPARE * free
    if is_needed and accelerator.is_main_process:
        print(f"diffews: checkpointing=true, since {need / 1e9:.1f} GB are counted without, "
              f"and {free / 1e9:.1f} are free", file=sys.stderr)
    return is_needed


def training_bytes(
    config: "TrainConfig", unet: DiffewsUNet, side: int, precision: str
) -> int:
    """Counts the largest memory of a step without checkpointing, without the frozen VAE.

    Args:
        config: its batch, shots, optimizer, ema and pixel loss.
        unet: with `requires_grad` as it trains.
        side: of a latent.
        precision: "no", "fp16" or "bf16", as accelerate calls it.

    """
    sizes = [(weight.numel(), weight.requires_grad) for weight in unet.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)

    # weights, and their copies in half precision; gradients, moments, average
    weights = total * (4 if precision == "no" else 6)
    learned = trained * (4 + MOMENTS[config.optimizer] + 4 * bool(config.ema))

    # every level has a quarter of the tokens of the one before
    widths = unet.config.block_out_channels
    channels = sum(width * (side // 2**level) ** 2 for level, width in enumerate(widths))
    of_query, of_support = KEPT[precision]
    kept = config.batch * channels * (of_query + config.shots * of_support)
    if config.pixel_loss and config.decoder is None:
        kept += config.batch * config.image_size**2 * KEPT_BY_DECODER
    return weights + learned + kept
