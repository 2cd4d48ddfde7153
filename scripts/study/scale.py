"""Counts what training costs at Stable Diffusion 2.1's size; nothing is computed.

python scripts/study/scale.py [image_size]

TFLOP of one episode in training, a multiply-add being two: what the VAE encodes, both passes of
the UNet forward and back, without and with checkpointing, and the pixel loss's decoder forward and
back (the base's, or a small one of AutoencoderTiny's default size). Hours: docs/training.md.
"""

import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from diffews.data.training import TrainingBatch
from diffews.models.unet import DiffewsUNet
from diffews.models.vae import decode_latents
from diffews.tools.arithmetic import count_tflop
from diffews.tools.timing import SD21
from diffews.training.step import TrainingStep, encode_batch
from diffews.variants import Variant

FACTOR = 8  # side of a picture over that of its latent


def count_training(unet: DiffewsUNet, vae: AutoencoderKL, shots: int, size: int) -> list[float]:
    """TFLOP of the VAE's encoding, of the step, and of the step with checkpointing."""
    picture = torch.zeros(1, 3, size, size, dtype=torch.uint8, device="meta")
    several = picture[:, None].expand(1, shots, 3, size, size)
    batch = TrainingBatch([], [0], shots, picture, picture, several, several)
    method, draws, shown = Variant.read(None).build(), [np.random.default_rng(0)], []
    counts = [count_tflop(lambda: shown.append(encode_batch(batch, vae, method, draws, None)))]

    text = torch.zeros(1, 77, unet.config.cross_attention_dim, device="meta")
    step = TrainingStep(unet, text, method)
    unet.disable_gradient_checkpointing()
    counts.append(count_tflop(lambda: step(shown[0]).backward()))
    unet.enable_gradient_checkpointing()
    return [*counts, count_tflop(lambda: step(shown[0]).backward())]


def count_decoder(decoder: AutoencoderKL | AutoencoderTiny, size: int) -> float:
    """TFLOP of the pixel loss's decoding, forward and back."""
    side = size // FACTOR
    latents = torch.zeros(1, 4, side, side, device="meta", requires_grad=True)
    return count_tflop(lambda: decode_latents(decoder, latents).sum().backward())


def main(size: int = 512) -> None:
    """Prints the counts."""
    with torch.device("meta"):
        unet = DiffewsUNet.from_config(SD21["unet"]).train()
        vae = AutoencoderKL.from_config(SD21["vae"]).eval().requires_grad_(False)
        small = AutoencoderTiny().eval().requires_grad_(False)

    print("| shots | VAE encodes | step | step, checkpointing |\n|---|---|---|---|")
    for shots in (1, 4, 7):
        counts = count_training(unet, vae, shots, size)
        print(f"| {shots} | " + " | ".join(f"{count:.2f}" for count in counts) + " |")
    print(f"pixel loss, base's decoder: {count_decoder(vae, size):.2f}")
    print(f"pixel loss, small decoder: {count_decoder(small, size):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
