"""Stable Diffusion's UNet that reads support pairs through its own self-attention (DiffewS, arXiv:2410.02369)."""

import functools
from typing import Any

import torch
from diffusers import (
    ModelMixin as ModelMixin,  # diffusers loads a pipeline's part only if its module has this name
)
from diffusers import UNet2DConditionModel
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from diffews.errors import InputError
from diffews.models.attention import BankAttnProcessor, JointPass, SupportBank, TextKeys

TIMESTEP = 1  # both passes, training and evaluation; one step with alpha_bar = 0, hence clean latent = -output


class _Stem(nn.Conv2d):
    """`conv_in` that lets features through which `conv_in_ref` has embedded already."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[1] == self.out_channels else super().forward(x)


class DiffewsUNet(UNet2DConditionModel):
    """UNet2DConditionModel plus `conv_in_ref`, the 8-channel stem of the support image and its mask."""

    # diffusers reads the names of the config keys from the signature
    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stem = self.conv_in
        self.add_module("conv_in", _Stem(stem.in_channels, stem.out_channels, stem.kernel_size, padding=stem.padding))
        self.conv_in_ref = nn.Conv2d(2 * stem.in_channels, stem.out_channels, stem.kernel_size, padding=stem.padding)
        self.set_attn_processor({name: BankAttnProcessor(name) for name in self.attn_processors})
        layers = {name: self.get_submodule(name.removesuffix(".processor")) for name in self.attn_processors}
        rising = [name for name in self.attn_processors if name.startswith("up_blocks.") and ".attn1." in name]
        self._last = rising[-1] if rising else None  # of the self-attention layers, as they run
        self._widths = {name: layer.to_v.out_features for name, layer in layers.items() if ".attn1." in name}

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Accepts the `in_channels_ref` that the reference's MyUNet2DConditionModel wrote into config.json."""
        config_dict = dict(config_dict)
        expected = 2 * config_dict.get("in_channels", 4)
        in_channels_ref = config_dict.pop("in_channels_ref", expected)
        if in_channels_ref != expected:
            raise InputError(f"in_channels_ref is {in_channels_ref}; image and mask latents make {expected} channels")
        return super().extract_init_dict(config_dict, **kwargs)

    def start_support_stem(self) -> None:
        """Sets `conv_in_ref` from `conv_in`, so that conv_in_ref(cat[x, x]) equals conv_in(x).

        The weight stands twice side by side and halved, the bias is copied.
        """
        stem = self.conv_in.state_dict()
        self.conv_in_ref.load_state_dict({"weight": stem["weight"].repeat(1, 2, 1, 1) / 2, "bias": stem["bias"]})

    def embed(self, latents: Tensor) -> Tensor:
        """Features of the first layer: image latents [B, 4, h, w], or image and mask latents [B, 8, h, w]."""
        return (self.conv_in_ref if latents.shape[1] == 2 * self.config.in_channels else self.conv_in)(latents)

    @apply_forward_hook  # an offloaded model is loaded here, not in forward, which comes after the first layer
    def encode_text(self, text: Tensor) -> TextKeys:
        """Computes once what every cross-attention layer makes of a constant text condition [1, tokens, C]."""
        names = [name.removesuffix(".processor") for name in self.attn_processors if ".attn2." in name]
        layers = {name: self.get_submodule(name) for name in names}
        keys = {f"{name}.processor": (layer.to_k(text), layer.to_v(text)) for name, layer in layers.items()}
        return TextKeys(text, keys)

    @apply_forward_hook
    def encode_support(
        self, latents: Tensor, timestep: Tensor, text: Tensor | TextKeys, shots: int, visible: Tensor | None = None
    ) -> SupportBank:
        """Runs the support pass and keeps what the query will read.

        latents: [B*S, 8, h, w], image latent and mask latent on channels (or [B*S, 4, h, w], where the mask enters
        otherwise); the S supports of one query are neighbours.
        timestep: 0-d. text: [B*S, tokens, C], or the constant one. visible: [B*S, 1, h, w], see `SupportBank`.
        Returns a bank of B sets of S shots; gradients flow through it.
        """
        if shots < 1 or latents.shape[0] % shots:
            raise InputError(f"{latents.shape[0]} support latents do not divide into sets of {shots} shots")
        bank = SupportBank(shots, visible=visible, last=self._last)
        self._run(latents, timestep, text, record_to=bank)
        if len(bank) != len(self._widths):
            raise RuntimeError(
                f"{len(bank)} of {len(self._widths)} self-attention layers recorded the support set; something "
                "replaced BankAttnProcessor (enable_xformers..., fuse_qkv_projections, set_attention_slice do)"
            )
        return bank

    def check_bank(self, bank: SupportBank) -> None:
        """Raises InputError for a bank that another network recorded."""
        widths = {name: value.shape[-1] for name, _, value in bank}
        if widths != self._widths:
            raise InputError(
                f"the bank has {len(widths)} layers that are not those of this UNet; encode the support again"
            )

    @apply_forward_hook
    def segment(self, latents: Tensor, timestep: Tensor, text: Tensor | TextKeys, bank: SupportBank) -> Tensor:
        """Runs the query pass: query latents [B, 4, h, w] -> mask latents [B, 4, h, w].

        The bank holds B support sets, or one for all. The model predicts v at zero signal, where the clean latent
        is minus the output.
        """
        if bank.batch not in (1, latents.shape[0]):
            raise InputError(f"{latents.shape[0]} queries cannot read a bank of {bank.batch} support sets")
        self.check_bank(bank)
        return -self._run(latents, timestep, text, read_from=bank)

    @apply_forward_hook
    def segment_jointly(
        self,
        latents: Tensor,
        support_latents: Tensor,
        timestep: Tensor,
        text: Tensor | TextKeys,
        shots: int,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Runs queries and supports in one pass in which both read each other (QKV fusion; paper, section 4.1).

        latents: [B, 4, h, w]. support_latents: [B*S, 8 or 4, h, w]; with S = 0 this is the plain UNet.
        timestep: of the queries, 0-d or [B]; supports are clean and take TIMESTEP.
        """
        features = torch.cat([self.embed(latents), self.embed(support_latents)])
        clean = timestep.new_full((len(support_latents),), TIMESTEP)
        timestep = torch.cat([timestep.expand(len(latents)), clean])
        if isinstance(text, Tensor):
            text = text[:1].expand(len(features), -1, -1)
        return -self._run(features, timestep, text, joint=JointPass(shots, visible))[: len(latents)]

    def _run(self, latents: Tensor, timestep: Tensor, text: Tensor | TextKeys, **attention: Any) -> Tensor:
        latents = self.embed(latents)
        if isinstance(text, TextKeys):
            attention["text_keys"] = text
            text = text.embedding
        text = text.expand(len(latents), -1, -1)  # attention rounds otherwise where it broadcasts
        return self(latents, timestep, text, cross_attention_kwargs=attention).sample
