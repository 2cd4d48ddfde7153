"""Ways to paint a mask as a picture for the VAE; the released model paints white on black."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Paint = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Rendering:
    """One way to paint a mask, on arrays or tensors alike.

    Attributes:
        name: what a latent cache calls it.
        paint: RGB (..., 3, H, W) in 0..255 and mask (..., H, W) in {0, 1} -> RGB of whole numbers.

    """

    name: str
    paint: Paint

    def __call__(self, rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Paints uint8 pixels (3, H, W) and a uint8 mask (H, W) -> uint8 (3, H, W)."""
        return self.paint(rgb.astype(np.int32), mask.astype(np.int32)).astype(np.uint8)

    def on(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Paints RGB [B, 3, H, W] in [-1, 1] and masks [B, H, W] in {0, 1} -> RGB in [-1, 1]."""
        return to_pixels(self.paint(from_pixels(pixels), masks.float()))


class WhiteOnBlack(Rendering):
    """White foreground on black, whatever the picture: the VAE sees {-1, +1}."""

    def on(self, pixels: Tensor, masks: Tensor) -> Tensor:
        return render_masks(masks)


def to_pixels(rgb: Tensor) -> Tensor:
    """Maps RGB of whole numbers in 0..255 to float32 in [-1, 1], the VAE's range."""
    return rgb.float() / 255 * 2 - 1


def from_pixels(pixels: Tensor) -> Tensor:
    """Undoes `to_pixels`: [-1, 1] -> whole numbers in 0..255, float32."""
    return ((pixels.float() + 1) * 127.5).round()


def render_masks(masks: Tensor) -> Tensor:
    """Paints masks white on black: [B, H, W] of {0, 1} -> float32 RGB [B, 3, H, W] in {-1, +1}."""
    return (masks.float() * 2 - 1)[:, None].repeat(1, 3, 1, 1)


def _white_on_black(rgb: Any, mask: Any) -> Any:
    return rgb * 0 + 255 * mask[..., None, :, :]


def _masked(rgb: Any, mask: Any) -> Any:
    return rgb * mask[..., None, :, :]


def _blended(rgb: Any, mask: Any) -> Any:
    return (rgb + 255 * mask[..., None, :, :]) // 2


WHITE_ON_BLACK = WhiteOnBlack("white_on_black", _white_on_black)
MASKED = Rendering("masked", _masked)  # the picture, black outside the mask
BLENDED = Rendering("blended", _blended)  # half picture, half mask
