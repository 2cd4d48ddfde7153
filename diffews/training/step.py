"""One step of training: what the network is shown, and the loss."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffews.data.training import TrainingBatch
from diffews.images.paint import to_pixels
from diffews.models.unet import TIMESTEP, DiffewsUNet
from diffews.variants import Method


@dataclass(frozen=True)
class StepInput:
    """What one forward pass of training takes; see `Generation.training_pair` for the first three.

    Attributes:
        query: [B, 4 or 8, h, w].
        timestep: 0-d or [B].
        goal: [B, 4, h, w], minus v: for one step, the target's latents.
        supports: what the injection encodes of the supports, each latents [B*S, 4, h, w], or
            pixels [B*S, 3, H, W] in [-1, 1] where the network itself encodes them.
        masks: the supports' masks [B*S, H, W] in {0, 1}, where the injection reads them.
        shots: S.
        truth: the queries' masks [B, H, W] in {0, 1}, where the loss reads them.

    """

    query: Tensor
    timestep: Tensor
    goal: Tensor
    supports: list[Tensor]
    masks: Tensor | None
    shots: int
    truth: Tensor | None = None


Loss = Callable[[Tensor, StepInput], Tensor]  # of predicted latents [B, 4, h, w]


def latent_loss(predicted: Tensor, step: StepInput) -> Tensor:
    """Mean squared error between the goal and minus the UNet's output (section 4.4)."""
    return F.mse_loss(predicted.float(), step.goal.float())


class TrainingStep(nn.Module):
    """Both passes and the loss inside one forward, as distributed data parallel needs it."""

    def __init__(
        self, unet: DiffewsUNet, text: Tensor, method: Method, loss: Loss = latent_loss
    ) -> None:
        super().__init__()
        self.unet, self.method, self.loss = unet, method, loss
        self.text: Tensor
        self.register_buffer("text", text, persistent=False)

    def forward(self, step: StepInput) -> Tensor:
        """Returns the loss of a batch.

        Gradients flow through the support pass; at zero signal the clean latent is x0 = -v.
        """
        interaction, supports = self.method.interaction, step.supports
        if interaction.reads_pixels:
            supports = [self.unet.encode_images(pixels) for pixels in supports]

        # the support pass is always at the timestep of the one step
        support = self.method.injection.join(supports, step.masks)
        timestep = torch.full((), TIMESTEP, device=step.query.device)  # nothing is uploaded
        state = interaction.prepare(self.unet, support, timestep, self.text, step.shots)

        predicted = interaction.segment(self.unet, step.query, step.timestep, self.text, state)
        return self.loss(predicted, step)


def encode_batch(
    batch: TrainingBatch, vae: AutoencoderKL, method: Method, draws: Sequence[np.random.Generator],
    noise: Tensor | None,
) -> StepInput:
    """Encodes a batch, and draws the timesteps and noise of its generation.

    Args:
        batch: B episodes of S supports.
        vae: frozen; it encodes where the injection's images go to the VAE.
        method: the variant's four objects.
        draws: a generator for each episode, which the generation takes.
        noise: of the posteriors of query, target, supports and painted masks, in this order,
            whichever of them are encoded: [B, 2 + 2*S, 4, h, w]. None takes the means.

    """
    sizes = [1, 1, batch.shots, batch.shots]
    parts: Sequence[Any] = [None] * 4 if noise is None else noise.split(sizes, dim=1)
    query = _sample_latents(vae, batch.query[:, None], parts[0])  # [B, 4, h, w]
    target = _sample_latents(vae, batch.target[:, None], parts[1])
    pair = method.generation.training_pair(query, target, draws)

    # what the injection encodes of the supports: latents, or pixels for the network's own encoder
    supports = []
    for images, part in ((batch.supports, parts[2]), (batch.painted, parts[3])):
        if images is not None and method.interaction.reads_pixels:
            pixels = torch.cat([*images]).to(vae.device, non_blocking=True)
            supports.append(to_pixels(pixels))  # [B*S, 3, H, W]
        elif images is not None:
            supports.append(_sample_latents(vae, images, part))  # [B*S, 4, h, w]
    masks, truth = (part if part is None else part.to(vae.device, non_blocking=True)
                    for part in (batch.masks, batch.truth))
    masks = masks if masks is None else masks.flatten(0, 1)
    return StepInput(*pair, supports, masks, batch.shots, truth)


def _sample_latents(
    vae: AutoencoderKL, images: Iterable[Tensor], noise: Tensor | None
) -> Tensor:
    """Scaled latents of B episodes' images, each pixels [N, 3, H, W] or moments [N, 2, 4, h, w].

    Returns them as [B*N, 4, h, w].
    """
    moments = torch.cat([
        torch.stack([encode_moments(vae, rgb) for rgb in part])
        if part.dtype == torch.uint8 else part.to(vae.device, non_blocking=True)
        for part in images])
    latents, deviation = moments.unbind(1)
    if noise is not None:
        latents = latents + deviation * noise.flatten(0, 1).to(vae.device, non_blocking=True)
    return latents * vae.config.scaling_factor


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, rgb: Tensor) -> Tensor:
    """Mean and standard deviation of the VAE's posterior: uint8 RGB [3, S, S] -> [2, C, h, w].

    One image at a time, so that cached and fresh latents are the same to the bit; float32.
    """
    pixels = to_pixels(rgb[None].to(vae.device, non_blocking=True)).to(vae.dtype)
    posterior = vae.encode(pixels).latent_dist
    return torch.cat([posterior.mean, posterior.std]).float()
