"""LVIS-92i: 920 classes in 10 folds of 92.

A class of val2017 counts if it has more images than an episode needs.
"""

from pathlib import Path
from typing import Any

from diffews.data.episodes import Benchmark, DecodedSample, Sample
from diffews.data.lists import check_names, read_table
from diffews.data.polygons import union_mask
from diffews.errors import InputError, refuse
from diffews.images.files import open_rgb

FOLDS = 10


class Lvis92i(Benchmark):
    """LVIS-92i in the layout of datasets/README.md: class -> image -> polygons."""

    folder, test_episodes, classes_in_turn = "LVIS", 2300, True
    labels_all = False  # of each picture some classes were looked for

    def read_lists(self) -> None:
        tables = {}
        for part in dict.fromkeys((self.subset, "val")):  # the folds are those of val
            file, table = tables[part] = read_table(self.root, f"lvis_{part}")
            if not all(isinstance(images, dict) and all(isinstance(name, str) for name in images)
                       for images in table.values()):
                raise InputError(f"{file} does not hold class -> picture -> annotations")
            for images in table.values():
                check_names(images, file)
        self.file, self.table = tables[self.subset]
        sizes = {name: len(images) for name, images in tables["val"][1].items()}

        def novel(shots: int) -> list[Any]:
            usable = [name for name, size in sizes.items() if size > shots]
            return usable[self.fold :: FOLDS][: len(usable) // FOLDS] if self.holds_out else []

        # a fold's classes vary with the shots; training sees none of any evaluation
        held_out = {name for shots in {1, 5, self.shots} for name in novel(shots)}
        self.names = [name for name, images in self.table.items()
                      if name not in held_out and len(images) > 1]
        if self.split == "test":
            self.names = novel(self.shots)
            if not self.names:
                raise InputError(f"{self.file}: fewer than {FOLDS} classes have more than "
                                 f"{self.shots} pictures")
        self.set_classes(self.names)
        self.images = {c: [Sample(image) for image in self.table[name]]
                       for c, name in enumerate(self.names)}

    def files(self, sample: Sample) -> list[Path]:
        return [self.root / "coco" / sample.name]  # masks come from the table

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        image, name = open_rgb(self.files(sample)[0]), self.names[class_id]
        where = f"{self.file}: class {name!r}, {sample.name}"
        with refuse(f"{where}: no annotations with a segmentation", KeyError, TypeError):
            codes = [a["segmentation"] for a in self.table[name][sample.name]["annotations"]]
        return DecodedSample(image, union_mask(codes, image.height, image.width, where))
