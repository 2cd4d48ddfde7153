"""Files that are complete or not there at all, and folders that belong to one run."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffews import __version__
from diffews.errors import InputError

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow", "opencv-python-headless")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file beside its place and moves it there, so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes its name only when all went well."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def open_run(out: Path, identity: dict[str, Any]) -> None:
    """Makes `out` the folder of a run, or checks that it is already that of the same run.

    identity: what changes the results, kept in out/run.json.

    Raises:
        InputError: when `out` holds another run (naming the keys that differ), or something else.

    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "run.json"
    identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    if file.is_file():
        earlier = json.loads(file.read_text())
        differ = [k for k in {**earlier, **identity} if earlier.get(k) != identity.get(k)]
        if differ:
            changes = ", ".join(f"{k}: {_short(earlier.get(k))} there, {_short(identity.get(k))} now" for k in differ)
            raise InputError(f"out={out} holds another run ({changes}); give another out=")
    elif any(not path.name.endswith(".partial") for path in out.iterdir()):  # a killed process may leave those
        raise InputError(f"out={out} is not empty and holds no run of this program; give another out=")
    else:
        write_atomic(file, json.dumps(identity, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Returns the versions that results depend on, for the files that record them."""
    found = {"diffews": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _short(value: Any) -> str:
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else str(value)  # 64: a sha256
