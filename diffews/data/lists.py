"""Lists of images: from the data folder (JSON, or the published pickles) or built in."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffews.errors import InputError

ClassLists = dict[int, list[str]]  # class id -> image names, in the order that the published episodes need


def read_class_lists(folder: Path, fold: int, splits: str, builtin: Callable[[], ClassLists]) -> ClassLists:
    """Reads `fold<F>.json`, else `fold<F>.pkl`, else the built-in lists, as far as `splits` allows.

    splits: "auto" takes the folder's lists where there are any, "folder" insists on them, "builtin" ignores them.
    """
    files = [] if splits == "builtin" else [folder / f"fold{fold}{suffix}" for suffix in (".json", ".pkl")]
    for file in files:
        if file.is_file():
            return _as_class_lists(read_plain(file), file)
    if splits == "folder":
        raise InputError(f"splits=folder, but there is neither {files[0]} nor {files[1].name}")
    return builtin()


class _DataUnpickler(pickle.Unpickler):
    """Reads dicts, lists, tuples, texts and numbers; a pickle that names any global is refused before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")


def read_pickle(file: Path) -> Any:
    """Reads a pickle of plain data; nothing in it can run."""
    try:
        with file.open("rb") as stream:
            return _DataUnpickler(stream).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(
            f"{file} is refused: {error or type(error).__name__}; only plain lists are read from pickles"
        ) from None


def read_json_file(file: Path) -> Any:
    """Reads a JSON file."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; see datasets/README.md") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error})") from None


def read_plain(file: Path) -> Any:
    """Reads a JSON file or a pickle of plain data."""
    return read_json_file(file) if file.suffix == ".json" else read_pickle(file)


def read_table(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Reads `name`.json, else `name`.pkl, of a folder -> the file and what it holds."""
    for file in (folder / f"{name}.json", folder / f"{name}.pkl"):
        if file.is_file():
            table = read_plain(file)
            if not isinstance(table, dict):
                raise InputError(f"{file} holds {type(table).__name__}, not a dictionary")
            return file, table
    raise InputError(f"{folder / name}.pkl does not exist (nor .json); see datasets/README.md")


def split_file(file: Path, builtin: Path, splits: str) -> Path:
    """Returns the data folder's list or the built-in one, as `splits` says (see `read_class_lists`)."""
    if splits != "builtin" and file.is_file():
        return file
    if splits == "folder":
        raise InputError(f"splits=folder, but there is no {file}")
    return Path(__file__).parent / "splits" / builtin


def read_lines(file: Path) -> list[str]:
    """Reads the lines of a text file that are not empty."""
    try:
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error})") from None


def _as_class_lists(content: Any, file: Path) -> ClassLists:
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}, not class id -> list of image names")
    lists: ClassLists = {}
    for class_id, names in content.items():
        if not str(class_id).isdecimal() or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise InputError(f"{file}: key {class_id!r} does not hold a list of image names")
        lists[int(class_id)] = names
    return lists
