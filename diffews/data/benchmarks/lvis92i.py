"""LVIS-92i: 920 classes in 10 folds of 92; a class of val2017 counts if it has more pictures than an episode needs."""

from pathlib import Path
from typing import Any

from diffews.data.episodes import Benchmark, EpisodeList, Picture, Sample, draw_in_turn
from diffews.data.lists import read_table
from diffews.data.polygons import union_mask
from diffews.errors import InputError
from diffews.images.files import open_rgb

FOLDS = 10


class Lvis92i(Benchmark):
    """LVIS-92i in the layout of datasets/README.md: lvis_{train,val} hold class -> picture -> polygons."""

    folder, folds, test_episodes = "LVIS", FOLDS, 2300

    def read(self) -> None:
        self.file, self.table = self._read("train" if self.split == "train" else "val")
        file, val = (self.file, self.table) if self.split != "train" else self._read("val")

        def novel(count: int) -> list[Any]:
            usable = [name for name, pictures in val.items() if len(pictures) > count]
            return usable[self.fold :: FOLDS][: len(usable) // FOLDS] if self.holds_out else []

        if self.split == "test" and not novel(self.shots):
            raise InputError(f"{file}: fewer than {FOLDS} classes have more than {self.shots} pictures")
        held_out = {name for n in {1, 5, self.shots} for name in novel(n)}  # a fold's classes vary with the shots
        others = [name for name, pictures in self.table.items() if name not in held_out and len(pictures) > 1]
        self.names = novel(self.shots) if self.split == "test" else others
        self.class_ids = list(range(len(self.names)))
        self.class_names = {index: str(name) for index, name in enumerate(self.names)}
        self.images = {index: [Sample(file) for file in self.table[name]] for index, name in enumerate(self.names)}

    def draw(self, shots: int) -> EpisodeList:
        return draw_in_turn(self, shots, self.test_episodes)

    def files(self, sample: Sample) -> list[Path]:
        return [self.root / "coco" / sample.name]  # masks come from the table

    def decode(self, sample: Sample, class_id: int) -> Picture:
        image, name = open_rgb(self.files(sample)[0]), self.names[class_id]
        where = f"{self.file}: class {name!r}, {sample.name}"
        try:
            codes = [annotation["segmentation"] for annotation in self.table[name][sample.name]["annotations"]]
        except (KeyError, TypeError):
            raise InputError(f"{where}: no annotations with a segmentation") from None
        return Picture(image, union_mask(codes, image.height, image.width, where))

    def _read(self, part: str) -> tuple[Path, dict[Any, dict[str, Any]]]:
        file, table = read_table(self.root, f"lvis_{part}")
        if not all(
            isinstance(pictures, dict) and all(isinstance(f, str) for f in pictures) for pictures in table.values()
        ):
            raise InputError(f"{file} does not hold class -> picture -> annotations")
        return file, table
