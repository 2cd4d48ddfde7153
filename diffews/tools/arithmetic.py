"""Arithmetic, counted on shapes alone: a model's twin on the meta device computes nothing."""

import functools
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffews.models.vae import decode_latents
from diffews.pipeline import DiffewsPipeline


def make_twin(pipeline: DiffewsPipeline) -> DiffewsPipeline:
    """Makes a model's twin on torch's meta device, where arithmetic is counted and none is done."""
    with torch.device("meta"):
        parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "encoder", "decoder")}
        copies = {name: part and type(part).from_config(part.config).eval()
                  for name, part in parts.items()}
    text = {name: tensor.to("meta") for name, tensor in pipeline.text.items()}
    twin = DiffewsPipeline(**copies, text=text, image_size=pipeline.config.image_size,
                           variant_keys=pipeline.config.variant_keys)
    return twin


def count_tflop(run: Callable[[], object]) -> float:
    """TFLOP of what runs; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def count_parts(twin: DiffewsPipeline, size: int) -> dict[str, float]:
    """TFLOP of one image of `size` pixels in each part of a model.

    `query_pass_N` reads N supports; `support_pass` reads none, and ends early.
    """
    pixels = torch.zeros(5, 3, size, size, device="meta")
    masks, latents = torch.zeros(5, size, size, device="meta"), twin.encode_images(pixels[:1])
    encoding = count_tflop(lambda: twin.encode_images(pixels[:1]))
    decoding = count_tflop(lambda: decode_latents(twin.decoder or twin.vae, latents))
    support = count_tflop(lambda: twin.encode_support_pixels(pixels[:1], masks[:1], 1))

    parts = {"vae_encode": encoding, "vae_decode": decoding, "support_pass": support - 2 * encoding}
    for shots in (1, 5):
        bank = twin.encode_support_pixels(pixels[:shots], masks[:shots], shots)
        query = count_tflop(functools.partial(twin.segment, pixels[:1], bank, latents))
        parts[f"query_pass_{shots}"] = query - decoding
    return parts
