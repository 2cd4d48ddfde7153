"""One step of training: what the network is shown, and the loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

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

    """

    query: Tensor
    timestep: Tensor
    goal: Tensor
    supports: list[Tensor]
    masks: Tensor | None
    shots: int


class TrainingStep(nn.Module):
    """Both passes and the loss inside one forward, as distributed data parallel needs it."""

    def __init__(self, unet: DiffewsUNet, text: Tensor, method: Method) -> None:
        super().__init__()
        self.unet, self.method = unet, method
        self.text: Tensor
        self.register_buffer("text", text, persistent=False)

    def forward(self, step: StepInput) -> Tensor:
        """Mean squared error between the goal and minus the UNet's output (section 4.4).

        Gradients flow through the support pass; at zero signal the clean latent is x0 = -v.
        """
        interaction, supports = self.method.interaction, step.supports
        if interaction.reads_pixels:
            supports = [self.unet.encode_images(pixels) for pixels in supports]

        # the support pass is always at the timestep of the one step
        support = self.method.injection.join(supports, step.masks)
        timestep = torch.tensor(TIMESTEP, device=step.query.device)
        state = interaction.prepare(self.unet, support, timestep, self.text, step.shots)

        predicted = interaction.segment(self.unet, step.query, step.timestep, self.text, state)
        return F.mse_loss(predicted.float(), step.goal.float())


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, rgb: Tensor) -> Tensor:
    """Mean and standard deviation of the VAE's posterior: uint8 RGB [3, S, S] -> [2, C, h, w].

    One picture at a time, so that cached and fresh latents are the same to the bit; float32.
    """
    posterior = vae.encode(to_pixels(rgb[None].to(vae.device)).to(vae.dtype)).latent_dist
    return torch.cat([posterior.mean, posterior.std]).float()
