"""Stable Diffusion's UNet that reads support pairs through its own self-attention (DiffewS, arXiv:2410.02369)."""

import functools
from typing import Any

from diffusers import ModelMixin as ModelMixin  # diffusers loads a pipeline's part only if its module has this name
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffews.errors import InputError
from diffews.models.attention import BankAttnProcessor, SupportBank

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

    def encode_support(self, latents: Tensor, timestep: Tensor, text: Tensor, shots: int) -> SupportBank:
        """Runs the support pass and keeps what the query will read.

        latents: [B*S, 8, h, w], image latent and mask latent on channels; the S supports of one query are neighbours.
        timestep: 0-d. text: [B*S, tokens, C]. Returns a bank of B sets of S shots; gradients flow through it.
        """
        if shots < 1 or latents.shape[0] % shots:
            raise InputError(f"{latents.shape[0]} support latents do not divide into sets of {shots} shots")
        bank = SupportBank(shots)
        self(self.conv_in_ref(latents), timestep, text, cross_attention_kwargs={"record_to": bank})
        expected = sum(".attn1." in name for name in self.attn_processors)
        if len(bank) != expected:
            raise RuntimeError(
                f"{len(bank)} of {expected} self-attention layers recorded the support set; something replaced "
                "BankAttnProcessor (enable_xformers..., fuse_qkv_projections, set_attention_slice do)"
            )
        return bank

    def check_bank(self, bank: SupportBank) -> None:
        """Raises InputError for a bank that another network recorded."""
        widths = {name: value.shape[-1] for name, _, value in bank}
        own = {
            name: self.get_submodule(name.removesuffix(".processor")).to_v.out_features
            for name in self.attn_processors
            if ".attn1." in name
        }
        if widths != own:
            raise InputError(
                f"the bank has {len(widths)} layers that are not those of this UNet; encode the support again"
            )

    def segment(self, latents: Tensor, timestep: Tensor, text: Tensor, bank: SupportBank) -> Tensor:
        """Runs the query pass: query latents [B, 4, h, w] -> mask latents [B, 4, h, w].

        The bank holds B support sets, or one for all. The model predicts v at zero signal, where the clean latent
        is minus the output.
        """
        if bank.batch not in (1, latents.shape[0]):
            raise InputError(f"{latents.shape[0]} queries cannot read a bank of {bank.batch} support sets")
        self.check_bank(bank)
        return -self(latents, timestep, text, cross_attention_kwargs={"read_from": bank}).sample
