"""Stable Diffusion's UNet reads support pairs in its self-attention (DiffewS, arXiv:2410.02369)."""

import functools
from typing import Any

import torch
# diffusers loads a pipeline's part only if its module has the name ModelMixin
from diffusers import ModelMixin as ModelMixin, UNet2DConditionModel
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from diffews.errors import InputError
from diffews.models.attention import (
    BankAttnProcessor, BankRecorder, JointPass, SupportBank, TextKeys)

# of both passes, always: one step with alpha_bar = 0, where the clean latent is minus the output
TIMESTEP = 1

HOOKS = ("_hf_hook", "_diffusers_hook")  # the attributes by which they are attached


class _Stem(nn.Conv2d):
    """The first layer of both passes: `conv_in` of images, the UNet's `conv_in_ref` of pairs.

    It is called within forward, when the hooks of an offloaded model have loaded the weights.
    """

    owner: tuple[Any, ...] = ()  # the UNet; as a module of this one it would be a circle

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.out_channels:  # features, which `segment_jointly` embeds beforehand
            return x
        if x.shape[1] == 2 * self.in_channels:
            return self.owner[0].conv_in_ref(x)
        return super().forward(x)


class DiffewsUNet(UNet2DConditionModel):
    """UNet2DConditionModel plus `conv_in_ref`, the 8-channel stem of support image and mask."""

    training_record: dict[str, Any] = {}  # what training wrote beside the weights, for model cards

    # diffusers reads the names of the config keys from the signature
    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain = self.conv_in
        width, size, padding = plain.out_channels, plain.kernel_size, plain.padding
        if width in (plain.in_channels, 2 * plain.in_channels):  # by which the stem knows its input
            raise InputError(f"block_out_channels starts with {width}, as many as latents of an "
                             "image or of a pair have; take another width")
        stem = _Stem(plain.in_channels, width, size, padding=padding)
        stem.owner = (self,)
        self.add_module("conv_in", stem)
        self.conv_in_ref = nn.Conv2d(2 * stem.in_channels, width, size, padding=padding)

        # every attention knows its name, under which a bank keeps what it recorded
        self.set_default_attn_processor()
        names = [name for name in self.attn_processors if ".attn1." in name]  # self-attention
        layers = {name: self.get_submodule(name.removesuffix(".processor")) for name in names}
        self._widths = {name: layer.to_v.out_features for name, layer in layers.items()}
        rising = [name for name in names if name.startswith("up_blocks.")]
        self._last = rising[-1] if rising else None  # as they run
        self._readers = [name for name in self.attn_processors if ".attn2." in name]  # of the text

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Accepts the `in_channels_ref` that the reference's UNet wrote into config.json."""
        config_dict = dict(config_dict)
        expected = 2 * config_dict.get("in_channels", 4)
        in_channels_ref = config_dict.pop("in_channels_ref", expected)
        if in_channels_ref != expected:
            raise InputError(
                f"in_channels_ref is {in_channels_ref}; image and mask latents make {expected} "
                "channels")
        return super().extract_init_dict(config_dict, **kwargs)

    def start_support_stem(self) -> None:
        """Sets `conv_in_ref` from `conv_in`, so that conv_in_ref(cat[x, x]) equals conv_in(x).

        The weight stands twice side by side and halved, the bias is copied.
        """
        stem = self.conv_in.state_dict()
        weight = stem["weight"].repeat(1, 2, 1, 1) / 2
        self.conv_in_ref.load_state_dict({"weight": weight, "bias": stem["bias"]})

    # ---- the layers' processors, which stay the bank's ----

    def set_default_attn_processor(self) -> None:
        """Gives every layer a BankAttnProcessor of its own."""
        self.set_attn_processor({name: BankAttnProcessor(name) for name in self.attn_processors})

    def set_attention_slice(self, slice_size: Any = "auto") -> None:
        """Does nothing: torch's attention never holds the matrix that slices would divide."""

    def fuse_qkv_projections(self) -> None:
        """Does nothing: a bank keeps keys and values apart, which is how they are computed."""

    def unfuse_qkv_projections(self) -> None:
        """Does nothing, as nothing was fused."""

    # ---- the two passes ----

    @property
    def is_managed(self) -> bool:
        """Whether hooks of accelerate or diffusers move the weights, or change their type."""
        return any(hook in vars(part) for hook in HOOKS for part in (self, self.conv_in))

    def check_not_grouped(self, use: str) -> None:
        """Raises InputError where hooks load the first layers no sooner than forward begins."""
        if "_diffusers_hook" in vars(self) and "_diffusers_hook" not in vars(self.conv_in):
            raise InputError(f"{use} computes outside the UNet's forward, where groups of blocks "
                             'are not loaded; use enable_group_offload(..., '
                             'offload_type="leaf_level")')

    def encode_text(self, text: Tensor) -> TextKeys:
        """Computes what cross-attention makes of a constant text condition [1, tokens, C]."""
        layers = {}
        for name in self._readers:
            layer: Any = self
            for part in name.split(".")[:-1]:  # get_submodule takes ten times as long
                layer = layer._modules[part]
            layers[name] = layer.to_k(text), layer.to_v(text)
        return TextKeys(text, layers)

    # the hook loads an offloaded model: forward's own comes too late, after the first layer
    @apply_forward_hook
    def encode_support(
            self, latents: Tensor, timestep: Tensor, text: Tensor | TextKeys, shots: int,
            visible: Tensor | None = None) -> SupportBank:
        """Runs the support pass and keeps what the query will read.

        latents: [B*S, 8, h, w], image latent and mask latent on channels (or [B*S, 4, h, w], where
        the mask enters otherwise); the S supports of one query are neighbours.
        timestep: 0-d. text: [1 or B*S, tokens, C], or the constant one with its keys.
        visible: [B*S, 1, h, w], see `SupportBank`.

        Returns a bank of B sets of S shots; gradients flow through it.
        """
        if shots < 1 or latents.shape[0] % shots:
            raise InputError(
                f"{latents.shape[0]} support latents do not divide into sets of {shots} shots")
        recorder = BankRecorder(shots, visible, self._last)
        self._run(latents, timestep, text, record_to=recorder)

        # a bank with a layer missing would segment something, and badly
        bank = recorder.bank
        if len(bank) != len(self._widths):
            raise RuntimeError(
                f"{len(bank)} of {len(self._widths)} self-attention layers recorded the support "
                "set; something replaced BankAttnProcessor (enable_xformers... does); call "
                "set_default_attn_processor()")
        return bank

    def check_bank(self, bank: SupportBank) -> None:
        """Raises InputError for a bank that another network recorded."""
        widths = {name: value.shape[-1] for name, _, value in bank}
        if widths != self._widths:
            raise InputError(
                f"the bank has {len(widths)} layers that are not those of this UNet; "
                "encode the support again")

    @apply_forward_hook
    def segment(
            self, latents: Tensor, timestep: Tensor, text: Tensor | TextKeys,
            bank: SupportBank) -> Tensor:
        """Runs the query pass: latents [B, 4 or 8, h, w] -> minus the UNet's output [B, 4, h, w].

        In one step, at zero signal, that is the clean latent of the mask, since the model predicts
        v. timestep: 0-d or [B]. text: [1 or B, tokens, C], or the constant one with its keys.
        bank: B support sets, or one for all.
        """
        if bank.batch not in (1, latents.shape[0]):
            raise InputError(
                f"{latents.shape[0]} queries cannot read a bank of {bank.batch} support sets")
        self.check_bank(bank)
        return -self._run(latents, timestep, text, read_from=bank)

    @apply_forward_hook
    def segment_jointly(
            self, latents: Tensor, support_latents: Tensor, timestep: Tensor,
            text: Tensor | TextKeys, shots: int, visible: Tensor | None = None) -> Tensor:
        """Runs queries and supports in one pass, where both read each other (QKV fusion; 4.1).

        latents: [B, 4 or 8, h, w] -> minus the UNet's output [B, 4, h, w].
        support_latents: [B*S, 8 or 4, h, w]; with S = 0 this is the plain UNet.
        timestep: of the queries, 0-d or [B]; supports are clean and take TIMESTEP.
        visible: [B*S, 1, h, w], see `JointPass`.
        """
        self.check_not_grouped("interaction=qkv_fusion")
        clean = timestep.new_full((len(support_latents),), TIMESTEP)
        timestep = torch.cat([timestep.expand(len(latents)), clean])
        if isinstance(text, Tensor):
            text = text[:1]
        features = torch.cat([self.conv_in(latents), self.conv_in(support_latents)])
        output = self._run(features, timestep, text, joint=JointPass(shots, visible))
        return -output[: len(latents)]

    def _run(
            self, latents: Tensor, timestep: Tensor, text: Tensor | TextKeys,
            **attention: Any) -> Tensor:
        if not isinstance(self.conv_in, _Stem):
            raise InputError(
                f"conv_in became a {type(self.conv_in).__name__}, which leads no support to "
                "conv_in_ref; leave it as it is (quanto: exclude=['conv_in'], adapters: not of it)")
        if isinstance(text, TextKeys):
            attention["text_keys"] = text
            text = text.embedding
        # attention rounds otherwise where it broadcasts; with len(), an export would fix the batch
        text = text.expand(latents.shape[0], -1, -1)
        return self(latents, timestep, text, cross_attention_kwargs=attention).sample
