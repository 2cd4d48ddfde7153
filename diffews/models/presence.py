"""Whether a query holds the support's class at all: a small head on frozen weights.

A UNet that was trained on queries with the class paints something into those without it. What it
painted tells: the head compares what the layers say under the support's mask with what they say
under the mask that the query was given, and the two outlines. It never changes a mask; whoever asks
may take one away (`Segmentation.gate`).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diffews.errors import InputError, refuse
from diffews.models.attention import SupportBank
from diffews.models.find import PRESENCE, WeightDir, weight_files
from diffews.models.signature import (
    OUTLINE, STATISTICS, ListeningBank, Signature, compare, compare_outlines, sign, statistics)
from diffews.runtime.files import hash_files, read_json, write_atomic
from diffews.runtime.finite import check_finite

if TYPE_CHECKING:
    from diffews.images.masks import Segmentation
    from diffews.models.unet import DiffewsUNet

KINDS = ("full", "fast")  # of a head: with one more support pass on the query, or without
HEAD_FILE = "head.safetensors"
FORMAT = 1  # of the folder; a head of another one is refused
MEMBERS, HIDDEN, DROPOUT = 5, 32, 0.2
MOST_HIDDEN = 4096  # of a head that is read
THRESHOLD, RULE = 0.25, "reference"  # of the mask that is compared, whatever the user's
AGAIN = "train one with `diffews train-presence`"


# ---- the head ----


class PresenceHead(nn.Module):
    """A few small networks on standardised comparisons, whose mean says the probability.

    Args:
        kind: "full" compares with a support pass on the query and its mask, too; "fast" with what
            the query pass computed anyway.
        heads: attention heads of each layer that is compared.
        inputs: D, numbers that are compared.
        hidden: width of the networks.

    """

    mean: Tensor
    std: Tensor

    def __init__(
            self, kind: str, heads: Mapping[str, int], inputs: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.kind, self.heads, self.hidden = kind, dict(heads), hidden
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))

        # M members side by side, so that all are asked, and fitted, in one product
        self.enter = nn.Parameter(torch.zeros(MEMBERS, inputs, hidden))
        self.enter_bias = nn.Parameter(torch.zeros(MEMBERS, 1, hidden))
        self.leave = nn.Parameter(torch.zeros(MEMBERS, hidden, 1))
        self.leave_bias = nn.Parameter(torch.zeros(MEMBERS, 1, 1))

    def start(self) -> None:
        """Draws the weights that a fit starts from, as `nn.Linear` does."""
        for weight, bias in ((self.enter, self.enter_bias), (self.leave, self.leave_bias)):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def inputs(
            self, support: Signature, own: Signature, again: Signature | None,
            painted: Tensor) -> Tensor:
        """Lays out what is compared -> [B, S, D].

        Args:
            support: of the S supports; of B sets, or of one for all.
            own: of the queries, by the query pass, [B, 1, C].
            again: of the queries, by a support pass; None for a fast head.
            painted: their `statistics` [B, 4].

        """
        parts = [compare(support, own, self.heads), compare_outlines(support, own)]
        if again is not None:
            parts.append(compare(support, again, self.heads))
        batch, shots = parts[0].shape[:2]
        return torch.cat([*parts, painted[:, None].expand(batch, shots, -1)], dim=-1)

    def logits(self, inputs: Tensor) -> Tensor:
        """Asks each member: standardised inputs [M, N, D] -> [M, N]."""
        hidden = F.silu(torch.baddbmm(self.enter_bias, inputs, self.enter))
        hidden = F.dropout(hidden, DROPOUT, self.training)
        return torch.baddbmm(self.leave_bias, hidden, self.leave)[..., 0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Says how probable the class is: [B, S, D] -> [B], the mean of members and shots."""
        rows = ((inputs - self.mean) / self.std).flatten(0, 1)
        said = self.logits(rows.expand(MEMBERS, -1, -1)).sigmoid().mean(0)
        return said.unflatten(0, inputs.shape[:2]).mean(1)


