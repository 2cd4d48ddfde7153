"""Files that are complete or not there at all, and folders that belong to one run."""

import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from diffews import __version__
from diffews.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[2]  # where configs, datasets and weight lie
PACKAGES = (
    "torch", "diffusers", "transformers", "accelerate", "numpy", "pillow", "opencv-python-headless")

PARTIAL, LOCK = ".partial", ".lock"  # ends of the names of what is not a result


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file beside its place and moves it there, so that a reader never sees half of it."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write piece by piece, which takes its name only when all went well."""
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_new(out: Path) -> None:
    """Raises InputError if `out` exists; asked before long work, whose end `new_folder` is."""
    if out.exists() or out.is_symlink():
        raise InputError(f"out={out} exists; remove it or give another")


def short_name(path: Path) -> str:
    """Returns as much of a file's name as leaves room for more within a name's 255 bytes."""
    return os.fsencode(path.name)[:200].decode(errors="ignore")


def _partial(path: Path) -> Path:
    return path.with_name(f".{short_name(path)}.{os.getpid()}{PARTIAL}")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes its name only when all went well.

    Whoever calls it keeps the place to itself; see `diffews.runtime.locks`.
    """
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this number
    partial.mkdir()

    try:
        yield partial
        mode = partial.stat().st_mode & 0o666  # as the umask says; safetensors keeps its files
        for file in partial.rglob("*"):  # to their owner
            if file.is_file():
                file.chmod(mode)
        partial.rename(path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        number = re.search(r"os error (\d+)", str(error))  # a full disk, as safetensors says it
        if type(error).__name__ != "SafetensorError" or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def check_regular(path: str | Path) -> None:
    """Raises InputError for what cannot be opened, and for what is there but is no file.

    Reading a FIFO or a device may never end. What is missing is left to whoever opens it.
    """
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror})") from None
    if not is_file:
        raise InputError(f"{path} is no file but a folder, FIFO or device; replace the file")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file."""
    check_regular(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); replace or remove it") from None

    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def counted_values(config: Any) -> dict[str, Any]:
    """Returns the part of a run's identity that its config says: the keys that change the result.

    Keys that change none are left out, and those for which another entry of the identity stands;
    `diffews.cli.keys.key` declares them.
    """
    return {
        item.name: getattr(config, item.name) for item in dataclasses.fields(config)
        if item.metadata["changes_result"] and item.metadata["counted_as"] is None}


def default_values(config: Any) -> dict[str, Any]:
    """Returns what each key of a config is where nobody says it."""
    return {item.name: item.default for item in dataclasses.fields(config)
            if item.default is not dataclasses.MISSING}


def check_run(
    out: Path, identity: dict[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Raises InputError as `open_run` would, and writes nothing."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; give a folder")
    identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file

    if (out / "run.json").is_file():
        earlier = read_json(out / "run.json")
        # a key that is newer than the run, and off or at its default, changes nothing; nor does
        # one that is no longer counted
        known = [k for k in {**earlier, **identity} if k in identity or k not in defaults]
        differ = [k for k in known if earlier.get(k) != identity.get(k)
                  and (k in earlier or identity[k] and identity[k] != defaults.get(k))]
        if differ:
            changes = ", ".join(
                f"{k}: {_short(earlier.get(k))} there, {_short(identity.get(k))} now"
                for k in differ)
            raise InputError(
                f"{out} holds another run ({changes}); give another folder, or remove it")

    # a kill may have left these before the run's own file was written
    elif out.is_dir() and any(
            path.name != LOCK and not path.name.endswith(PARTIAL) for path in out.iterdir()):
        raise InputError(
            f"{out} is not empty and holds no run of this program; give another folder")


def open_run(
    out: Path, identity: dict[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Makes `out` the folder of a run, or checks that it is already that of the same run.

    identity: what changes the results, kept in out/run.json. defaults: of keys by their names, what
    a run was made with that is older than the key.

    Raises:
        InputError: when `out` holds another run (naming the keys that differ), or something else.

    """
    check_run(out, identity, defaults)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "run.json").is_file():
        write_atomic(out / "run.json", json.dumps(identity, indent=1) + "\n")


def hash_files(paths: Sequence[Path]) -> str:
    """Returns the sha256 over the files' contents, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        check_regular(path)
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


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
    is_sha256 = isinstance(value, str) and len(value) == 64
    return f"{value[:8]}..." if is_sha256 else str(value)
