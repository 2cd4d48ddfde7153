"""Reads items ahead in worker processes, in order."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from diffews.errors import result_or_error, unwrap

Key = TypeVar("Key")
Item = TypeVar("Item")


def stream(read: Callable[[Key], Item], keys: Sequence[Key], workers: int,
           pin: bool = False) -> Iterator[Item]:
    """Yields read(key) for each key in order, computed by `workers` processes (0: in this one).

    pin: put the items into memory from which a GPU can copy while it computes; they need a
        `pin_memory` method.

    Raises:
        InputError: as `read` raised it.

    """
    # the keys are the data set, and what reads them takes the place of collating
    loader: DataLoader[Any] = DataLoader(
        keys,  # type: ignore[arg-type]
        batch_size=None, collate_fn=functools.partial(result_or_error, read),
        num_workers=min(workers, len(keys)), pin_memory=pin)
    for item in loader:
        yield unwrap(item)