def make_head(unet: "DiffewsUNet", kind: str, hidden: int = HIDDEN) -> PresenceHead:
    """Makes an untrained head for a UNet: 844 inputs of a full head at Stable Diffusion 2.1's size.

    Keys and values of each attention head are one cosine each, at any width: to compare them
    channel by channel takes 99,904 inputs there, and found no more on the tiny UNet.
    """
    names = [name for name in unet.attn_processors if ".attn1." in name]
    heads = {name: unet.get_submodule(name.removesuffix(".processor")).heads for name in names}

    # keys and values, of one or two comparisons; outlines and statistics beside them
    times = 2 * (1 + (kind == "full"))
    return PresenceHead(
        kind, heads, times * sum(heads.values()) + 2 * OUTLINE + STATISTICS, hidden)


# ---- who is asked ----


class NoPresence:
    """Of weights without a head, or where nobody asks: says nothing, and costs nothing."""

    kind: str | None = None

    def sign(self, bank: Any, masks: Tensor) -> Any:
        """Returns the bank with what is compared later; masks: of its B*S supports [B*S, H, W]."""
        return bank

    def listen(self, bank: Any) -> Any:
        """Returns the bank that the query pass reads."""
        return bank

    def judge(
            self, found: "Segmentation", bank: Any,
            encode_again: Callable[[Tensor], SupportBank]) -> "Segmentation":
        """Returns what was found of B queries, with their presence.

        Args:
            found: the segmentation.
            bank: as `listen` returned it, after the query pass.
            encode_again: runs the support pass on the queries with masks [B, S, S] of their own.

        """
        return found

    def save(self, folder: Path, unet: Path, variant: str | None = None) -> None:
        """Writes the head, if there is one, for the weights that lie in the folder `unet`."""


class Presence(NoPresence):
    """What compares a query with the support; `kind` says how."""

    def sign(self, bank: SupportBank, masks: Tensor) -> SupportBank:
        return bank.sign(sign(bank, masks, bank.shots))

    def judge(
            self, found: "Segmentation", bank: SupportBank,
            encode_again: Callable[[Tensor], SupportBank]) -> "Segmentation":
        if not bank.signature:
            raise InputError(
                "the support bank was made without a presence head, and cannot say whether its "
                "class is there; encode the support again, or give presence=off")
        masks = found.masks(THRESHOLD, RULE)
        return dataclasses.replace(found, presence=self.ask(found, masks, bank, encode_again))

    def ask(
            self, found: "Segmentation", masks: Tensor, bank: SupportBank,
            encode_again: Callable[[Tensor], SupportBank]) -> Tensor:
        """Says of each query how sure its class is there: float32 [B] in [0, 1]; see `judge`."""
        raise NotImplementedError


class CosinePresence(Presence):
    """Needs no training: how alike the first layer's keys are. It ranks; 0.5 means nothing."""

    kind = "cosine"

    def ask(
            self, found: "Segmentation", masks: Tensor, bank: SupportBank,
            encode_again: Callable[[Tensor], SupportBank]) -> Tensor:
        again = encode_again(masks).signature
        first = next(name for name in again if name.endswith(".key"))
        alike = F.cosine_similarity(bank.signature[first], again[first], dim=-1)
        return ((1 + alike.mean(1)) / 2).clamp(0, 1)


