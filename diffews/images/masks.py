"""Masks at the model's border: mask -> RGB for the VAE, decoded RGB -> mask (protocol: white foreground on black)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diffews.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD_RULES = ("reference", "paper", "absolute")


@dataclass(frozen=True)
class Rendering:
    """A way to paint a mask as a picture that can be encoded.

    draw: RGB (..., 3, H, W) in 0..255 and mask (..., H, W) in {0, 1}, arrays or tensors -> RGB of whole numbers.
    pooled: the VAE does not encode the picture; what is read is the share of the mask under each latent.
    """

    name: str
    draw: Callable[[Any, Any], Any]
    pooled: bool = False

    def __call__(self, rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Paints uint8 pixels (3, H, W) and a uint8 mask (H, W) -> uint8 (3, H, W)."""
        return self.draw(rgb.astype(np.int32), mask.astype(np.int32)).astype(np.uint8)


def _white_on_black(rgb: Any, mask: Any) -> Any:
    return rgb * 0 + 255 * mask[..., None, :, :]


WHITE_ON_BLACK = Rendering("white_on_black", _white_on_black)  # the released model's, which the VAE sees as {-1, +1}


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resizes a mask (H, W) to (size, size) by nearest neighbour, with torch's choice of pixels; the dtype is kept."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(mask))[None, None]
    return torch.nn.functional.interpolate(tensor, size=(size, size), mode="nearest")[0, 0].numpy()


def binary_mask(mask: np.ndarray, name: str = "mask") -> np.ndarray:
    """Checks a mask (H, W) of bool, {0, 1} or {0, 255} and returns it as uint8 {0, 1}."""
    if mask.ndim != 2:
        raise InputError(f"{name} has shape {mask.shape}; give one channel, (height, width)")
    values = np.unique(mask)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        shown = ", ".join(f"{value:g}" for value in values[:5].astype(float))
        raise InputError(
            f"{name} holds the values {shown}{', ...' if len(values) > 5 else ''}; give bool, {{0, 1}} or {{0, 255}} "
            "(JPEG blurs masks: save them as PNG)"
        )
    return (mask > 0).astype(np.uint8)


def render_masks(masks: "Tensor") -> "Tensor":
    """Paints masks {0, 1} as the VAE sees them: [B, H, W] -> float32 RGB [B, 3, H, W] in {-1, +1}."""
    return (masks.float() * 2 - 1)[:, None].repeat(1, 3, 1, 1)


def quantize(decoded: "Tensor") -> "Tensor":
    """Decoded RGB -> uint8, same shape: clipped to [-1, 1], mapped to [0, 255], truncated as the reference does."""
    import torch

    return ((decoded.float().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


def scores_and_limit(rgb: "Tensor", threshold: float, rule: str) -> "tuple[Tensor, Tensor]":
    """Scores [B, H, W] in [0, 1] (the mean over RGB) and, per image, the limit [B] that foreground exceeds.

    rgb: float [B, 3, H, W] in [0, 1]. Rules: "reference" = threshold * max over the RGB image (released code);
    "paper" = threshold * max over the mean image (paper, section 4.4); "absolute" = threshold.
    """
    import torch

    scores = rgb.mean(1)
    if rule == "absolute":
        return scores, torch.full((len(rgb),), threshold, device=rgb.device)
    peak = {"reference": rgb, "paper": scores}[rule].flatten(1).amax(1)
    return scores, threshold * peak


def above_threshold(rgb: "Tensor", threshold: float, rule: str) -> "Tensor":
    """Foreground of scores [B, 3, H, W] in [0, 1] -> bool [B, H, W]; see `scores_and_limit`."""
    scores, limits = scores_and_limit(rgb, threshold, rule)
    return scores > limits[:, None, None]


def check_threshold(threshold: float, rule: str) -> None:
    """Raises InputError unless 0 <= threshold < 1 and the rule is known."""
    if rule not in THRESHOLD_RULES:
        raise InputError(f"threshold_rule={rule!r} is not one of {', '.join(THRESHOLD_RULES)}")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold={threshold} is not in [0, 1)")
