"""How the support's mask enters (paper, section 4.2, A.3): what is encoded, how it is joined."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from diffews.images.paint import BLENDED, MASKED, WHITE_ON_BLACK, Rendering


@dataclass(frozen=True)
class Support:
    """What an interaction reads of B*S supports.

    Attributes:
        maps: one or two feature maps [B*S, C, h, w], latents or image tokens.
        visible: [B*S, 1, h, w], 0 where nothing may be read; None where everything may.

    """

    maps: tuple[Tensor, ...]
    visible: Tensor | None = None


@dataclass(frozen=True)
class Injection:
    """What is encoded of a support set; the maps are then read side by side.

    Attributes:
        encodes_image: whether the plain image is encoded.
        painted: how the mask is painted for the encoder; None where the mask itself is read.
        doubles_input: whether image and mask go into the support pass side by side, 8 channels.

    """

    encodes_image: bool = True
    painted: Rendering | None = None
    doubles_input: bool = False

    def encoded(self, pixels: Tensor, masks: Tensor) -> list[Tensor]:
        """Returns what is encoded of supports [B*S, 3, H, W] in [-1, 1] with masks [B*S, H, W]."""
        images = [pixels] if self.encodes_image else []
        return images if self.painted is None else [*images, self.painted.on(pixels, masks)]

    def join(self, features: Sequence[Tensor], masks: Tensor | None) -> Support:
        """Joins the features [B*S, C, h, w] of what `encoded` returned.

        masks: [B*S, H, W] in {0, 1}; may be None where the mask is painted.
        """
        return Support(tuple(features))


class MultiplicationLatent(Injection):
    """The image's features times the share of the mask under each."""

    def join(self, features: Sequence[Tensor], masks: Tensor | None) -> Support:
        (image,) = features
        return Support((image * shares(masks, image),))


class AttentionMask(Injection):
    """The image alone, whose tokens are visible inside the mask only, resized for every layer."""

    def join(self, features: Sequence[Tensor], masks: Tensor | None) -> Support:
        (image,) = features
        return Support((image,), visible=shares(masks, image) > 0)


def shares(masks: Tensor | None, features: Tensor) -> Tensor:
    """Share of the foreground under each feature: masks [B, H, W] -> [B, 1, h, w] in [0, 1]."""
    assert masks is not None
    height, width = features.shape[-2:]
    return F.adaptive_avg_pool2d(masks[:, None].float(), (height, width)).to(features)


INJECTION: dict[str, Injection] = {
    "concatenation": Injection(painted=WHITE_ON_BLACK, doubles_input=True),  # the released model's
    "multiplication_rgb": Injection(encodes_image=False, painted=MASKED),
    "multiplication_latent": MultiplicationLatent(),
    "attention_mask": AttentionMask(),
    "addition": Injection(encodes_image=False, painted=BLENDED),
}
