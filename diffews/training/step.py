"""One step of training: what the network is shown, and the loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffews.images.tensors import to_pixels
from diffews.models.find import latent_factor
from diffews.models.unet import TIMESTEP, DiffewsUNet
from diffews.variants import Method
from diffews.variants.injection import pool_mask


@dataclass(frozen=True)
class StepInput:
    """What one forward pass of training takes; see `Generation.training_pair` for the first three."""

    query: Tensor  # [B, 4 or 8, h, w]
    timestep: Tensor  # 0-d or [B]
    goal: Tensor  # [B, 4, h, w], minus v: for one step, the target's latents
    images: Tensor  # [B*S, 4, h, w] latents of the supports, or [B*S, 3, S, S] pixels in [-1, 1]
    drawn: Tensor  # what was drawn of their masks, likewise
    shots: int


class TrainingStep(nn.Module):
    """Both passes and the loss inside one forward, as distributed data parallel needs it."""

    def __init__(self, unet: DiffewsUNet, text: Tensor, method: Method) -> None:
        super().__init__()
        self.unet, self.method = unet, method
        self.text: Tensor
        self.register_buffer("text", text, persistent=False)

    def forward(self, step: StepInput) -> Tensor:
        """Mean squared error between the goal and minus the UNet's output (section 4.4; x0 = -v at zero signal).

        Gradients flow through the support pass.
        """
        interaction, injection = self.method.interaction, self.method.injection
        images, drawn = step.images, step.drawn
        if interaction.reads_pixels:
            images = self.unet.encode_images(images)
            drawn = pool_mask(drawn, images.shape[-2:]) if injection.drawn.pooled else self.unet.encode_images(drawn)
        timestep = torch.tensor(TIMESTEP, device=images.device)
        state = interaction.prepare(self.unet, injection.combine(images, drawn), timestep, self.text, step.shots)
        predicted = interaction.segment(self.unet, step.query, step.timestep, self.text, state)
        return F.mse_loss(predicted.float(), step.goal.float())


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, rgb: Tensor, pooled: bool = False) -> Tensor:
    """Mean and standard deviation of the VAE's posterior: uint8 RGB [3, S, S] -> float32 [2, C, h, w].

    One picture at a time, so that cached and fresh latents are the same to the bit. pooled: instead of latents the
    share of a mask under each of them, which `latents` scales back.
    """
    pixels = to_pixels(rgb[None].to(vae.device))
    if pooled:
        side = rgb.shape[-1] // latent_factor(vae.config.block_out_channels)
        shares = pool_mask(pixels, (side, side)).expand(-1, vae.config.latent_channels, -1, -1)
        return torch.cat([shares / vae.config.scaling_factor, torch.zeros_like(shares)])
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    return torch.cat([posterior.mean, posterior.std]).float()
