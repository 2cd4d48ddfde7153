"""Latents in and out, of the base's VAE or of a small one (AutoencoderTiny) in its place."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor


MOST_PIXELS = 8 * 512 * 512  # of one call; more fill no GPU better, and take memory


def in_chunks(run: Callable[[Tensor], Tensor], inputs: Tensor, pixels: int) -> Tensor:
    """Runs a VAE's half on [B, ...], at most `MOST_PIXELS` at once; pixels: of one picture.

    A group that fits is one call, on `inputs` themselves: slices may round otherwise.
    """
    count = max(1, MOST_PIXELS // pixels)
    if len(inputs) <= count:
        return run(inputs)
    return torch.cat([run(part) for part in inputs.split(count)])


def encode_latents(vae: AutoencoderKL | AutoencoderTiny, images: Tensor) -> Tensor:
    """Encodes images into scaled latents; of AutoencoderKL's posterior, the mean.

    images: RGB [B, 3, H, W] in [-1, 1] -> [B, 4, H/f, W/f], f as `latent_factor` says.
    """
    encoded = vae.encode(images)
    # AutoencoderTiny has no posterior, and its latents are scaled already: its factor is 1
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return latents * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Decodes scaled latents [B, 4, H/f, W/f] -> RGB [B, 3, H, W] in about [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample
