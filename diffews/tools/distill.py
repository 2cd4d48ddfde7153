"""A small decoder that imitates a VAE's decoder on masks; needs no images (distill-decoder)."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from diffews.images.files import find_masks, open_mask
from diffews.images.paint import render_masks
from diffews.models.find import hash_vae, refuse_pickles, write_record
from diffews.models.vae import decode_latents, encode_latents
from diffews.models.weights import load_vae
from diffews.runtime.device import exact_arithmetic, memory_advice, pick_device
from diffews.runtime.files import new_folder, versions
from diffews.runtime.finite import check_finite

if TYPE_CHECKING:
    from diffews.cli.tool_settings import DistillConfig

MIXED = 0.5  # share of a batch that is a mix of two masks' latents
NOISE = 0.5  # most noise on latents of standard deviation 1; a trained UNet misses by 0.2 to 0.5
COUNTED = 16  # side of the latent whose decoding is counted in multiply-adds


def distill_decoder(config: "DistillConfig", base: Path, out: Path) -> tuple[int, int]:
    """Trains the decoder and writes `out`: config.json, weights in float16, and diffews.json.

    base: the folder of the VAE that is imitated. out: the folder to write; must not exist.

    Returns the multiply-adds of the VAE's decoder and of the small one on a latent of 16 x 16.
    """
    exact_arithmetic(config.threads)
    device = pick_device(config.device)
    if not config.allow_bin:
        refuse_pickles(base / "vae")
    vae = load_vae(base, torch.float32).to(device, memory_format=torch.channels_last)

    torch.manual_seed(config.seed)
    small = make_small_vae(vae, config.channels, config.blocks)
    small.to(device, memory_format=torch.channels_last)
    with memory_advice():
        train_decoder(small, vae, config)

    record = {
        "base": str(base),
        "part": "decoder",
        "vae_sha256": hash_vae(base),
        **{name: getattr(config, name) for name in ("image_size", "steps", "seed")},
        "config": asdict(config),
        "versions": versions()}
    check_finite(small.half().named_parameters(), f"{out}, not written", "give a lower lr=")
    with new_folder(out) as folder:
        small.half().save_pretrained(folder)
        write_record(folder, out, record)
    return decoder_multiply_adds(vae), decoder_multiply_adds(small.float())


def make_small_vae(vae: AutoencoderKL, channels: int, blocks: list[int]) -> AutoencoderTiny:
    """Makes an untrained AutoencoderTiny for this VAE's latents.

    Its encoder, which nobody uses, has one channel.
    channels: of every layer of the decoder. blocks: residual blocks at each size, latent's first.
    """
    stages = len(blocks)
    return AutoencoderTiny(
        latent_channels=vae.config.latent_channels,
        decoder_block_out_channels=(channels,) * stages, num_decoder_blocks=tuple(blocks),
        encoder_block_out_channels=(1,) * stages, num_encoder_blocks=(0,) * stages)


def train_decoder(small: AutoencoderTiny, vae: AutoencoderKL, config: "DistillConfig") -> None:
    """Trains the small decoder towards the VAE's decoding of what a UNet may predict for masks."""
    next_mask = mask_source(config)
    generator = np.random.default_rng(config.seed)
    noise = torch.Generator().manual_seed(config.seed)  # on the CPU: the same on every device

    small.train().encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(small.decoder.parameters(), lr=config.lr, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, config.steps, pct_start=0.1)

    with tqdm(total=config.steps, unit="step") as bar:
        for _ in range(config.steps):
            masks = [next_mask(config.image_size, generator) for _ in range(config.batch)]
            latents, target = lesson(vae, torch.from_numpy(np.stack(masks)), noise)
            loss = imitation_loss(decode_latents(small, latents), target)

            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(small.decoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()

            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            bar.update()
    small.eval()


@torch.no_grad()
def lesson(vae: AutoencoderKL, masks: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns latents as a UNet predicts them, mixed and noisy, and how the VAE decodes them.

    masks: {0, 1} [B, H, W] -> scaled latents [B, 4, H/f, W/f], and RGB [B, 3, H, W] clamped to
    [-1, 1], as it is before the threshold.
    """
    images = render_masks(masks).to(vae.device, memory_format=torch.channels_last)
    latents = encode_latents(vae, images)
    weight, strength, chance = torch.rand(3, len(latents), 1, 1, 1, generator=noise).to(vae.device)

    # an unsure UNet predicts the mean of several masks, and every UNet misses by a little
    mixed = torch.where(chance < MIXED, weight, 0)
    latents = latents + mixed * (latents.roll(1, 0) - latents)
    normal = torch.randn(latents.shape, generator=noise).to(vae.device)
    latents = latents + NOISE * strength * normal
    return latents, decode_latents(vae, latents).clamp(-1, 1)


def imitation_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Squared plus absolute difference of two decodings [B, 3, H, W].

    Going beyond a target of -1 or 1 costs nothing: it is clamped before the threshold.
    """
    error = decoded - target
    error = error.masked_fill((target.abs() >= 1) & (error * target > 0), 0)
    return error.square().mean() + error.abs().mean()


def mask_source(config: "DistillConfig") -> Callable[[int, np.random.Generator], np.ndarray]:
    """Returns a function (size, generator) -> mask uint8 {0, 1} (size, size).

    It crops one of the PNGs of the key `masks`, or makes shapes up where that is None.
    """
    if config.masks is None:
        return random_mask
    files = find_masks(Path(config.masks))
    return lambda size, generator: crop_mask(
        open_mask(files[generator.integers(len(files))]), size, generator)


def crop_mask(classes: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Takes one of a class map's values as foreground, and a random square of it.

    classes: (H, W), 0 is background -> uint8 {0, 1} (size, size).
    """
    present = np.unique(classes[classes > 0])
    mask = (classes == generator.choice(present)) if len(present) else np.zeros_like(classes)
    side = int(generator.integers(min(size, *mask.shape), min(mask.shape) + 1))
    top, left = (int(generator.integers(length - side + 1)) for length in mask.shape)
    square = mask[top : top + side, left : left + side].astype(np.uint8)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST)


def random_mask(size: int, generator: np.random.Generator) -> np.ndarray:
    """Makes up a mask of one to four polygons, ellipses, strokes or blobs, some of them holes.

    Returns uint8 {0, 1} (size, size).
    """
    mask = np.zeros((size, size), np.uint8)
    for number in range(generator.integers(1, 5)):
        fill = int(number == 0 or generator.random() < 0.7)
        center = generator.uniform(0, size, 2)
        radius = size * 0.5 ** generator.uniform(1, 4.5)
        kind = generator.integers(4)

        if kind == 0:  # a polygon
            angles = np.sort(generator.uniform(0, 2 * np.pi, generator.integers(3, 10)))
            rays = radius * generator.uniform(0.5, 1.2, (len(angles), 1))
            points = center + rays * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(mask, [points.round().astype(np.int32)], fill)

        elif kind == 1:  # an ellipse
            axes = (radius * generator.uniform(0.3, 1, 2)).round().astype(int).tolist()
            middle, turn = center.astype(int).tolist(), generator.uniform(0, 180)
            cv2.ellipse(mask, middle, axes, turn, 0, 360, fill, -1)

        elif kind == 2:  # a stroke
            points = center + generator.uniform(-2, 2, (generator.integers(2, 5), 2)) * radius
            thickness = int(generator.integers(1, 2 + size // 10))
            cv2.polylines(mask, [points.round().astype(np.int32)], False, fill, thickness)

        else:  # blobs
            field = generator.normal(size=(generator.integers(3, 9),) * 2).astype(np.float32)
            field = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
            mask[field > np.quantile(field, generator.uniform(0.5, 0.95))] = fill
    return mask


@torch.no_grad()
def decoder_multiply_adds(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Counts the multiply-adds of decoding one latent of 16 x 16."""
    shape = (1, vae.config.latent_channels, COUNTED, COUNTED)
    latents = torch.zeros(shape, device=vae.device, dtype=vae.dtype)
    with FlopCounterMode(display=False) as counter:
        decode_latents(vae, latents)
    return counter.get_total_flops() // 2
