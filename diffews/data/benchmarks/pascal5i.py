"""PASCAL-5i: 20 classes in 4 folds of 5, and the COCO-to-PASCAL domain shift on the same pictures."""

from pathlib import Path

import numpy as np

from diffews.data.episodes import Benchmark, Episode, EpisodeList, LegacyDraws, Picture, Sample
from diffews.data.lists import read_lines, split_file
from diffews.errors import InputError
from diffews.images.files import open_mask, open_rgb

FOLDS = 4
TEST_EPISODES = 1000
BOUNDARY = 255  # mask value of pixels that count for nothing
CLASS_NAMES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


class Pascal5i(Benchmark):
    """PASCAL-5i in the layout of datasets/README.md; masks are class-index PNGs (0, 1..20, 255 = boundary)."""

    builtin_lists = True
    novel_classes: tuple[tuple[int, ...], ...] = tuple(tuple(range(5 * f, 5 * f + 5)) for f in range(FOLDS))

    def __init__(self, root: Path, fold: int | None, split: str, splits: str = "auto", shots: int = 1) -> None:
        self.root = self.find_root(root, "VOC2012")
        self.fold = fold or 0
        self.class_names = dict(enumerate(CLASS_NAMES))
        novel = () if fold is None else self.novel_classes[fold]
        self.class_ids = [c for c in range(len(CLASS_NAMES)) if (c in novel) == (split == "test")]
        lines = [line for listed in range(FOLDS) for line in self._read_list(split, listed, splits)]
        self.lines = [line for line in lines if line[1] in self.class_ids]
        self.images = {c: [sample for sample, listed in self.lines if listed == c] for c in self.class_ids}

    def draw(self, shots: int) -> EpisodeList:
        """Draws the 1000 episodes of the reference: the lines of the list in turn, supports by choice."""
        draws, episodes = LegacyDraws(), []
        self.check_classes(self.class_ids)
        for index in range(TEST_EPISODES):
            query, class_id = self.lines[index % len(self.lines)]
            episodes.append(Episode(class_id, query, draws.supports(self.images[class_id], query, shots)))
        return EpisodeList(episodes)

    def files(self, sample: Sample) -> list[Path]:
        """Returns the picture and its mask."""
        return [
            self.root / "JPEGImages" / f"{sample.name}.jpg",
            self.root / "SegmentationClassAug" / f"{sample.name}.png",
        ]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture, the pixels of the class, and the boundary."""
        class_map = self._class_map(sample)
        mask, boundary = class_map == class_id + 1, class_map == BOUNDARY
        return Picture(open_rgb(self.files(sample)[0]), mask.astype(np.uint8), boundary.astype(np.uint8))

    def classes_in(self, sample: Sample) -> list[int]:
        """Reads which classes the mask holds."""
        return [int(value) - 1 for value in np.unique(self._class_map(sample)) if value not in (0, BOUNDARY)]

    def _class_map(self, sample: Sample) -> np.ndarray:
        file = self.files(sample)[1]
        class_map = open_mask(file)
        wrong = class_map[(class_map > len(CLASS_NAMES)) & (class_map != BOUNDARY)]
        if wrong.size:
            raise InputError(f"{file} holds the value {wrong.max()}; PASCAL masks hold 0 to 20, and 255")
        return class_map

    def _read_list(self, split: str, fold: int, splits: str) -> list[tuple[Sample, int]]:
        part = "trn" if split == "train" else "val"
        builtin = Path("pascal5i") / f"{part}_fold{fold}.txt"
        file = split_file(self.root / "splits" / part / f"fold{fold}.txt", builtin, splits)
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
