"""What the query's mask looks like as a target, and how it is got back (paper, section 4.3)."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffews.images.paint import WHITE_ON_BLACK, Rendering, from_pixels


@dataclass(frozen=True)
class Supervision(ABC):
    """What the network learns to paint, and how scores are read off the painting.

    Attributes:
        target: how the query's mask is painted.

    """

    target: Rendering

    @abstractmethod
    def recover(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """Scores of a decoded target.

        Args:
            decoded: RGB [B, 3, H, W] of whole numbers in 0..255.
            pixels: the queries [B, 3, H, W] in [-1, 1].

        Returns:
            Scores [B, 3, H, W] in [0, 1], whose mean over RGB is held against a threshold.

        """


class MaskAlone(Supervision):
    """White foreground on black: the decoded picture is the score."""

    def recover(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        return decoded.float() / 255


@dataclass(frozen=True)
class Composition(Supervision):
    """One picture inside the mask, another outside; the two differ in every pixel.

    Attributes:
        foreground, background: RGB (..., 3, H, W) in 0..255 -> the same shape.

    """

    foreground: Callable[[Any], Any]
    background: Callable[[Any], Any]

    def recover(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """How near a pixel is to the foreground's picture: d_bg / (d_bg + d_fg).

        Distances are summed over RGB. Of white on black this would be the mean over RGB.
        """
        decoded, rgb = decoded.float(), from_pixels(pixels)
        far = (decoded - self.background(rgb)).abs().sum(1, keepdim=True)
        near = (decoded - self.foreground(rgb)).abs().sum(1, keepdim=True)
        return (far / (far + near)).expand(-1, 3, -1, -1)


def lift(rgb: Any) -> Any:
    """Maps 0..255 to 64..255, so that no real pixel is as dark as the black beside it."""
    return 64 + rgb * 191 // 255


def dim(rgb: Any) -> Any:
    """Maps 0..255 to 0..127."""
    return rgb // 2


def haze(rgb: Any) -> Any:
    """Maps 0..255 to 128..255: above what `dim` gives."""
    return 128 + rgb // 2


def black(rgb: Any) -> Any:
    """Maps every value to 0."""
    return rgb * 0


def compose(
    rgb: Any, mask: Any, foreground: Callable[[Any], Any], background: Callable[[Any], Any]
) -> Any:
    """Puts one picture inside the mask (..., H, W), another outside: RGB (..., 3, H, W)."""
    inside = mask[..., None, :, :]
    return inside * foreground(rgb) + (1 - inside) * background(rgb)


def _composition(name: str, foreground: Any, background: Any) -> Supervision:
    paint = functools.partial(compose, foreground=foreground, background=background)  # is pickled
    return Composition(Rendering(name, paint), foreground, background)


SUPERVISION: dict[str, Supervision] = {
    "white_on_black": MaskAlone(WHITE_ON_BLACK),  # the released model's
    "real_foreground": _composition("real_foreground", lift, black),
    "black_foreground": _composition("black_foreground", black, lift),
    "mask_over_image": _composition("mask_over_image", haze, dim),
}
