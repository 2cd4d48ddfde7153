"""Reads items ahead in worker processes, in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from diffews.errors import InputError

Key = TypeVar("Key")
Item = TypeVar("Item")


class _Reads(Dataset):
    """Bad input comes back as a value, since a raise in a worker arrives as a traceback."""

    def __init__(self, read: Callable[[Any], Any], keys: Sequence[Any]) -> None:
        self.read, self.keys = read, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> Any:
        try:
            return self.read(self.keys[position])
        except InputError as error:
            return error


def stream(read: Callable[[Key], Item], keys: Sequence[Key], workers: int) -> Iterator[Item]:
    """Yields read(key) for each key in order, computed by `workers` processes (0: in this one).

    Raises:
        InputError: as `read` raised it.

    """
    for item in DataLoader(_Reads(read, keys), batch_size=None, num_workers=min(workers, len(keys))):
        if isinstance(item, InputError):
            raise item
        yield item
