"""The loss on the decoded mask, beside the one on latents. Off by default: the paper has none.

A latent's error says little about the mask: what lies far from the edge costs as much as what
turns a pixel over, and nothing tells the network where the threshold will be. So the prediction is
decoded by a frozen decoder, as evaluation does it, and held against the query's mask:

    p = (mean over RGB of the decoded prediction + 1) / 2     not clamped, about 0 .. 1
    x = 8 (p - 0.5)                                           a logit, 0 halfway from black to white
    loss = mean squared error on latents + weight * (BCE(x, mask) + 1 - Dice(sigmoid(x), mask))

The cross-entropy is per pixel; Dice is per episode, so that small objects count as much as large
ones. Nothing is clamped, so that pixels which are wrong and sure of it keep a gradient. The slope 8
puts white (p = 1) at a logit of 4, which is sure (0.98) and still has a gradient. The boundary that
is learned lies at half of white, which is why such weights are recorded with threshold 0.5.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from diffews.models.find import DEFAULT_THRESHOLD, hash_vae
from diffews.models.vae import decode_latents
from diffews.models.weights import load_small_vae
from diffews.training.step import Loss, StepInput, latent_loss

if TYPE_CHECKING:
    from diffews.cli.training_settings import TrainConfig

SLOPE = 8.0  # of the logit in p
SMOOTHING = 1.0  # pixels that Dice adds above and below: an empty mask, found empty, costs nothing
THRESHOLD = 0.5  # where the learned boundary lies


@dataclass(frozen=True)
class PixelLoss:
    """Mean squared error on latents, plus the loss on the mask that they decode to.

    Attributes:
        weight: of the loss on the mask.
        decoder: frozen; the base's VAE, or a small one in its place.

    """

    weight: float
    decoder: AutoencoderKL | AutoencoderTiny

    def __call__(self, predicted: Tensor, step: StepInput) -> Tensor:
        """predicted: latents [B, 4, h, w]. Before `pixel_from` a step has no truth."""
        loss = latent_loss(predicted, step)
        if step.truth is None:
            return loss

        # in the decoder's own precision: in half precision Stable Diffusion's overflows
        with torch.autocast(predicted.device.type, enabled=False):
            rgb = decode_latents(self.decoder, predicted.to(self.decoder.dtype))
        return loss + self.weight * mask_loss(rgb.float(), step.truth.float())


def mask_loss(rgb: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy plus Dice of decoded predictions, the mean over episodes.

    Args:
        rgb: [B, 3, H, W] in about [-1, 1].
        truth: masks [B, H, W] of {0., 1.}.

    """
    logits = SLOPE * rgb.mean(1) / 2  # 8 (p - 0.5)
    entropy = F.binary_cross_entropy_with_logits(logits, truth)

    found = torch.sigmoid(logits)
    common, sizes = (found * truth).sum((1, 2)), (found + truth).sum((1, 2))
    dice = (2 * common + SMOOTHING) / (sizes + SMOOTHING)
    return entropy + (1 - dice).mean()


def make_loss(
    config: "TrainConfig", vae: AutoencoderKL, base: Path, checkpointing: bool
) -> Loss:
    """Makes the loss that the config names; its decoder is frozen.

    vae: of the base, whose folder `base` is. checkpointing: also through the decoder. Raises
    InputError for a decoder that does not fit it.
    """
    if not config.pixel_loss:
        return latent_loss
    decoder: AutoencoderKL | AutoencoderTiny = vae
    if config.decoder is not None:
        small = load_small_vae(config.decoder, "decoder", vae, config.allow_bin, hash_vae(base))
        decoder = small.to(vae.device)
    if checkpointing:
        decoder.enable_gradient_checkpointing()
    return PixelLoss(config.pixel_loss, decoder)


def learned_threshold(config: "TrainConfig", step: int) -> float:
    """The threshold to record with weights after so many steps."""
    return THRESHOLD if config.pixel_loss and step > config.pixel_from else DEFAULT_THRESHOLD
