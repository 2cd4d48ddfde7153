"""Several benchmarks as one source of training episodes (the paper's in-context setting)."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from diffews.data.episodes import Benchmark, DecodedSample, EpisodeList, Sample
from diffews.errors import InputError

STRIDE = 10_000  # class ids of the k-th benchmark start at k * STRIDE


class Mix(Benchmark):
    """Class c of the k-th benchmark is k * 10000 + c; an episode first draws a benchmark.

    parts: name, weight and the opened benchmark of each; weights are relative.
    """

    def __init__(self, parts: Sequence[tuple[str, float, Benchmark]]) -> None:
        self.fold = parts[0][2].fold
        self.parts = [part for _, _, part in parts]
        self.class_ids, self.class_names, self.images = [], {}, {}
        self.groups: list[tuple[float, list[int]]] = []
        for k, (name, weight, part) in enumerate(parts):
            if not any(len(set(part.images[c])) > 1 for c in part.class_ids):
                raise InputError(f"mix={name}: no class has two pictures; "
                                 "an episode needs a query and a support")

            # what the part says of its classes, under their ids in the mix
            ids = {k * STRIDE + c: c for c in part.class_ids}
            self.groups.append((weight, list(ids)))
            self.class_ids += ids
            self.reading = {**self.reading, **part.reading}
            self.class_names |= {i: f"{name}: {part.class_names[c]}" for i, c in ids.items()}
            self.images |= {i: [_numbered(s, k) for s in part.images[c]] for i, c in ids.items()}

    def read_lists(self) -> None:
        raise NotImplementedError  # the parts are read already

    def draw(self, shots: int) -> EpisodeList:
        raise InputError("mix= is for training; evaluate on one benchmark")

    def files(self, sample: Sample) -> list[Path]:
        part, sample = self._find_part(sample)
        return part.files(sample)

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        part, sample = self._find_part(sample)
        return part.decode(sample, class_id % STRIDE)

    def classes_in(self, sample: Sample) -> list[int]:
        part, sample = self._find_part(sample)
        return [self.parts.index(part) * STRIDE + c for c in part.classes_in(sample)]

    def _find_part(self, sample: Sample) -> tuple[Benchmark, Sample]:
        number, _, name = sample.name.partition(":")
        return self.parts[int(number)], Sample(name, sample.object_id)


@functools.cache  # one object for a sample, however many classes list it
def _numbered(sample: Sample, number: int) -> Sample:
    return Sample(f"{number}:{sample.name}", sample.object_id)


def parse_mix(words: Sequence[str]) -> list[tuple[str, float]]:
    """Reads `name:weight` words; a weight left out is 1."""
    parts = []
    for word in words:
        name, _, weight = word.partition(":")
        try:
            share = float(weight or 1)
        except ValueError:
            share = 0.0

        if not 0 < share < math.inf:  # nan is neither
            raise InputError(
                f"mix={word}: the weight is not a positive number; write benchmark:weight")
        parts.append((name, share))
    return parts
