"""Processes that help another: they end with it, and where they cannot work it says so."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any

from diffews.errors import InputError, first_line

MOST = 4  # workers a core; more only take memory
END = object()
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends


def check_workers(workers: int) -> None:
    """Raises InputError for more workers than this machine can have any use of."""
    cores = os.cpu_count() or 1
    most = max(MOST * cores, 32)
    if workers > most:
        raise InputError(f"workers={workers} must be at most {most} on {cores} CPU cores")


def begin_worker(parent: int) -> None:
    """Ties the process that calls it, which has just been started, to the one that started it.

    Args:
        parent: pid of the process that started it; a Ctrl-C is that one's to answer.

    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)

    # what cannot be sent back, for want of memory or file handles, would be waited for in vain
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: Exception, _: Any) -> None:
    os.write(2, f"diffews: warning: a worker ended: {first_line(error)}\n".encode())
    os._exit(1)


def watched(results: Iterable[Any], cure: str) -> Iterator[Any]:
    """Yields what workers give; what keeps these from working becomes one line.

    Raises:
        InputError: for workers that ended or could not start; `cure` says what to do.

    """
    with worker_advice(cure):
        results = iter(results)
    while True:
        with worker_advice(cure):
            result = next(results, END)
        if result is END:
            return
        yield result


@contextmanager
def worker_advice(cure: str) -> Iterator[None]:
    """Turns what keeps workers from working into one line that says what to do."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if str(error).startswith("Caught "):  # by torch, in a worker that works
            raise
        raise InputError(
            "the processes that workers= starts ended or could not start "
            f"({first_line(error)}): too few file handles or processes, or too little shared "
            f"memory; {cure}") from None
