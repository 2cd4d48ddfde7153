"""LVIS-92i: 920 classes in 10 folds of 92; a class of val2017 counts if it has more pictures than an episode needs."""

from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.episodes import Benchmark, EpisodeList, Picture, Sample, draw_in_turn
from diffews.data.lists import read_table
from diffews.data.polygons import segmentation_mask
from diffews.errors import InputError
from diffews.images.files import open_rgb

FOLDS = 10
TEST_EPISODES = 2300


class Lvis92i(Benchmark):
    """LVIS-92i in the layout of datasets/README.md: lvis_{train,val} hold class -> picture -> polygons."""

    def __init__(self, root: Path, fold: int | None, split: str, splits: str = "auto", shots: int = 1) -> None:
        self.root = self.find_root(root, "LVIS")
        self.fold = fold or 0
        self.file, self.table = self._read("train" if split == "train" else "val")
        file, val = (self.file, self.table) if split != "train" else self._read("val")

        def novel(count: int) -> list[Any]:
            usable = [name for name, pictures in val.items() if len(pictures) > count]
            return [] if fold is None else [usable[fold + FOLDS * index] for index in range(len(usable) // FOLDS)]

        if split == "test" and not novel(shots):
            raise InputError(f"{file}: fewer than {FOLDS} classes have more than {shots} pictures")
        held_out = {name for count in {1, 5, shots} for name in novel(count)}  # a fold's classes vary with the shots
        others = [name for name, pictures in self.table.items() if name not in held_out and len(pictures) > 1]
        self.names = novel(shots) if split == "test" else others
        self.class_ids = list(range(len(self.names)))
        self.class_names = {index: str(name) for index, name in enumerate(self.names)}
        self.images = {index: [Sample(file) for file in self.table[name]] for index, name in enumerate(self.names)}

    def draw(self, shots: int) -> EpisodeList:
        """Draws the 2300 episodes of the reference."""
        return draw_in_turn(self, shots, TEST_EPISODES)

    def files(self, sample: Sample) -> list[Path]:
        """Returns the picture; masks come from the table."""
        return [self.root / "coco" / sample.name]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture and fills the union of the class's polygons."""
        image = open_rgb(self.files(sample)[0])
        return Picture(image, self._mask(sample, self.names[class_id], image.height, image.width))

    def classes_in(self, sample: Sample) -> list[int]:
        """Returns the classes, of those in this split, that are annotated in the picture."""
        return [class_id for class_id, samples in self.images.items() if sample in samples]

    def _mask(self, sample: Sample, name: Any, height: int, width: int) -> np.ndarray:
        where = f"{self.file}: class {name!r}, {sample.name}"
        try:
            annotations = self.table[name][sample.name]["annotations"]
            codes = [annotation["segmentation"] for annotation in annotations]
        except (KeyError, TypeError):
            raise InputError(f"{where}: no annotations with a segmentation") from None
        mask = np.zeros((height, width), np.uint8)
        for code in codes:
            mask |= segmentation_mask(code, height, width, where)
        return mask

    def _read(self, part: str) -> tuple[Path, dict[Any, dict[str, Any]]]:
        file, table = read_table(self.root, f"lvis_{part}")
        if not all(
            isinstance(pictures, dict) and all(isinstance(f, str) for f in pictures) for pictures in table.values()
        ):
            raise InputError(f"{file} does not hold class -> picture -> annotations")
        return file, table
