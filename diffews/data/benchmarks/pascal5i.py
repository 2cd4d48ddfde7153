"""PASCAL-5i: 20 classes in 4 folds of 5, and the COCO-to-PASCAL domain shift on the same pictures."""

from pathlib import Path

from diffews.data.benchmarks.class_maps import ClassMaps
from diffews.data.episodes import Episode, EpisodeList, LegacyDraws, Sample
from diffews.data.lists import read_lines, split_file
from diffews.errors import InputError

FOLDS = 4
CLASS_NAMES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


class Pascal5i(ClassMaps):
    """PASCAL-5i in the layout of datasets/README.md."""

    folder, builtin_lists = "VOC2012", True
    classes, boundary, values = len(CLASS_NAMES), 255, "PASCAL masks hold 0 to 20, and 255"
    novel_classes: tuple[tuple[int, ...], ...] = tuple(tuple(range(5 * f, 5 * f + 5)) for f in range(FOLDS))

    def read(self) -> None:
        self.class_names = dict(enumerate(CLASS_NAMES))
        self.class_ids = self.of_split(self.classes, self.novel_classes[self.fold])
        lines = [line for listed in range(FOLDS) for line in self._read_list(listed)]
        self.lines = [line for line in lines if line[1] in self.class_ids]
        self.images = {c: [sample for sample, listed in self.lines if listed == c] for c in self.class_ids}

    def draw(self, shots: int) -> EpisodeList:
        """Draws as the reference does: the lines of the list in turn, supports by choice."""
        draws, episodes = LegacyDraws(), []
        self.check_classes(self.class_ids)
        for index in range(self.test_episodes):
            query, class_id = self.lines[index % len(self.lines)]
            episodes.append(Episode(class_id, query, draws.supports(self.images[class_id], query, shots)))
        return EpisodeList(episodes)

    def files(self, sample: Sample) -> list[Path]:
        mask = self.root / "SegmentationClassAug" / f"{sample.name}.png"
        return [self.root / "JPEGImages" / f"{sample.name}.jpg", mask]

    def _read_list(self, fold: int) -> list[tuple[Sample, int]]:
        part = "trn" if self.split == "train" else "val"
        builtin = Path("pascal5i") / f"{part}_fold{fold}.txt"
        file = split_file(self.root / "splits" / part / f"fold{fold}.txt", builtin, self.splits)
        samples = []
        for line in read_lines(file):
            name, separator, value = line.rpartition("__")
            if not separator or not value.isdecimal() or not 1 <= int(value) <= len(CLASS_NAMES):
                raise InputError(f"{file}: the line {line!r} is not NAME__CLASS with a class from 1 to 20")
            samples.append((Sample(name), int(value) - 1))
        return samples


class CocoToPascal(Pascal5i):
    """PASCAL classes that a fold of COCO-20i holds out, on PASCAL's pictures: fold f goes with coco20i's fold f."""

    novel_classes = ((0, 3, 8, 10, 11, 14), (1, 5, 12, 17), (2, 6, 15, 16, 18, 19), (4, 7, 9, 13))
