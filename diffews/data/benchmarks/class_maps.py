"""Benchmarks whose masks are class-index PNGs: 0 background, class + 1, and perhaps a value that is ignored."""

import numpy as np

from diffews.data.episodes import Benchmark, Picture, Sample
from diffews.errors import InputError
from diffews.images.files import open_mask, open_rgb


class ClassMaps(Benchmark):
    """`files` gives the picture, then its class map."""

    classes: int
    boundary: int | None = None  # the value that counts for nothing
    values: str  # which values the masks hold, in words

    def decode(self, sample: Sample, class_id: int) -> Picture:
        class_map = self.class_map(sample)
        ignore = None if self.boundary is None else (class_map == self.boundary).astype(np.uint8)
        return Picture(open_rgb(self.files(sample)[0]), (class_map == class_id + 1).astype(np.uint8), ignore)

    def classes_in(self, sample: Sample) -> list[int]:
        values = np.unique(self.class_map(sample)).tolist()
        return [value - 1 for value in values if value not in (0, self.boundary)]

    def class_map(self, sample: Sample) -> np.ndarray:
        """Reads a class map (H, W); a value that is no class is an InputError."""
        file = self.files(sample)[1]
        class_map = open_mask(file)
        wrong = class_map[(class_map > self.classes) & (class_map != (self.boundary or 0))]
        if wrong.size:
            raise InputError(f"{file} holds the value {wrong.max()}; {self.values}")
        return class_map
