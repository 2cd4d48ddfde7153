"""The processes of one run, which refuse, write and end together."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate import PartialState

from diffews.errors import InputError
from diffews.runtime.device import memory_advice
from diffews.runtime.locks import one_writer

LOST = ("gloo", "Connection", "NCCL", "ProcessGroup", "socket")  # in what torch says of a peer
_channels: dict[Any, Any] = {}  # of the default group: the one that objects are exchanged in


@dataclass
class Step:
    """What the processes found in a step: this one's, and after the step everyone's, by rank."""

    mine: Any = None
    all: list[Any] = field(default_factory=list)


@contextmanager
def in_step() -> Iterator[Step]:
    """A step that all processes take together.

    Inside, each puts what it found into `mine`; at the end `all` holds everyone's. What one
    refuses, all refuse, so that none waits for another forever.
    """
    step, error = Step(), None
    try:
        with memory_advice():
            yield step
    except (InputError, OSError) as caught:
        error = caught

    with together():
        found = _exchange((step.mine, error))
    for _, refusal in found:
        if refusal is not None:
            raise refusal
    step.all = [mine for mine, _ in found]


@contextmanager
def together() -> Iterator[None]:
    """Turns what torch raises when another process of the run has ended into one line."""
    try:
        yield
    except RuntimeError as error:
        is_alone = not torch.distributed.is_initialized()
        if is_alone or not any(word in str(error) for word in LOST):
            raise
        raise InputError("another process of this run has ended; it says why") from None


@contextmanager
def one_run(out: Path) -> Iterator[None]:
    """Keeps `out` to the processes of this run; the main one holds the lock. See `one_writer`."""
    with ExitStack() as held:
        with in_step():
            if PartialState().is_main_process:
                held.enter_context(one_writer(out))
        yield


def _exchange(mine: Any) -> list[Any]:
    """Returns what each process gives, in the order of their numbers.

    Through gloo, which notices at once that a process is gone; NCCL would wait for ten minutes.
    """
    world = PartialState()
    if world.num_processes == 1:
        return [mine]
    default = torch.distributed.group.WORLD
    if default not in _channels:
        _channels.clear()  # a group of an earlier run in this process
        _channels[default] = torch.distributed.new_group(backend="gloo")
    found: list[Any] = [None] * world.num_processes
    torch.distributed.all_gather_object(found, mine, group=_channels[default])
    return found
