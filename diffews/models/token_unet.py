"""The UNet with an image encoder: supports enter as tokens of cross-attention (paper, A.3)."""

import functools
from typing import Any

import torch.nn.functional as F
# diffusers loads a pipeline's part only if its module has the name ModelMixin
from diffusers import ModelMixin as ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from diffews.errors import InputError
from diffews.models.unet import DiffewsUNet

KEY = "image_encoder_config"  # in the config; `image_encoder` is the module


class TokenUNet(DiffewsUNet):
    """DiffewsUNet plus a CLIP vision model whose projected patches are the support's tokens.

    image_encoder_config: the vision model's settings, as in its config.json; kept in the UNet's.
    """

    @functools.wraps(DiffewsUNet.__init__)  # type: ignore[misc]
    def __init__(
            self, *args: Any, image_encoder_config: dict[str, Any] | None = None,
            **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = CLIPVisionConfig(**(image_encoder_config or {}))
        if config.projection_dim != self.config.cross_attention_dim:
            raise InputError(
                f"the image encoder makes tokens of {config.projection_dim} channels, "
                f"the UNet takes {self.config.cross_attention_dim}")
        self.register_to_config(image_encoder_config=image_encoder_config)
        self.image_encoder = CLIPVisionModelWithProjection(config)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Lets the image encoder's settings through to the constructor."""
        config_dict = dict(config_dict)
        settings = kwargs.pop(KEY, None) or config_dict.pop(KEY, None)
        init, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        return {**init, KEY: settings}, unused, hidden

    @apply_forward_hook
    def encode_images(self, images: Tensor) -> Tensor:
        """Returns projected patch tokens as a map [B, C, g, g].

        images: RGB [B, 3, S, S] in [-1, 1], of any size S.
        """
        self.check_not_grouped("interaction=cross_attention")
        encoder, config = self.image_encoder, self.image_encoder.config
        size = (config.image_size, config.image_size)
        pixels = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)

        # as CLIP was trained: each channel by its mean and deviation
        mean, deviation = (
            pixels.new_tensor(v)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        pixels = (((pixels.clamp(-1, 1) + 1) / 2 - mean) / deviation).to(self.dtype)

        hidden = encoder.vision_model(pixels).last_hidden_state[:, 1:]  # without the class token
        tokens = encoder.visual_projection(encoder.vision_model.post_layernorm(hidden))
        side = config.image_size // config.patch_size
        return tokens.transpose(1, 2).unflatten(2, (side, side))  # [B, g*g, C] -> [B, C, g, g]

    @apply_forward_hook
    def segment_with_tokens(
            self, latents: Tensor, timestep: Tensor, text: Tensor, seen: Tensor | None) -> Tensor:
        """Runs the query pass: [B, 4 or 8, h, w] -> minus the UNet's output [B, 4, h, w].

        text: [B, T, C], the empty prompt's tokens and the support's.
        seen: bool [B, 1, 1, T]; None for all.
        """
        return -self._run(latents, timestep, text, text_seen=seen)
