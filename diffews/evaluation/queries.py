"""Which pictures `diffews segment` is asked for; what of a folder is left out, and why."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffews.errors import InputError
from diffews.evaluation.labels import FOLDERS, PICTURES
from diffews.evaluation.supports import count_marks
from diffews.images.drawn_masks import Pick, read_mask
from diffews.images.files import IMAGE_SUFFIXES, check_image, open_image

if TYPE_CHECKING:
    from diffews.cli.settings import SegmentConfig

CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
RECORD = ".clip.json"  # in a folder of frames: which clip they were read from
RESULTS = ("_mask", "_labels", "_overlay")  # ends of the names of what is written
NO_NAME = "object"  # of a class that nobody named


@dataclass(frozen=True)
class Query:
    """A picture to segment.

    name: its place in `out`, without an ending: of one name in a folder and its sub-folders.
    place: the file's place in the folder of the queries, / between folders; of several folders, in
        the one that holds them all.
    """

    file: Path
    name: str
    place: str = ""


@dataclass
class Queries:
    """What was found.

    left_out: reason -> what is no query for it.
    unreadable: what should have been one, but cannot be read: file -> the error.
    """

    found: list[Query] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def leave_out(self, file: Path, reason: str) -> None:
        """Notes what is no query, and why."""
        self.left_out.setdefault(reason, []).append(str(file))


def find_queries(config: "SegmentConfig") -> Queries:
    """Returns the queries that a config names, the pictures of its folders among them.

    Raises:
        InputError: for supports, masks, classes and banks that do not go together; for a file that
            is missing; for a support or mask that is no picture; when no query can be read, or two
            would be one file, or a given file would be written over.

    """
    check_supports(config)
    if not config.query:
        raise InputError("query= is missing; query picture(s), or folders of them")

    # every picture with the folder in which its place is kept
    queries = Queries()
    placed: dict[Path, Path] = {}
    for word in config.query:
        for path in _expand(word):
            if not path.is_dir():
                placed.setdefault(path, path.parent)
                continue
            photos = list(_photos(path, config, queries))
            if not photos:
                reasons = "".join(f"; left out: {', '.join(files[:3])} ({reason})"
                                  for reason, files in queries.left_out.items())
                raise InputError(f"query={word}: no pictures in this folder{reasons}")
            home = path.parent if (path / RECORD).is_file() else path  # a clip is named, too
            for file in photos:
                placed.setdefault(file, home)

    # one that cannot be read does not stop the others
    for file in list(placed):
        try:
            check_image(file)
        except InputError as error:
            if not file.exists() or len(placed) == 1:
                raise
            queries.unreadable[str(file)] = str(error)
            del placed[file]
    whole = os.path.commonpath([os.path.abspath(folder) for folder in placed.values()])
    queries.found = [
        Query(file, name, Path(os.path.relpath(os.path.abspath(file), whole)).as_posix())
        for file, name in _names(placed).items()]
    if config.video:
        queries.found.sort(key=frame_order)
    _check_places(config, queries.found)
    return queries


def is_clip(word: str) -> bool:
    """Whether a word of query= names a clip, by its ending."""
    return Path(word).suffix.lower() in CLIP_SUFFIXES and not Path(word).is_dir()


def class_names(config: "SegmentConfig") -> list[str]:
    """Returns the names of the labels 1, 2, ...; of several, a query gets a label map."""
    banks = [Path(bank).stem for bank in config.bank]
    return banks or list(dict.fromkeys(config.classes)) or [NO_NAME]


def check_supports(config: "SegmentConfig") -> None:
    """Raises InputError for supports, masks, classes and banks that do not go together.

    Also for those that are missing, or no pictures, and for keys that do not fit them.
    """
    supports, masks, classes = len(config.support), count_marks(config), len(config.classes)
    if config.bank and (supports or masks):
        raise InputError("give either bank= or support= with mask=, box=, point= or scribble=")
    if supports != masks:
        cure = "give mask=, box=, point= or scribble= for each support="
        raise InputError(f"{supports} support pictures for {masks} masks; {cure}")
    if classes and classes != supports:
        cure = "name the class of each"
        raise InputError(f"{classes} classes for {supports} support pictures; {cure}")

    names = [Path(bank).stem for bank in config.bank]
    for bank, name in zip(config.bank, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"two banks are named {name!r}; rename one")
        if not Path(bank).is_file():
            raise InputError(f"bank={bank}: no such file; save_bank= writes one")
    if "scores" in config.format and len(known := class_names(config)) > 1:
        raise InputError(f"format=scores is for one class, not for {len(known)}; segment one class "
                         "at a time, each with an out= of its own")
    if config.video and config.batch != 1:
        raise InputError(f"batch={config.batch}: the frames of a video come one after the other; "
                         "leave batch= out")
    for file in map(Path, (*config.support, *config.mask, *config.scribble)):
        check_image(file)


def frame_order(query: Query) -> tuple[str, list[tuple[int, str]]]:
    """Sorts frames by folder, then by name, numbers by their value: frame9 before frame10."""
    pieces = re.findall(r"\d+|\D+", query.file.name)
    return str(query.file.parent), [
        (int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _expand(word: str) -> list[Path]:
    """Returns the paths that a word means: itself, or what its pattern finds."""
    if os.path.lexists(word) or not glob.has_magic(word):
        return [Path(word)]
    found = [Path(path) for path in sorted(glob.glob(word, recursive=True))]
    files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir()]
    if not files:
        raise InputError(f"query={word}: no picture is named so")
    return files


def _photos(folder: Path, config: "SegmentConfig", queries: Queries) -> Iterator[Path]:
    """Yields a folder's pictures; masks and earlier results are left out, and so are others."""
    given, out = {Path(mask).resolve() for mask in config.mask}, Path(config.out).resolve()
    labels = {out / name for name in FOLDERS}
    painted = {Path(scribble).resolve() for scribble in config.scribble}
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = [Path(place) / name for name in sorted(files)]
        pictures = [file for file in here
                    if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
        for file in here:
            if file not in pictures:
                if not file.name.startswith("."):
                    queries.leave_out(file, "no picture by its ending")
            elif file.resolve() in given:
                queries.leave_out(file, "given as mask=")
            elif file.resolve() in painted:
                queries.leave_out(file, "given as scribble=")
            elif reason := _is_result(file, pictures):
                queries.leave_out(file, reason)
            else:
                yield file

        # links are followed, but not in circles
        seen.add(os.path.realpath(place))
        below = [Path(place) / name for name in sorted(folders) if not name.startswith(".")]
        below = [path for path in below
                 if os.path.realpath(path) not in seen and path.resolve() != out]
        for path in [path for path in below if path.resolve() in labels]:
            queries.leave_out(path, "a folder of labels in out=")
            below.remove(path)
        if not config.recursive:
            for path in below:
                queries.leave_out(path, "a sub-folder; recursive=true looks into it")
            below = []
        folders[:] = [path.name for path in below]


def _is_result(file: Path, pictures: Sequence[Path]) -> str:
    """Why a picture is no query beside these: by its name, a mask or an earlier result of one."""
    others = {other.stem: other for other in pictures if other != file}
    end = next((end for end in RESULTS if file.stem.endswith(end)), "")
    photo = others.get(file.stem.removesuffix(end)) if end else None
    if end == "_overlay":
        results = [f"{file.stem.removesuffix(end)}{other}" for other in ("_mask", "_labels")]
        return f"the overlay of {photo.name}" if photo and set(results) & set(others) else ""
    if not end and file.suffix.lower() == ".png":
        photo = others.get(file.stem)

    # photos have such names, too: only what holds a mask is one
    if photo is None or end != "_labels" and not _holds_mask(file):
        return ""
    return f"the mask of {photo.name}"


def _holds_mask(file: Path) -> bool:
    try:
        read_mask(open_image(file), str(file), Pick())
    except InputError:
        return False
    return True


def _names(placed: dict[Path, Path]) -> dict[Path, str]:
    """Names each picture by its place in its folder; equal ones by their folder or ending, too."""
    plain = {file: str(file.relative_to(folder).with_suffix(""))
             for file, folder in placed.items()}
    names: dict[Path, str] = {}
    taken = set(plain.values())
    for name in dict.fromkeys(plain.values()):
        group = [file for file in plain if plain[file] == name]
        if len(group) == 1:
            names[group[0]] = name
            continue
        by_folder = [str(Path(placed[file].resolve().name) / name) for file in group]
        by_ending = [f"{name}_{file.suffix[1:]}" for file in group]
        by_both = [f"{one}_{file.suffix[1:]}" for one, file in zip(by_folder, group, strict=True)]
        for chosen in (by_folder, by_ending, by_both):
            if len(set(chosen)) == len(group) and not set(chosen) & taken:
                names.update(zip(group, chosen, strict=True))
                taken |= set(chosen)
                break
        else:
            raise InputError(f"queries {group[0]} and {group[1]} are both named {name!r}, and "
                             "their masks would be one file; rename one")
    return {file: names[file] for file in placed}


def _check_places(config: "SegmentConfig", queries: Sequence[Query]) -> None:
    """Raises InputError if a result would be written over a picture that was given."""
    given = {Path(f).resolve() for f in (*config.support, *config.mask, *config.scribble)}
    given |= {query.file.resolve() for query in queries}
    for query in queries:
        names = [query.name + end for end in ("_mask.png", "_labels.png", "_overlay.jpg")]
        names += [f"{folder}/{query.name}.png" for folder in PICTURES]
        for name in names:
            if (place := Path(config.out, name)).resolve() in given:
                raise InputError(f"{place}, a picture that was given, would be written over by a "
                                 f"result of {query.file}; give another out=")
