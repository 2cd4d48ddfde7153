"""One folder, one writer: a lock that names its process, and is free when that process is gone."""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffews.errors import InputError
from diffews.runtime.files import LOCK, PARTIAL, check_new, short_name

TAKEN = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system that has none


@contextmanager
def one_writer(out: Path, new: bool = False) -> Iterator[None]:
    """Keeps a folder to this process, and removes what killed ones had begun to write there.

    The folder is made, and is gone again if it is left empty.

    Args:
        out: the folder.
        new: it is made by `new_folder` at the end of the work; the lock lies beside it till then.

    Raises:
        InputError: when another process writes into it, when it is a file, or, if `new`, when it
            exists.

    """
    place = out.parent if new else out
    if place.exists() and not place.is_dir():
        raise InputError(f"out={out}: {place} is a file; give a folder")
    lock = place / (f".{short_name(out)}{LOCK}" if new else LOCK)
    made = [folder for folder in (place, *place.parents) if not folder.exists()]

    try:
        held = _take(lock, out)
        try:
            if new:
                check_new(out)
            name = f".{short_name(out)}." if new else "."
            for pattern in (f"*{PARTIAL}",) if new else (f"*{PARTIAL}", f"*/*{PARTIAL}"):
                for partial in place.glob(pattern):
                    if partial.name.startswith(name):
                        _remove(partial)
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held: whoever opened it sees that it is gone
            os.close(held)
    finally:
        with suppress(OSError):  # of these folders, those that now hold something stay
            for folder in made:
                folder.rmdir()


def _take(lock: Path, out: Path) -> int:
    """Makes the lock file and locks it -> its descriptor; the system frees it with the process."""
    while True:
        with suppress(FileNotFoundError):  # another process has just removed an empty folder
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(held, 300, 0).decode(errors="replace").strip() or "another process"
                os.close(held)
                if error.errno in TAKEN:
                    raise InputError(f"{out} is being written by {owner}; wait until it ends, "
                                     "or give another folder") from None
                if error.errno not in NO_LOCKS:
                    raise
                held = os.open(lock, os.O_RDWR)

            # one that was removed before it was locked keeps nobody out
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held), lock.stat()):
                    os.truncate(held, 0)
                    os.pwrite(held, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                    return held
            os.close(held)


def _remove(partial: Path) -> None:
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)
