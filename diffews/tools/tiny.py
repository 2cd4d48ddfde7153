"""The tiny base: a VAE small enough to ship, trained from nothing on training images and masks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from diffews.errors import InputError
from diffews.images.files import list_images, open_mask, open_rgb
from diffews.images.paint import render_masks, to_pixels
from diffews.models.unet import DiffewsUNet
from diffews.models.weights import save_text
from diffews.runtime.device import exact_arithmetic
from diffews.runtime.files import new_folder, write_atomic
from diffews.runtime.finite import check_finite

if TYPE_CHECKING:
    from diffews.cli.tool_settings import TinyBaseConfig

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 16, 32), "layers_per_block": 1, "mid_block_add_attention": False,
    "latent_channels": 4, "sample_size": 64,
    "norm_num_groups": 1}  # eight groups on eight channels are instance norm, and colour is lost
UNET = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "in_channels": 4, "out_channels": 4, "sample_size": 16,
    "cross_attention_dim": 32, "use_linear_projection": True,
    "attention_head_dim": 2}  # in diffusers this is the number of heads
IMAGE_ENCODER = {  # only interaction=cross_attention trains it
    "hidden_size": 64, "intermediate_size": 128, "projection_dim": UNET["cross_attention_dim"],
    "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64, "patch_size": 8,
    "hidden_act": "gelu"}
TEXT_SHAPE = (1, 2, 32)  # tokens, channels; the same in training and evaluation
CROP = 32  # side of the training crops in pixels
MASK_SHARE = 0.25  # of a batch; the rest are images
KL_WEIGHT = 1e-5
# peak learning rate, and whether coarse colour counts in the loss
STAGES = ((5e-3, False), (3e-3, True))


def make_tiny_base(config: "TinyBaseConfig", out: Path) -> None:
    """Writes a base: a VAE that it trains (stored in float16) and a fixed random text.

    Of the UNet and the image encoder it writes config.json: they start from nothing.
    out: the folder to write; must not exist.
    """
    exact_arithmetic(threads=1)
    torch.manual_seed(config.seed)
    images, classes = read_training_set(Path(config.data))

    vae = AutoencoderKL(**VAE).to(memory_format=torch.channels_last)
    with torch.no_grad():  # a narrow posterior to begin with
        vae.quant_conv.weight[VAE["latent_channels"] :] = 0
        vae.quant_conv.bias[VAE["latent_channels"] :] = -5
    train_vae(vae, images, classes, config)
    vae.eval().register_to_config(scaling_factor=measure_scaling(vae, images, classes))

    check_finite(vae.half().named_parameters(), f"{out}, not written")
    with new_folder(out) as folder:
        vae.half().save_pretrained(folder / "vae")
        DiffewsUNet(**UNET).save_config(folder / "unet")
        settings = json.dumps(IMAGE_ENCODER, indent=1) + "\n"
        write_atomic(folder / "image_encoder" / "config.json", settings)
        text = torch.randn(TEXT_SHAPE)
        save_text({"eval": text, "train": text.clone()}, folder)


def read_training_set(data: Path) -> tuple[Tensor, Tensor]:
    """Reads COCO2014/train2014: images uint8 [N, 3, H, W] and class maps uint8 [N, H, W]."""
    folder, maps = data / "COCO2014" / "train2014", data / "COCO2014" / "annotations" / "train2014"
    files = list_images(folder) if folder.is_dir() else []
    if not files:
        raise InputError(
            f"data={data}: no pictures in COCO2014/train2014; make some with `diffews make-shapes`")
    images = np.stack([np.asarray(open_rgb(file)) for file in files])
    classes = np.stack([open_mask(maps / f"{file.stem}.png") for file in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(classes)


@torch.no_grad()
def measure_scaling(vae: AutoencoderKL, images: Tensor, classes: Tensor, count: int = 200) -> float:
    """Returns 1 / standard deviation of the latents of the first `count` images and masks."""
    masks = one_class(classes[:count], np.random.default_rng(0))
    pixels = torch.cat([to_pixels(images[:count]), render_masks(masks)])
    return float(1 / vae.encode(pixels).latent_dist.mode().std())


def train_vae(
    vae: AutoencoderKL, images: Tensor, classes: Tensor, config: "TinyBaseConfig"
) -> None:
    """Trains the VAE to give back crops of images and painted masks, in the stages of `STAGES`.

    images: uint8 [N, 3, H, W]. classes: their class maps, uint8 [N, H, W].
    """
    generator = np.random.default_rng(config.seed)
    mask_count = round(config.batch * MASK_SHARE)
    bar = tqdm(total=config.steps * len(STAGES), unit="step")
    for peak, coarse_colour in STAGES:
        optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, weight_decay=0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, config.steps, pct_start=0.1)

        for _ in range(config.steps):
            # a batch of painted masks, then images; all are cropped at one place
            chosen = torch.from_numpy(generator.integers(0, len(images), config.batch))
            masks = one_class(classes[chosen[:mask_count]], generator)
            pixels = torch.cat([render_masks(masks), to_pixels(images[chosen[mask_count:]])])
            top, left = generator.integers(0, (pixels.shape[-1] - CROP) // 4 + 1, 2) * 4
            pixels = pixels[:, :, top : top + CROP, left : left + CROP]  # [B, 3, CROP, CROP]
            pixels = pixels.contiguous(memory_format=torch.channels_last)

            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
            loss = F.mse_loss(decoded, pixels) + 0.2 * F.l1_loss(decoded, pixels)
            if coarse_colour:  # a plain mean squared error learns colour very late
                small, true = F.avg_pool2d(decoded, 4), F.avg_pool2d(pixels, 4)
                chroma, true_chroma = (
                    x[mask_count:] - x[mask_count:].mean(1, keepdim=True) for x in (small, true))
                loss = loss + 3 * F.mse_loss(small, true) + 3 * F.mse_loss(chroma, true_chroma)
            kl = posterior.kl().mean() / posterior.mean[0].numel()

            optimizer.zero_grad()
            (loss + KL_WEIGHT * kl).backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()

            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            bar.update()
    bar.close()


def one_class(classes: Tensor, generator: np.random.Generator) -> Tensor:
    """Returns the mask of one class that each class map holds.

    classes: [B, H, W], 0 is background -> uint8 {0, 1} [B, H, W].
    """
    masks = []
    for class_map in classes:
        present = class_map[class_map > 0].unique()
        masks.append((class_map == present[int(generator.integers(len(present)))]).to(torch.uint8))
    return torch.stack(masks)
