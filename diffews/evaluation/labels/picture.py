"""A picture and what was found in it: what each format is given."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffews.evaluation.labels.parts import Part

Objects = Sequence[Sequence[Part]]  # each object is one part, or all parts of its class


@dataclass(frozen=True)
class Picture:
    """A picture and what was found in it.

    Attributes:
        photo: its file.
        name: the place of its results in `out`, without an ending: one, or deep/one.
        place: the photo's place in the folder of all photos, with its ending, / between folders.
        labels: uint8 (H, W), of the photo as people see it: 0 none, then 1, 2, ...
        presence: of each class, how surely the picture holds it, in [0, 1]; None where nobody says
            so, of a class or at all.

    """

    photo: Path
    name: str
    place: str
    labels: np.ndarray
    presence: Sequence[float | None] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.labels.shape
        return height, width

    def score(self, label: int) -> float | None:
        """Returns the presence of a class, or None."""
        return None if self.presence is None else self.presence[label - 1]


# a format: out and the names of the classes -> what takes a picture and the objects in it
Add = Callable[[Picture, Objects], None]
Format = Callable[[Path, Sequence[str]], AbstractContextManager[Add]]
