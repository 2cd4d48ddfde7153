"""FSS-1000: 1000 categories of 10 images; 240 of them are for testing. There are no folds."""

from collections.abc import Iterator
from pathlib import Path

from diffews.data.episodes import Benchmark, DecodedSample, LegacyDraws, Sample
from diffews.data.lists import BUILTIN, check_names, find_list, read_lines
from diffews.errors import InputError
from diffews.images.files import open_mask, open_rgb
from diffews.images.masks import foreground

IMAGES = 10  # in every category
# list, first class id, number of classes
PARTS = {"train": ("trn", 0, 520), "val": ("val", 520, 240), "test": ("test", 760, 240)}
FOREGROUND = 128  # least grey value


class Fss1000(Benchmark):
    """FSS-1000 in the layout of datasets/README.md; masks are grey images beside the photos."""

    folder, builtin_lists = "FSS-1000", True
    labels_all = False  # a picture lies in the folder of one class

    def read_lists(self) -> None:
        part, first, count = PARTS[self.split]
        file = (find_list([self.root / "splits" / f"{part}.txt"], self.splits)
                or BUILTIN / "fss1000" / f"{part}.txt")
        names = sorted(read_lines(file))
        check_names(names, file)
        if not names:
            raise InputError(f"{file} lists no category")
        if len(names) > count:
            raise InputError(f"{file} lists {len(names)} categories, FSS-1000 has {count} there")

        # all classes of the split have an id, in a smaller copy too
        self.class_ids = list(range(first, first + count))
        self.class_names = {c: str(c) for c in self.class_ids} | dict(enumerate(names, first))
        self.images = {c: [Sample(f"FSS-1000/data/{name}/{i + 1}.jpg") for i in range(IMAGES)]
                       for c, name in enumerate(names, first)}
        self.level = "data" if (self.root / "data").is_dir() or not self.root.is_dir() else ""

    def queries(self, draws: LegacyDraws) -> Iterator[tuple[int, Sample]]:
        # every image once, sorted by path as text; its supports are of 1 .. 10 in order
        return ((class_id, query) for class_id, samples in self.images.items()
                for query in sorted(samples, key=lambda sample: sample.name))

    def files(self, sample: Sample) -> list[Path]:
        image = self.root.joinpath(self.level, *Path(sample.name).parts[2:])
        return [image, image.with_suffix(".png")]

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        image, mask = self.files(sample)
        return DecodedSample(open_rgb(image), foreground(open_mask(mask), FOREGROUND))
