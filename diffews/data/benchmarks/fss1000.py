"""FSS-1000: 1000 categories of 10 pictures; 240 of them are for testing. There are no folds."""

from pathlib import Path

import numpy as np

from diffews.data.episodes import Benchmark, Episode, EpisodeList, LegacyDraws, Picture, Sample
from diffews.data.lists import read_lines, split_file
from diffews.errors import InputError
from diffews.images.files import open_mask, open_rgb

PICTURES = 10  # in every category
PARTS = {"train": ("trn", 0, 520), "val": ("val", 520, 240), "test": ("test", 760, 240)}  # list, first class id, size
FOREGROUND = 128  # least grey value


class Fss1000(Benchmark):
    """FSS-1000 in the layout of datasets/README.md; masks are grey pictures beside the photos."""

    folder, folds, builtin_lists = "FSS-1000", 0, True

    def read(self) -> None:
        part, first, count = PARTS[self.split]
        file = split_file(self.root / "splits" / f"{part}.txt", Path("fss1000") / f"{part}.txt", self.splits)
        names = sorted(read_lines(file))
        if not names:
            raise InputError(f"{file} lists no category")
        if len(names) > count:
            raise InputError(f"{file} lists {len(names)} categories, FSS-1000 has {count} there")
        self.class_ids = list(range(first, first + count))  # all of them, in a smaller copy too
        self.class_names = {c: names[c - first] if c - first < len(names) else str(c) for c in self.class_ids}
        self.level = "data" if (self.root / "data").is_dir() or not self.root.is_dir() else ""
        self.images = {
            first + index: [Sample(f"FSS-1000/data/{name}/{number}.jpg") for number in range(1, PICTURES + 1)]
            for index, name in enumerate(names)
        }

    def draw(self, shots: int) -> EpisodeList:
        """Takes every picture as the query once, sorted by path as text; supports by choice of 1 .. 10."""
        draws, episodes = LegacyDraws(), []
        for class_id, samples in self.images.items():
            for query in sorted(samples, key=lambda sample: sample.name):
                episodes.append(Episode(class_id, query, draws.supports(samples, query, shots)))
        return EpisodeList(episodes)

    def files(self, sample: Sample) -> list[Path]:
        image = self.root.joinpath(self.level, *Path(sample.name).parts[2:])
        return [image, image.with_suffix(".png")]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        image_file, mask_file = self.files(sample)
        return Picture(open_rgb(image_file), (open_mask(mask_file) >= FOREGROUND).astype(np.uint8))
