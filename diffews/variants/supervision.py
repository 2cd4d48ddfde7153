"""What the query's mask looks like as a target, and how the mask is got back (paper, section 4.3)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffews.images.masks import WHITE_ON_BLACK, Rendering


@dataclass(frozen=True)
class Supervision:
    """White foreground on black, the released model's: the decoded picture is the score."""

    target: Rendering

    def recover(self, decoded: Tensor, rgb: Tensor) -> Tensor:
        """Scores of a decoded target: [B, 3, H, W] in 0..255 and the query's own pixels -> [B, 3, H, W] in [0, 1]."""
        return decoded / 255


@dataclass(frozen=True)
class Composition(Supervision):
    """One picture inside the mask, another outside; the two differ in every pixel.

    foreground, background: RGB (..., 3, H, W) in 0..255 -> the same shape.
    """

    foreground: Callable[[Any], Any]
    background: Callable[[Any], Any]

    def recover(self, decoded: Tensor, rgb: Tensor) -> Tensor:
        """How near a pixel is to the foreground's picture: d_bg / (d_bg + d_fg), distances summed over RGB.

        Of white on black this would be the mean over RGB. For shapes see `Supervision`.
        """
        background, foreground = self.background(rgb), self.foreground(rgb)
        far = (decoded - background).abs().sum(1, keepdim=True)
        near = (decoded - foreground).abs().sum(1, keepdim=True)
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


def compose(rgb: Any, mask: Any, foreground: Callable[[Any], Any], background: Callable[[Any], Any]) -> Any:
    """Puts one picture inside the mask (..., H, W) of {0, 1} and another outside: RGB (..., 3, H, W)."""
    inside = mask[..., None, :, :]
    return inside * foreground(rgb) + (1 - inside) * background(rgb)


def _composition(name: str, foreground: Callable[[Any], Any], background: Callable[[Any], Any]) -> Supervision:
    draw = functools.partial(compose, foreground=foreground, background=background)  # workers pickle it
    return Composition(Rendering(name, draw), foreground, background)


SUPERVISION: dict[str, Supervision] = {
    "white_on_black": Supervision(WHITE_ON_BLACK),
    "real_foreground": _composition("real_foreground", lift, black),
    "black_foreground": _composition("black_foreground", black, lift),
    "mask_over_image": _composition("mask_over_image", haze, dim),
}
