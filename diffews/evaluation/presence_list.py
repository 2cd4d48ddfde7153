"""presence.csv of `diffews segment`: which class is in which picture, how surely, how large."""

import csv
import io
from pathlib import Path

import numpy as np

from diffews.errors import InputError
from diffews.runtime.files import write_atomic

COLUMNS = ("picture", "class", "presence", "area")
Row = tuple[str, ...]


class PresenceList:
    """Adds a line for each picture and class; what an earlier run said of others is kept.

    Lines are appended as they come, so that none is lost where a run is killed; `close` leaves one
    of each picture and class, the last.
    """

    def __init__(self, path: Path) -> None:
        """Reads the list that is there.

        Raises:
            InputError: for a file that is no such list.

        """
        self.path = path
        self.rows: dict[tuple[str, str], Row] = {}
        if not path.is_file():
            return
        try:
            lines = list(csv.reader(io.StringIO(path.read_text("utf-8"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} is no list of presence ({error}); remove it") from None
        if lines and tuple(lines[0]) != COLUMNS:
            raise InputError(f"{path} is no list of presence; remove it, or give another out=")
        for line in lines[1:]:
            if len(line) == len(COLUMNS):  # a killed run may have left half a line
                self.rows[line[0], line[1]] = tuple(line)

    def add(self, picture: str, class_name: str, presence: float, mask: np.ndarray) -> None:
        """Appends a line.

        Args:
            picture: its place, as in `out`, with its ending.
            class_name: of the support.
            presence: in [0, 1].
            mask: as it is written, bool (H, W); its share of the picture is listed.

        """
        row = (picture, class_name, f"{presence:.4f}", show_area(mask))
        if not self.rows or not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(_lines([COLUMNS]), "utf-8")
        self.rows[picture, class_name] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines([row]))

    def close(self) -> None:
        """Writes one line of each picture and class."""
        if self.rows:
            write_atomic(self.path, _lines([COLUMNS, *self.rows.values()]))


def show_area(mask: np.ndarray) -> str:
    """The share of the picture that a mask marks, as the list shows it."""
    return f"{mask.mean():.6f}"


def _lines(rows: list[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
