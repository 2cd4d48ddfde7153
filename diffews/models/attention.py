"""KV-fusion self-attention: the support set is a bank of keys and values that the query reads (paper, section 4.1)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffews.errors import InputError


class SupportBank:
    """Keys and values that every self-attention layer computed for a batch of support sets.

    Shapes: B support sets, S shots in each, N tokens of a layer, C channels of a layer.
    A bank is a value: all methods but `record` leave it as it is and return a new one.
    """

    def __init__(self, shots: int, layers: dict[str, tuple[Tensor, Tensor]] | None = None) -> None:
        self.shots = shots
        self._layers = dict(layers or {})  # layer name -> key, value, each [B, S*N, C]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for layer, (key, value) in self._layers.items():
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
        return sum(key.nbytes + value.nbytes for _, key, value in self)

    def record(self, layer: str, key: Tensor, value: Tensor) -> None:
        """Keeps key and value of a layer, each [B*S, N, C]; the shots of one set stand next to each other."""
        if layer in self._layers:  # gradient checkpointing runs the support pass a second time, in backward
            return
        batch = key.shape[0] // self.shots
        self._layers[layer] = (key.reshape(batch, -1, key.shape[-1]), value.reshape(batch, -1, value.shape[-1]))

    def extend(self, layer: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the support tokens to a query's key and value: [B, N, C] -> [B, N + S*N, C]."""
        support_key, support_value = self._layers[layer]
        batch = key.shape[0]
        return (
            torch.cat([key, support_key.expand(batch, -1, -1)], dim=1),
            torch.cat([value, support_value.expand(batch, -1, -1)], dim=1),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SupportBank":
        """Returns the bank on another device or in another floating-point type."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def expand(self, batch: int) -> "SupportBank":
        """Returns the bank of one support set as that of `batch` queries, without copying."""
        if self.batch != 1:
            raise InputError(f"only a bank of one support set can be expanded; this one holds {self.batch}")
        return self._map(lambda tensor: tensor.expand(batch, -1, -1))

    def concatenate(self, other: "SupportBank") -> "SupportBank":
        """Returns the bank with the shots of `other` added behind its own."""
        if self.batch != other.batch or self._layers.keys() != other._layers.keys():
            raise InputError(
                f"banks do not fit: {self.batch} support sets in {len(self)} layers "
                f"against {other.batch} in {len(other)} layers"
            )
        layers = {
            layer: (torch.cat([key, other._layers[layer][0]], 1), torch.cat([value, other._layers[layer][1]], 1))
            for layer, key, value in self
        }
        return SupportBank(self.shots + other.shots, layers)

    def sample(self, shots: int, generator: torch.Generator | None = None) -> "SupportBank":
        """Returns a random subset of every layer's tokens, as many as `shots` supports have (paper, section 4.5).

        The tokens keep their order; the same ones are taken from every set, and keys and values stay paired.
        """
        if not 1 <= shots <= self.shots:
            raise InputError(f"cannot sample {shots} shots' worth of tokens from a bank of {self.shots}")
        layers = {}
        for layer, key, value in self:
            tokens = key.shape[1] * shots // self.shots
            kept = torch.randperm(key.shape[1], generator=generator)[:tokens].sort().values.to(key.device)
            layers[layer] = (key[:, kept], value[:, kept])
        return SupportBank(shots, layers)

    def save(self, path: str | Path) -> None:
        """Writes the bank as a safetensors file."""
        tensors = {f"{layer}.{part}": tensor.contiguous()
                   for layer, key, value in self for part, tensor in (("key", key), ("value", value))}  # fmt: skip
        save_file(tensors, path, metadata={"shots": str(self.shots)})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "SupportBank":
        """Reads a bank that `save` wrote."""
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                shots = int((file.metadata() or {})["shots"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
                layers = {
                    name.removesuffix(".key"): (tensors[name], tensors[name.removesuffix("key") + "value"])
                    for name in sorted(tensors)
                    if name.endswith(".key")
                }
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a support bank ({error}); write one with SupportBank.save") from error
        return cls(shots, layers)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "SupportBank":
        return SupportBank(self.shots, {layer: (function(key), function(value)) for layer, key, value in self})


class BankAttnProcessor:
    """Attention of one layer; self-attention also writes to, or reads from, a SupportBank.

    Which of the two is said by the call, never by the bank: gradient checkpointing replays a call with its own
    arguments long after the bank has moved on.
    """

    _attention_backend = None  # set by unet.set_attention_backend(...)
    _parallel_config = None

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(  # noqa: D102  (the interface of diffusers' processors)
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        record_to: SupportBank | None = None,
        read_from: SupportBank | None = None,
    ) -> Tensor:
        is_self_attention = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)  # each [B, N, C]

        if is_self_attention and record_to is not None:
            record_to.record(self.layer, key, value)
        if is_self_attention and read_from is not None:
            key, value = read_from.extend(self.layer, key, value)

        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))  # [B, N, heads, C/heads]
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))  # [B, N, C]
