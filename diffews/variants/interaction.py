"""How query and support interact (paper, section 4.1, A.3).

`prepare` reads the support set once, `segment` runs queries against what it returned.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffews.errors import InputError
from diffews.models.attention import SupportBank, TextKeys
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
        visible = None if self.visible is None else self.visible[sets]
        return SupportSet(self.shots, self.content[sets], visible)

    def expand(self, batch: int) -> "SupportSet":
        """Returns the set of each of `batch` queries: as many sets as queries, or one for all."""
        if self.batch not in (1, batch):
            raise InputError(f"{batch} queries cannot read {self.batch} support sets")

        def to_all(tensor: Tensor) -> Tensor:
            return tensor.expand(batch, *tensor.shape[1:])

        visible = None if self.visible is None else to_all(self.visible)
        return SupportSet(self.shots, to_all(self.content), visible)


class Interaction(ABC):
    """How the query pass gets to see the support set."""

    reads_pixels = False  # whether the network itself encodes supports from pixels, else the VAE
    has_bank = False  # whether the state is a SupportBank, which can be sampled and saved

    @abstractmethod
    def prepare(self, unet: Any, support: Support, timestep: Tensor, text: Text, shots: int) -> Any:
        """Reads B support sets -> the state that `segment` takes; it has `batch` and can be sliced.

        Args:
            unet: the network that this interaction was trained with.
            support: the maps of B*S supports; the S supports of a set are neighbours.
            timestep: 0-d.
            text: the constant text condition, [1 or B*S, tokens, C].
            shots: S.

        """

    @abstractmethod
    def segment(
        self, unet: Any, latents: Tensor, timestep: Tensor, text: Text, state: Any
    ) -> Tensor:
        """Runs the query pass: latents [B, 4 or 8, h, w] -> minus the UNet's output."""

    def check_bank_use(self, use: str) -> None:
        """Raises InputError unless the state is a bank of keys and values."""
        if not self.has_bank:
            raise InputError(f"{use} needs interaction=kv_fusion, which has keys and values")


class KVFusion(Interaction):
    """The query's self-attention reads the support's keys and values (equation 3)."""

    has_bank = True

    def prepare(
        self, unet: DiffewsUNet, support: Support, timestep: Tensor, text: Text, shots: int
    ) -> SupportBank:
        latents = torch.cat(support.maps, dim=1)  # [B*S, 8, h, w]
        return unet.encode_support(latents, timestep, text, shots, support.visible)

    def segment(
        self, unet: DiffewsUNet, latents: Tensor, timestep: Tensor, text: Text, state: SupportBank
    ) -> Tensor:
        return unet.segment(latents, timestep, text, state)


class QKVFusion(Interaction):
    """One pass in which queries and supports read each other (section 5.3, table 5)."""

    def prepare(
        self, unet: DiffewsUNet, support: Support, timestep: Tensor, text: Text, shots: int
    ) -> SupportSet:
        """Keeps the supports' latents [B, S, C, h, w]; they are computed anew with each query."""
        latents = torch.cat(support.maps, dim=1).unflatten(0, (-1, shots))
        visible = None if support.visible is None else support.visible.unflatten(0, (-1, shots))
        return SupportSet(shots, latents, visible)

    def segment(
        self, unet: DiffewsUNet, latents: Tensor, timestep: Tensor, text: Text, state: SupportSet
    ) -> Tensor:
        sets = state.expand(len(latents))
        visible = None if sets.visible is None else sets.visible.flatten(0, 1)
        supports = sets.content.flatten(0, 1)  # [B*S, C, h, w]
        return unet.segment_jointly(latents, supports, timestep, text, state.shots, visible)


class CrossAttention(Interaction):
    """The support becomes image tokens that cross-attention reads behind the text's (4.1, A.3)."""

    reads_pixels = True

    def prepare(
        self, unet: TokenUNet, support: Support, timestep: Tensor, text: Text, shots: int
    ) -> SupportSet:
        """Lines up the supports' tokens [B, S*T, C]; two maps stand one behind the other."""
        tokens = torch.cat([maps.flatten(2).transpose(1, 2) for maps in support.maps], dim=1)
        sets = len(tokens) // shots
        visible = None if support.visible is None else support.visible.flatten(1).reshape(sets, -1)
        return SupportSet(shots, tokens.reshape(sets, -1, tokens.shape[-1]), visible)

    def segment(
        self, unet: TokenUNet, latents: Tensor, timestep: Tensor, text: Text, state: SupportSet
    ) -> Tensor:
        sets = state.expand(len(latents))
        words = text.embedding if isinstance(text, TextKeys) else text
        words = words.expand(len(latents), -1, -1)

        # the text is always seen, a support's token where its mask says so
        seen = None
        if sets.visible is not None:
            seen = F.pad(sets.visible, (words.shape[1], 0), value=True)[:, None, None]
        tokens = torch.cat([words, sets.content.to(words)], dim=1)
        return unet.segment_with_tokens(latents, timestep, tokens, seen)


INTERACTION: dict[str, Interaction] = {
    "kv_fusion": KVFusion(),  # the released model's
    "qkv_fusion": QKVFusion(),
    "cross_attention": CrossAttention(),
}