class HeadPresence(Presence):
    """Asks a trained head."""

    def __init__(self, head: PresenceHead, record: dict[str, Any]) -> None:
        self.head, self.record, self.kind = head.eval(), record, head.kind

    def listen(self, bank: SupportBank) -> ListeningBank:
        return ListeningBank(bank)

    def ask(
            self, found: "Segmentation", masks: Tensor, bank: SupportBank,
            encode_again: Callable[[Tensor], SupportBank]) -> Tensor:
        return self.head.to(masks.device)(self.inputs(found, masks, bank, encode_again))

    def inputs(
            self, found: "Segmentation", masks: Tensor, bank: SupportBank,
            encode_again: Callable[[Tensor], SupportBank]) -> Tensor:
        """Returns what the head is asked with, [B, S, D]; training keeps it."""
        assert isinstance(bank, ListeningBank)
        heard = ((name, key, value) for name, (key, value) in bank.heard.items())
        own = sign(heard, masks, shots=1)
        again = encode_again(masks).signature if self.kind == "full" else None
        return self.head.inputs(bank.signature, own, again, statistics(found.rgb, masks))

    def save(self, folder: Path, unet: Path, variant: str | None = None) -> None:
        """Writes the head, its record, and the hash of the weights in `unet`."""
        head, record = self.head, {
            **self.record, "format": FORMAT, "kind": self.kind,
            "heads": self.head.heads, "inputs": len(self.head.mean),
            "hidden": self.head.hidden, "weight_sha256": _hash_weights(unet, variant)}
        tensors = {name: tensor.half().contiguous() for name, tensor in head.state_dict().items()}
        check_finite(tensors.items(), f"{folder}, not written")
        write_atomic(folder / HEAD_FILE, save(tensors))
        write_atomic(folder / "config.json", json.dumps(record, indent=1) + "\n")


def open_presence(
        source: WeightDir, asked: str, unet: "DiffewsUNet",
        variant: str | None = None) -> NoPresence:
    """Returns who is asked for presence: auto, off, cosine, or a head of the kind full or fast.

    variant: of the weight files' names, see `weight_files`.

    Raises:
        InputError: for a head that is missing, damaged, of another kind or of other weights.

    """
    folder = source.path / PRESENCE
    if asked == "off" or asked == "auto" and not folder.is_dir():
        return NoPresence()
    choices = source.record.get("variant") or {}
    if choices.get("interaction", "kv_fusion") != "kv_fusion":
        raise InputError(
            f"{source.path}: presence needs interaction=kv_fusion, which has keys and values; "
            "give presence=off")
    if asked == "cosine":
        return CosinePresence()

    if not folder.is_dir():
        raise InputError(f"presence={asked}: no {PRESENCE}/ in {source.path}; {AGAIN}")
    found = load_presence(folder, unet, _hash_weights(source.unet, variant))
    if asked not in ("auto", found.kind):
        raise InputError(
            f"presence={asked}: the head in {folder} is {found.kind}; give presence={found.kind}, "
            f"or {AGAIN} kind={asked}")
    return found


def load_presence(folder: Path, unet: "DiffewsUNet", weight_sha256: str) -> HeadPresence:
    """Loads a head that `HeadPresence.save` wrote, for weights of this hash."""
    file, record = folder / HEAD_FILE, read_json(folder / "config.json")
    if record.get("format") != FORMAT:
        raise InputError(
            f"{folder}: format {record.get('format')!r} is not {FORMAT}; {AGAIN}")
    if record.get("weight_sha256") != weight_sha256:
        raise InputError(
            f"{folder}: the head was trained on other weights than these; {AGAIN}, remove the "
            "folder, or give presence=off")

    # what it compares must be what this UNet has
    with refuse(f"{folder} is no presence head", KeyError, TypeError, ValueError, RuntimeError,
                OSError, SafetensorError, cure=AGAIN):
        if record["kind"] not in KINDS or not 1 <= record["hidden"] <= MOST_HIDDEN:
            raise ValueError(f"kind={record['kind']!r}, hidden={record['hidden']!r}")
        head = make_head(unet, record["kind"], record["hidden"])
        ours = {"heads": head.heads, "inputs": len(head.mean)}
        differ = [name for name, value in ours.items() if record[name] != value]
        if differ:
            raise ValueError(f"{differ[0]} is {record[differ[0]]!r}, not {ours[differ[0]]!r}")
        tensors = load_file(file)
        check_finite(tensors.items(), str(file), AGAIN)
        head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    known = {"format", "kind", *ours, "hidden", "weight_sha256"}
    return HeadPresence(head, {k: v for k, v in record.items() if k not in known})


def _hash_weights(unet: Path, variant: str | None) -> str:
    return hash_files(weight_files(unet, variant))
