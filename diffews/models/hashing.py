"""The hash of a pipeline's weights, by which a bank knows who recorded it."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from torch import Tensor, nn


class WeightsHash:
    """The sha256 of modules and a text, kept together with what it was computed from.

    Weights change in many ways: adapters, `load_state_dict`, `.to`, a sum into `weight.data` that
    leaves no trace. So every use looks at the tensors as they are now: where they lie, and the sum
    of their bytes, which takes a tenth of the time of their sha256.
    """

    def __init__(self) -> None:
        self._hash = ""
        self._made_from: list[Any] = []

    def read(self, modules: Sequence[nn.Module], text: Tensor) -> str:
        """Returns the hash of all that a bank depends on, in its precision here."""
        states = [*map(_state, modules), [("", text)]]
        adapters = [_adapters(module) for module in modules]
        made_from: list[Any] = [*adapters]
        for name, tensor in (item for state in states for item in state):
            version = 0 if tensor.is_inference() else tensor._version
            made_from.append((name, tensor.data_ptr(), version, tensor.dtype, _sum(_bytes(tensor))))

        if made_from != self._made_from:
            self._hash, self._made_from = _hash(states, adapters), made_from
        return self._hash


def _hash(states: Sequence[list[tuple[str, Tensor]]], adapters: Sequence[str]) -> str:
    """The sha256 of every name and value, and of how adapters are set where there are any."""
    digest = sha256()
    for name, tensor in (item for state in states for item in state):
        digest.update(name.encode() + _bytes(tensor).cpu().numpy().tobytes())
    digest.update("".join(adapters).encode())
    return digest.hexdigest()


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's tensors by name, sorted; those of quantized weights one by one."""
    state = module.state_dict(keep_vars=True)
    if any(tensor.is_meta for tensor in state.values()):  # they wait elsewhere, and are fetched
        state = get_state_dict_offloaded_model(module)
    return [part for name, tensor in sorted(state.items()) for part in _parts(name, tensor)]


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    inner, _ = tensor.__tensor_flatten__()
    for part in inner:
        yield from _parts(f"{name}.{part}", getattr(tensor, part))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def _sum(values: Tensor) -> int:
    """The sum of bytes, eight at a time where they stand so."""
    whole = len(values) - len(values) % 8 if values.storage_offset() % 8 == 0 else 0
    return int(values[:whole].view(torch.int64).sum()) + int(values[whole:].sum())


def _adapters(module: nn.Module) -> str:
    """Which adapters count, and how much: it is in no tensor."""
    found = {
        name: (layer.active_adapters, layer.scaling, layer.disable_adapters, layer.merged)
        for name, layer in module.named_modules() if hasattr(layer, "lora_A")}
    return str(found) if found else ""
