"""Fusion self-attention: the query reads the support set's keys and values (paper, section 4.1)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffews.errors import InputError
from diffews.runtime.files import write_atomic
from diffews.runtime.finite import check_finite


class SupportBank:
    """Keys and values that every self-attention layer computed for a batch of support sets.

    Shapes: B support sets, S shots in each, N tokens of a layer, C channels of a layer.
    A bank is a value: its methods leave it as it is and return a new one.
    signature: what a presence head compares of each shot, name -> [B, S, C]; see `presence.py`.
    """

    def __init__(
            self, shots: int, layers: dict[str, tuple[Tensor, ...]] | None = None,
            signature: dict[str, Tensor] | None = None) -> None:
        self.shots = shots
        self.signature = dict(signature or {})
        # name -> key, value [B, S*N, C] and, if any token is hidden, seen [B, S*N, 1]
        self._layers = dict(layers or {})

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for layer, (key, value, *_) in self._layers.items():
            yield layer, key, value

    def __getitem__(self, sets: slice) -> "SupportBank":
        """Returns the bank of some of its support sets."""
        return self._map(lambda tensor: tensor[sets])

    @property
    def batch(self) -> int:
        """Number of support sets B; 0 in a bank that has recorded nothing."""
        return next((key.shape[0] for _, key, _ in self), 0)

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values take."""
        return sum(tensor.nbytes for tensors in self._layers.values() for tensor in tensors)

    def extend(self, layer: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the support tokens to a query's key and value: [B, N, C] -> [B, N + S*N, C]."""
        support_key, support_value, *_ = self._layers[layer]
        batch = key.shape[0]
        return (
            torch.cat([key, support_key.expand(batch, -1, -1)], dim=1),
            torch.cat([value, support_value.expand(batch, -1, -1)], dim=1))

    def seen(self, layer: str, tokens: int) -> Tensor | None:
        """Returns which of a query's N `tokens` and the support's are visible.

        Bool [B, 1, 1, N + S*N]; None for all.
        """
        _, _, *seen = self._layers[layer]
        if not seen:
            return None
        return F.pad(seen[0][..., 0] > 0, (tokens, 0), value=True)[:, None, None]

    def to(
            self, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None) -> "SupportBank":
        """Returns the bank on another device or in another floating-point type."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def expand(self, batch: int) -> "SupportBank":
        """Returns the bank of one support set as that of `batch` queries, without copying."""
        if self.batch != 1:
            raise InputError(
                f"only a bank of one support set can be expanded; this one holds {self.batch}")
        return self._map(lambda tensor: tensor.expand(batch, -1, -1))

    def concatenate(self, other: "SupportBank") -> "SupportBank":
        """Returns the bank with the shots of `other` added behind its own."""
        if self.batch != other.batch or self._layers.keys() != other._layers.keys():
            raise InputError(
                f"banks do not fit: {self.batch} support sets in {len(self)} layers "
                f"against {other.batch} in {len(other)} layers")

        # where one bank hides tokens, the other must say that it shows all
        hides = any(len(tensors) > 2 for bank in (self, other) for tensors in bank._layers.values())
        layers = {
            layer: tuple(map(_cat, _parts(tensors, hides), _parts(other._layers[layer], hides)))
            for layer, tensors in self._layers.items()}
        both = self.signature.keys() & other.signature.keys()
        signature = {name: _cat(self.signature[name], other.signature[name]) for name in both}
        return SupportBank(self.shots + other.shots, layers, signature)

    def sample(self, shots: int, generator: torch.Generator | None = None) -> "SupportBank":
        """Returns a random subset of every layer's tokens (paper, section 4.5).

        The tokens keep their order; the same ones are taken from every set, and keys and values
        stay paired.
        shots: as many tokens are kept as so many supports have; 1 to the bank's own number.
        """
        if not 1 <= shots <= self.shots:
            raise InputError(
                f"cannot sample {shots} shots' worth of tokens from a bank of {self.shots}")

        layers = {}
        for layer, tensors in self._layers.items():
            count = tensors[0].shape[1]
            order = torch.randperm(count, generator=generator)
            kept = order[: count * shots // self.shots].sort().values
            layers[layer] = tuple(tensor[:, kept.to(tensor.device)] for tensor in tensors)
        return SupportBank(shots, layers, self.signature)

    def sign(self, signature: dict[str, Tensor]) -> "SupportBank":
        """Returns the bank with another signature."""
        return SupportBank(self.shots, self._layers, signature)

    def save(self, path: str | Path, weights: str = "") -> None:
        """Writes the bank as a safetensors file.

        weights: a hash of the weights that recorded it, which `load` compares.
        """
        tensors = {
            f"{layer}.{part}": tensor.contiguous()
            for layer, tensors in self._layers.items()
            for part, tensor in zip(_PARTS, tensors, strict=False)}
        tensors |= {
            _SIGNATURE + name: tensor.contiguous() for name, tensor in self.signature.items()}
        check_finite(tensors.items(), f"{path}, not written", "encode the support in dtype=fp32")
        metadata = {"shots": str(self.shots), "weights": weights}
        write_atomic(Path(path), save(tensors, metadata=metadata))

    @classmethod
    def load(
            cls, path: str | Path, device: torch.device | str = "cpu",
            weights: str = "") -> "SupportBank":
        """Reads a bank that `save` wrote.

        weights: the hash of the weights that are to read it; compared if both are known.

        Raises:
            InputError: for a file that is no bank, or a bank of other weights.

        """
        layers: dict[str, dict[str, Tensor]] = {}
        signature: dict[str, Tensor] = {}
        place = "cpu" if torch.device(device).type == "cpu" else str(device)  # knows no cpu:0
        try:
            with safe_open(path, framework="pt", device=place) as file:
                metadata = file.metadata() or {}
                shots = int(metadata["shots"])
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    if name.startswith(_SIGNATURE):
                        signature[name.removeprefix(_SIGNATURE)] = file.get_tensor(name)
                        continue
                    layer, _, part = name.rpartition(".")
                    layers.setdefault(layer, {})[part] = file.get_tensor(name)
            found = {
                layer: tuple(parts[part] for part in _PARTS[: max(2, len(parts))])
                for layer, parts in layers.items()}
            _check_shapes(found, signature, shots)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} is not a support bank ({error}); write one with SupportBank.save"
            ) from error

        for layer, parts in {**layers, "signature": signature}.items():
            check_finite(
                ((f"{layer}.{part}", tensor) for part, tensor in parts.items()), str(path),
                "encode the support again")

        # keys and values mean nothing to other weights
        if weights and metadata.get("weights") and metadata["weights"] != weights:
            raise InputError(
                f"{path}: other weights, or another precision, recorded this bank; "
                "encode the support again")
        return cls(shots, found, signature)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "SupportBank":
        layers = {layer: tuple(map(function, tensors)) for layer, tensors in self._layers.items()}
        signature = {name: function(tensor) for name, tensor in self.signature.items()}
        return SupportBank(self.shots, layers, signature)


class BankRecorder:
    """Takes what the layers of a support pass compute; `bank` is the value that they make.

    It has no `.to`: the hooks of offloaded models call that on every argument, and would record
    into a copy.
    visible: [B*S, 1, h, w], 0 where a support token is hidden from the query; None shows all.
    last: the layer that records last; its attention is left out, since nobody reads the rest of
    the support pass.
    """

    def __init__(
            self, shots: int, visible: Tensor | None = None, last: str | None = None) -> None:
        self.shots, self.last = shots, last
        self._visible = visible
        self._layers: dict[str, tuple[Tensor, ...]] = {}

    def record(self, layer: str, key: Tensor, value: Tensor) -> None:
        """Keeps key and value of a layer, each [B*S, N, C]; the shots of one set are neighbours."""
        if layer in self._layers:  # gradient checkpointing runs the pass again, in backward
            return
        tensors = [key, value]
        if self._visible is not None:
            tensors.append(visible_tokens(self._visible, key.shape[1]).to(key))
        batch = key.shape[0] // self.shots
        self._layers[layer] = tuple(
            tensor.reshape(batch, -1, tensor.shape[-1]) for tensor in tensors)

    @property
    def bank(self) -> SupportBank:
        """What was recorded so far."""
        return SupportBank(self.shots, self._layers)


_PARTS = ("key", "value", "seen")  # of a layer, in a bank's file
_SIGNATURE = "signature/"  # how the names begin of what is kept beside the layers


def _check_shapes(
        layers: dict[str, tuple[Tensor, ...]], signature: dict[str, Tensor], shots: int) -> None:
    """Raises ValueError unless every layer holds so many shots of the same support sets."""
    sets = {tensors[0].shape[0] for tensors in layers.values() if tensors[0].ndim}
    for layer, (key, value, *seen) in layers.items():
        if key.ndim != 3 or key.shape != value.shape or shots < 1 or key.shape[1] % shots:
            raise ValueError(f"{layer}: key {list(key.shape)}, value {list(value.shape)} are not "
                             f"those of {shots} shots")
        if len(sets) != 1 or any(part.shape != (*key.shape[:2], 1) for part in seen):
            raise ValueError(f"{layer}: not of as many support sets or tokens as the rest")
    for name, tensor in signature.items():
        if tensor.ndim != 3 or tensor.shape[0] not in sets or tensor.shape[1] != shots:
            raise ValueError(f"{name}: {list(tensor.shape)} is no signature of {shots} shots")


def _parts(tensors: tuple[Tensor, ...], hides: bool) -> tuple[Tensor, ...]:
    """A layer's tensors, with `seen` if any bank hides tokens: one that hides none shows all."""
    if hides and len(tensors) == 2:
        return (*tensors, torch.ones_like(tensors[0][..., :1]))
    return tensors


def _cat(one: Tensor, other: Tensor) -> Tensor:
    return torch.cat([one, other], dim=1)


def visible_tokens(visible: Tensor, tokens: int) -> Tensor:
    """Which of a layer's tokens lie in the mask: [B, 1, h, w] -> float {0, 1} [B, tokens, 1].

    A token is visible if any part of it is, so that no object vanishes in the deep layers.
    """
    height, width = visible.shape[-2:]
    factor = (height * width / tokens) ** 0.5
    size = (round(height / factor), round(width / factor))
    return (F.adaptive_max_pool2d(visible.float(), size) > 0).float().flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class JointPass:
    """Queries and supports in one batch, sharing self-attention (QKV fusion; paper, section 4.1).

    The batch holds B queries, then their B*S supports.
    visible: [B*S, 1, h, w], 0 where no token may be read; None where all may.
    """

    shots: int
    visible: Tensor | None = None

    def join(self, tokens: Tensor) -> Tensor:
        """Puts a query's and its supports' tokens in a row: [B + B*S, N, C] -> [B, N + S*N, C]."""
        batch = len(tokens) // (1 + self.shots)
        supports = tokens[batch:].reshape(batch, -1, tokens.shape[-1])
        return torch.cat([tokens[:batch], supports], dim=1)

    def split(self, tokens: Tensor) -> Tensor:
        """Undoes `join`."""
        count = tokens.shape[1] // (1 + self.shots)
        supports = tokens[:, count:].reshape(-1, count, tokens.shape[-1])
        return torch.cat([tokens[:, :count], supports])

    def seen(self, tokens: int) -> Tensor | None:
        """Returns which of a row's tokens are visible, bool [B, 1, 1, N + S*N]; None for all."""
        if self.visible is None:
            return None
        seen = visible_tokens(self.visible, tokens).reshape(-1, self.shots * tokens) > 0
        return F.pad(seen, (tokens, 0), value=True)[:, None, None]


@dataclass(frozen=True)
class TextKeys:
    """The constant text condition, with what every cross-attention layer makes of it."""

    embedding: Tensor  # [1, tokens, C]
    layers: dict[str, tuple[Tensor, Tensor]]  # name -> key, value, each [1, tokens, C of the layer]


class BankAttnProcessor:
    """Attention of one layer; self-attention also writes to, or reads from, a SupportBank.

    Which of the two is said by the call, never by the bank: gradient checkpointing replays a call
    with its own arguments long after the bank has moved on.
    """

    _attention_backend = None  # set by unet.set_attention_backend(...)
    _parallel_config = None

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(
            self, attn: Attention, hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
            temb: Tensor | None = None, record_to: BankRecorder | None = None,
            read_from: SupportBank | None = None, joint: JointPass | None = None,
            text_keys: TextKeys | None = None, text_seen: Tensor | None = None) -> Tensor:
        """Attends as diffusers' processors do: [B, N, C] -> [B, N, C].

        encoder_hidden_states: text [B, T, C] in cross-attention, None in self-attention.
        attention_mask: what the plain forward adds to the scores, [B, 1, tokens]; None: nothing.
        record_to, read_from, joint: what self-attention does beside attending to itself.
        text_keys: keys and values of a constant text. text_seen: bool [B, 1, 1, T]; None for all.
        """
        query = attn.to_q(hidden_states)  # [B, N, C]

        # the plain forward's mask, for every head: [B, heads, 1 or N, tokens]
        if attention_mask is not None:
            keyed = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            attention_mask = attn.prepare_attention_mask(
                attention_mask, keyed.shape[1], len(query), out_dim=4)

        # cross-attention: the text, whose keys may be known already
        if encoder_hidden_states is not None:
            attention_mask = text_seen if text_seen is not None else attention_mask
            if text_keys is not None:
                rows = query.shape[0]  # with len(), an export would fix the batch
                key, value = (x.expand(rows, -1, -1) for x in text_keys.layers[self.layer])
            else:
                key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)

        # self-attention: the support pass records, the query pass reads
        else:
            key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
            if record_to is not None:
                record_to.record(self.layer, key, value)
                if record_to.last == self.layer:
                    return hidden_states
            if read_from is not None:
                attention_mask = read_from.seen(self.layer, key.shape[1])
                key, value = read_from.extend(self.layer, key, value)
            if joint is not None:
                attention_mask = joint.seen(key.shape[1])
                query, key, value = map(joint.join, (query, key, value))

        # [B, N, C] -> [B, N, heads, C/heads], and back
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
        out = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend,
            parallel_config=self._parallel_config).flatten(2)
        if joint is not None and encoder_hidden_states is None:
            out = joint.split(out)
        return attn.to_out[1](attn.to_out[0](out))  # [B, N, C]
