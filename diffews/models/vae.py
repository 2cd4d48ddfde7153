"""Latents in and out, of the base's VAE or of a small one (AutoencoderTiny) in its place."""

from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor


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
