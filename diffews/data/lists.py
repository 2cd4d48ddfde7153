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
            return _as_class_lists(_read_json(file) if file.suffix == ".json" else read_pickle(file), file)
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


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
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
