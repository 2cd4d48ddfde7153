"""Reads items ahead in worker processes, in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from diffews.errors import raised, returned

Key = TypeVar("Key")
Item = TypeVar("Item")


class _Reads(Dataset[Any]):
    def __init__(self, read: Callable[[Any], Any], keys: Sequence[Any]) -> None:
        self.read, self.keys = read, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> Any:
        return returned(self.read, self.keys[position])


def stream(read: Callable[[Key], Item], keys: Sequence[Key], workers: int, pin: bool = False) -> Iterator[Item]:
    """Yields read(key) for each key in order, computed by `workers` processes (0: in this one).

    pin: put the items into memory from which a GPU can copy while it computes; they need a `pin_memory` method.

    Raises:
        InputError: as `read` raised it.

    """
    loader = DataLoader(_Reads(read, keys), batch_size=None, num_workers=min(workers, len(keys)), pin_memory=pin)
    for item in loader:
        yield raised(item)
