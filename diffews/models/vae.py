"""Latents in and out, of the base's VAE or of a small one (AutoencoderTiny) in its place."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor


MOST_PIXELS = 8 * 512 * 512  # of one call; more fill no GPU better, and take memory
FACTOR = 8  # pixels of a latent's side, at most


def encode_latents(vae: AutoencoderKL | AutoencoderTiny, images: Tensor) -> Tensor:
    """Encodes images into scaled latents; of AutoencoderKL's posterior, the mean.

    images: RGB [B, 3, H, W] in [-1, 1] -> [B, 4, H/f, W/f], f as `latent_factor` says.
    """
    return in_chunks(lambda part: encode_at_once(vae, part), images, images[0, 0].numel())


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Decodes scaled latents [B, 4, H/f, W/f] -> RGB [B, 3, H, W] in about [-1, 1]."""
    pixels = latents[0, 0].numel() * FACTOR**2
    return in_chunks(lambda part: decode_at_once(vae, part), latents, pixels)


def encode_at_once(vae: AutoencoderKL | AutoencoderTiny, images: Tensor) -> Tensor:
    """Does what `encode_latents` does in one call, whatever the batch, as an export needs it."""
    encoded = vae.encode(images)
    # AutoencoderTiny has no posterior, and its latents are scaled already: its factor is 1
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return latents * vae.config.scaling_factor


def decode_at_once(vae: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Does what `decode_latents` does in one call."""
    return vae.decode(latents / vae.config.scaling_factor).sample


def encode_distinct(
        encode: Callable[[Tensor], Tensor], pictures: Tensor, numbers: list[int]) -> Tensor:
    """Encodes each picture once: [B, 3, H, W] -> [B, 4, h, w].

    numbers: B, the same for the same picture.
    """
    order = list(dict.fromkeys(numbers))
    firsts = torch.tensor([numbers.index(number) for number in order])
    rows = torch.tensor([order.index(number) for number in numbers])

    # a list as an index would be waited for
    firsts, rows = (x.to(pictures.device, non_blocking=True) for x in (firsts, rows))
    return encode(pictures[firsts])[rows]


def in_chunks(run: Callable[[Tensor], Tensor], inputs: Tensor, pixels: int) -> Tensor:
    """Runs half of a VAE on [B, ...], at most `MOST_PIXELS` at once.

    pixels: of one picture. A batch that fits is one call.
    """
    parts = inputs.split(max(1, MOST_PIXELS // pixels))
    found = [run(part) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found)
