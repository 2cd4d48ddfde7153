"""Several benchmarks as one source of training episodes, each with a weight (the paper's in-context setting)."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from diffews.data.episodes import Benchmark, EpisodeList, Picture, Sample
from diffews.errors import InputError

STRIDE = 10_000  # class ids of the k-th benchmark start at k * STRIDE


class Mix(Benchmark):
    """Class c of the k-th benchmark is k * 10000 + c; an episode first draws a benchmark by weight."""

    def __init__(self, parts: Sequence[tuple[str, float, Benchmark]]) -> None:
        self.fold = parts[0][2].fold
        self.parts = [part for _, _, part in parts]
        self.class_ids, self.class_names, self.images = [], {}, {}
        self.groups: list[tuple[float, list[int]]] = []
        for k, (name, weight, part) in enumerate(parts):
            if not any(len(set(part.images[c])) > 1 for c in part.class_ids):
                raise InputError(f"mix={name}: no class has two pictures; an episode needs a query and a support")
            ids = [k * STRIDE + c for c in part.class_ids]
            self.groups.append((weight, ids))
            self.class_ids += ids
            self.class_names |= {k * STRIDE + c: f"{name}: {part.class_names[c]}" for c in part.class_ids}
            self.images |= {k * STRIDE + c: [_mark(s, k) for s in part.images[c]] for c in part.class_ids}

    def read(self) -> None:
        raise NotImplementedError  # the parts are read already

    def draw(self, shots: int) -> EpisodeList:
        """A mix has no published episodes."""
        raise InputError("mix= is for training; evaluate on one benchmark")

    def files(self, sample: Sample) -> list[Path]:
        """Returns what the sample's own benchmark reads."""
        part, own = self._own(sample)
        return part.files(own)

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Decodes as the sample's own benchmark does."""
        part, own = self._own(sample)
        return part.decode(own, class_id % STRIDE)

    def _own(self, sample: Sample) -> tuple[Benchmark, Sample]:
        number, _, name = sample.name.partition(":")
        return self.parts[int(number)], Sample(name, sample.object_id)


@functools.cache
def _mark(sample: Sample, number: int) -> Sample:
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
            raise InputError(f"mix={word}: the weight is not a positive number; write benchmark:weight")
        parts.append((name, share))
    return parts
