"""How query and support interact (paper, section 4.1, A.3): `prepare` the support once, `segment` queries with it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffews.errors import InputError
from diffews.models.attention import TextKeys
from diffews.models.token_unet import TokenUNet
from diffews.models.unet import DiffewsUNet
from diffews.variants.injection import Support

Text = Tensor | TextKeys


@dataclass(frozen=True)
class SupportSet:
    """What an interaction without a bank keeps of B support sets of S shots."""

    shots: int
    content: Tensor  # [B, ...]
    visible: Tensor | None = None  # [B, ...]

    @property
    def batch(self) -> int:
        """Number of support sets B."""
        return len(self.content)

    def __getitem__(self, sets: slice) -> "SupportSet":
        """Returns some of the sets."""
        return SupportSet(self.shots, self.content[sets], None if self.visible is None else self.visible[sets])

    def expand(self, batch: int) -> "SupportSet":
        """Returns the set of each of `batch` queries: as many sets as queries, or one for all."""
        if self.batch not in (1, batch):
            raise InputError(f"{batch} queries cannot read {self.batch} support sets")
        return SupportSet(
            self.shots,
            self.content.expand(batch, *self.content.shape[1:]),
            None if self.visible is None else self.visible.expand(batch, *self.visible.shape[1:]),
        )


class Interaction:
    """KV fusion: the query's self-attention reads the support's keys and values (equation 3); the released model's."""

    reads_pixels = False  # whether supports are encoded from pixels by the network itself, else by the VAE
    has_bank = True  # whether the state is a SupportBank, which can be sampled and saved

    def prepare(self, unet: Any, support: Support, timestep: Tensor, text: Text, shots: int) -> Any:
        """Runs the support pass -> the state that `segment` reads, of B sets; has `batch` and can be sliced."""
        latents = torch.cat(support.maps, dim=1)
        if isinstance(text, Tensor):
            text = text[:1].expand(len(latents), -1, -1)
        return unet.encode_support(latents, timestep, text, shots, support.visible)

    def segment(self, unet: Any, latents: Tensor, timestep: Tensor, text: Text, state: Any) -> Tensor:
        """Runs the query pass: input latents [B, 4 or 8, h, w] -> minus the UNet's output [B, 4, h, w]."""
        if isinstance(text, Tensor):
            text = text[:1].expand(len(latents), -1, -1)
        return unet.segment(latents, timestep, text, state)

    def check_bank_use(self, use: str) -> None:
        """Raises InputError unless the state is a bank of keys and values."""
        if not self.has_bank:
            raise InputError(f"{use} needs interaction=kv_fusion, which has keys and values")


class QKVFusion(Interaction):
    """QKV fusion: one pass in which queries and supports read each other (section 5.3, table 5)."""

    has_bank = False

    def prepare(self, unet: DiffewsUNet, support: Support, timestep: Tensor, text: Text, shots: int) -> SupportSet:
        """Keeps the support's latents [B, S, C, h, w]; they are computed anew with each query."""
        latents = torch.cat(support.maps, dim=1).unflatten(0, (-1, shots))
        visible = None if support.visible is None else support.visible.unflatten(0, (-1, shots))
        return SupportSet(shots, latents, visible)

    def segment(self, unet: DiffewsUNet, latents: Tensor, timestep: Tensor, text: Text, state: SupportSet) -> Tensor:
        """See `Interaction`."""
        sets = state.expand(len(latents))
        visible = None if sets.visible is None else sets.visible.flatten(0, 1)
        return unet.segment_jointly(latents, sets.content.flatten(0, 1), timestep, text, state.shots, visible)


class CrossAttention(Interaction):
    """The support becomes image tokens that cross-attention reads behind the text's (section 4.1, A.3)."""

    reads_pixels, has_bank = True, False

    def prepare(self, unet: TokenUNet, support: Support, timestep: Tensor, text: Text, shots: int) -> SupportSet:
        """Lines up the supports' tokens [B, S*T, C]; those of two maps stand one behind the other."""
        tokens = torch.cat([features.flatten(2).transpose(1, 2) for features in support.maps], dim=1)
        visible = None if support.visible is None else support.visible.flatten(1).reshape(len(tokens) // shots, -1)
        return SupportSet(shots, tokens.reshape(len(tokens) // shots, -1, tokens.shape[-1]), visible)

    def segment(self, unet: TokenUNet, latents: Tensor, timestep: Tensor, text: Text, state: SupportSet) -> Tensor:
        """See `Interaction`."""
        sets, words = state.expand(len(latents)), text.embedding if isinstance(text, TextKeys) else text[:1]
        words = words.expand(len(latents), -1, -1)
        seen = None
        if sets.visible is not None:
            seen = F.pad(sets.visible, (words.shape[1], 0), value=True)[:, None, None]
        return unet.segment_with_tokens(latents, timestep, torch.cat([words, sets.content.to(words)], dim=1), seen)


INTERACTION: dict[str, Interaction] = {
    "kv_fusion": Interaction(),
    "qkv_fusion": QKVFusion(),
    "cross_attention": CrossAttention(),
}
