"""Lists of images: from the data folder (JSON, or the published pickles) or built in."""

import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from diffews.errors import InputError, refuse
from diffews.runtime.files import check_regular

BUILTIN = Path(__file__).parent / "splits"  # the published lists
LONGEST = 200  # characters of a name in a list
ClassLists = dict[int, list[str]]  # class id -> image names, in the order that episodes need


def find_list(files: Sequence[Path], splits: str) -> Path | None:
    """Returns the first of these files that is there; None means: take the built-in list.

    splits: "auto" takes the folder's lists where there are any, "folder" insists on them,
        "builtin" ignores them.
    """
    found = [file for file in files if splits != "builtin" and file.is_file()]
    if splits == "folder" and not found:
        others = "".join(f" or {file.name}" for file in files[1:])
        raise InputError(f"splits=folder, but there is no {files[0]}{others}")
    return found[0] if found else None


def read_class_lists(folder: Path, fold: int, splits: str,
                     builtin: Callable[[], ClassLists]) -> ClassLists:
    """Reads `fold<F>.json`, else `fold<F>.pkl`, else the built-in lists; see `find_list`."""
    file = find_list([folder / f"fold{fold}{suffix}" for suffix in (".json", ".pkl")], splits)
    if file is None:
        return builtin()
    content = read_plain(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}, not class id -> image names")

    for class_id, names in content.items():
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not (is_list and str(class_id).isdecimal()):
            raise InputError(f"{file}: key {class_id!r} does not hold a list of image names")
        check_names(names, file)
    return {int(class_id): names for class_id, names in content.items()}


def name_fault(name: str) -> str:
    """Returns what makes a text no name of a file in a folder, or an empty text."""
    parts = name.split("/")
    if not parts[-1].strip(" .") and ".." not in parts:
        return "is empty"
    if ".." in parts or name.startswith("/"):
        return "leads out of the folder"
    if not name.isascii() and name.encode(errors="ignore").decode() != name:
        return "is not UTF-8 text"
    if len(name) > LONGEST or "\0" in name:
        return f"is no file name: it is longer than {LONGEST} characters, or holds NUL"
    return ""


def check_names(names: Iterable[str], where: Path | str) -> None:
    """Raises InputError for a name of a list that is no name of a file in the data folder."""
    for name in names:
        if fault := name_fault(name):
            raise InputError(f"{where}: the name {name[:LONGEST]!r} {fault}")


class _DataUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers; a pickle that names a global is refused unrun."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")


def read_plain(file: Path) -> Any:
    """Reads a JSON file, or a pickle of plain data; nothing in it can run."""
    if file.suffix == ".json":
        return read_json_file(file)
    check_regular(file)
    cure = "only plain lists are read from pickles"
    with refuse(f"{file} is refused", cure=cure), file.open("rb") as stream:
        return _DataUnpickler(stream).load()  # a damaged pickle raises nearly anything


def read_json_file(file: Path) -> Any:
    """Reads a JSON file."""
    check_regular(file)
    with refuse(f"{file} cannot be read", OSError, ValueError, RecursionError):
        if not file.exists():
            raise InputError(f"{file} does not exist; see datasets/README.md")
        return json.loads(file.read_text(encoding="utf-8-sig"))  # Windows tools write a mark first


def read_table(folder: Path, name: str) -> tuple[Path, dict[Any, Any]]:
    """Reads `name`.json, else `name`.pkl, of a folder -> the file and what it holds."""
    file = find_list([folder / f"{name}{suffix}" for suffix in (".json", ".pkl")], "auto")
    if file is None:
        raise InputError(f"{folder / name}.pkl does not exist (nor .json); see datasets/README.md")
    table = read_plain(file)
    if not isinstance(table, dict):
        raise InputError(f"{file} holds {type(table).__name__}, not a dictionary")
    return file, table


def read_lines(file: Path) -> list[str]:
    """Reads the lines of a text file that are not empty."""
    if not file.exists():
        raise InputError(f"{file} does not exist; see datasets/README.md")
    with refuse(f"{file} cannot be read", OSError, ValueError):
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
