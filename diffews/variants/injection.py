"""How the support's mask enters (paper, section 4.2 and A.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from diffews.images.masks import WHITE_ON_BLACK, Rendering

SHARE = Rendering("share", WHITE_ON_BLACK.draw, pooled=True)


@dataclass(frozen=True)
class Support:
    """What an interaction reads of B*S supports.

    maps: one or two feature maps [B*S, C, h, w], latents or image tokens.
    visible: [B*S, 1, h, w], 0 where nothing may be read; None where everything may.
    """

    maps: tuple[Tensor, ...]
    visible: Tensor | None = None


class Injection:
    """Concatenation of the image and its mask, both encoded alike; the released model's."""

    drawn: Rendering = WHITE_ON_BLACK  # what is encoded beside the image
    doubles_input = True  # whether both go into the support pass, eight channels

    def combine(self, image: Tensor, drawn: Tensor) -> Support:
        """Joins the image's features and those of what was drawn, each [B*S, C, h, w]."""
        return Support((image, drawn))


class MaskedPicture(Injection):
    """A picture that has the mask in it, alone: 0.5 image + 0.5 mask, or the image black outside the mask."""

    doubles_input = False

    def __init__(self, drawn: Rendering) -> None:
        self.drawn = drawn

    def combine(self, image: Tensor, drawn: Tensor) -> Support:
        """Leaves the plain image out; that it was encoded for nothing keeps the other injections simple."""
        return Support((drawn,))


class MultiplicationLatent(Injection):
    """The image's features times the share of the mask under each."""

    drawn = SHARE
    doubles_input = False

    def combine(self, image: Tensor, drawn: Tensor) -> Support:
        """Multiplies; `drawn` holds the shares, as `pool_mask` gives them."""
        return Support((image * drawn[:, :1],))


class AttentionMask(Injection):
    """The image alone, of which only tokens inside the mask are visible; the mask is resized for every layer."""

    drawn = SHARE
    doubles_input = False

    def combine(self, image: Tensor, drawn: Tensor) -> Support:
        """Keeps the mask beside the image."""
        return Support((image,), visible=drawn[:, :1] > 0)


def pool_mask(drawn: Tensor, size: Sequence[int]) -> Tensor:
    """Share of the foreground under each feature: RGB white on black [B, 3, H, W] in [-1, 1] -> [B, 1, h, w]."""
    return F.adaptive_avg_pool2d((drawn[:, :1] + 1) / 2, (size[0], size[1]))


def _masked(rgb: Any, mask: Any) -> Any:
    return rgb * mask[..., None, :, :]


def _blended(rgb: Any, mask: Any) -> Any:
    return (rgb + 255 * mask[..., None, :, :]) // 2


INJECTION: dict[str, Injection] = {
    "concatenation": Injection(),
    "multiplication_rgb": MaskedPicture(Rendering("masked", _masked)),
    "multiplication_latent": MultiplicationLatent(),
    "attention_mask": AttentionMask(),
    "addition": MaskedPicture(Rendering("blended", _blended)),
}
