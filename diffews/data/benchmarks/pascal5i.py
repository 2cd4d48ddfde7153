"""PASCAL-5i: 20 classes in 4 folds of 5, and the COCO-to-PASCAL domain shift on its images."""

from collections.abc import Iterator
from pathlib import Path

from diffews.data.episodes import ClassMaps, LegacyDraws, Sample
from diffews.data.lists import BUILTIN, check_names, find_list, read_lines
from diffews.errors import InputError

FOLDS = 4
CLASS_NAMES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor"]


class Pascal5i(ClassMaps):
    """PASCAL-5i in the layout of datasets/README.md."""

    folder, builtin_lists = "VOC2012", True
    classes, boundary, values = len(CLASS_NAMES), 255, "PASCAL masks hold 0 to 20, and 255"
    novel_classes: tuple[tuple[int, ...], ...] = (  # of each fold
        (0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (10, 11, 12, 13, 14), (15, 16, 17, 18, 19))

    def read_lists(self) -> None:
        self.set_classes(CLASS_NAMES, self.novel_classes[self.fold] if self.holds_out else ())
        lines = [line for fold in range(FOLDS) for line in self._read_list(fold)]
        self.lines = [(class_id, s) for class_id, s in lines if class_id in self.class_ids]
        self.images = {c: [s for class_id, s in self.lines if class_id == c]
                       for c in self.class_ids}

    def queries(self, draws: LegacyDraws) -> Iterator[tuple[int, Sample]]:
        # the lines of the list in turn, as the reference does
        self.check_classes(self.class_ids)
        return (self.lines[i % len(self.lines)] for i in range(self.test_episodes))

    def files(self, sample: Sample) -> list[Path]:
        mask = self.root / "SegmentationClassAug" / f"{sample.name}.png"
        return [self.root / "JPEGImages" / f"{sample.name}.jpg", mask]

    def _read_list(self, fold: int) -> list[tuple[int, Sample]]:
        part = "trn" if self.subset == "train" else "val"
        file = (find_list([self.root / "splits" / part / f"fold{fold}.txt"], self.splits)
                or BUILTIN / "pascal5i" / f"{part}_fold{fold}.txt")
        lines = []
        for line in read_lines(file):
            name, separator, value = line.rpartition("__")
            if not (separator and value.isdecimal() and 1 <= int(value) <= len(CLASS_NAMES)):
                raise InputError(
                    f"{file}: the line {line!r} is not NAME__CLASS with a class from 1 to 20")
            lines.append((int(value) - 1, Sample(name)))
        check_names((sample.name for _, sample in lines), file)
        return lines


class CocoToPascal(Pascal5i):
    """PASCAL classes that COCO-20i's fold of the same number holds out, on PASCAL's images."""

    novel_classes = ((0, 3, 8, 10, 11, 14), (1, 5, 12, 17), (2, 6, 15, 16, 18, 19), (4, 7, 9, 13))
