"""Reads items ahead in worker processes, in order."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from diffews.errors import result_or_error, unwrap
from diffews.runtime.workers import begin_worker, watched

Key = TypeVar("Key")
Item = TypeVar("Item")


def stream(read: Callable[[Key], Item], keys: Sequence[Key], workers: int,
           pin: bool = False) -> Iterator[Item]:
    """Yields read(key) for each key in order, computed by `workers` processes (0: in this one).

    pin: put the items into memory from which a GPU can copy while it computes; they need a
        `pin_memory` method.

    Raises:
        InputError: as `read` raised it, and where worker processes cannot work.

    """
    # the keys are the data set, and what reads them takes the place of collating
    caught, workers = functools.partial(result_or_error, read), min(workers, len(keys))
    loader: DataLoader[Any] = DataLoader(
        keys,  # type: ignore[arg-type]
        batch_size=None, collate_fn=caught, num_workers=workers, pin_memory=pin,
        worker_init_fn=functools.partial(_begin, os.getpid()))

    found = watched(loader, "workers=0 does without") if workers else loader
    for item in found:
        yield unwrap(item)


def _begin(parent: int, _: int) -> None:
    begin_worker(parent)
