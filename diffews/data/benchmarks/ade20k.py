"""ADE20K (SceneParsing release, 150 classes), to train on in the in-context setting."""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffews.data.episodes import ClassMaps, Sample
from diffews.data.lists import check_names, read_json_file
from diffews.errors import InputError
from diffews.images.files import list_images
from diffews.runtime.files import write_atomic

CLASSES = 150
LEAST_SHARE = 2048 / 512**2  # of an image's pixels: what COCO-20i asks of a listed class


class Ade20k(ClassMaps):
    """ADEChallengeData2016/{images,annotations}/{training,validation}; masks: 0 other, 1..150.

    Which classes an image holds is read from the masks once and kept in the folder. There are no
    published folds: all classes are for training and all for testing.
    """

    folder = "ADEChallengeData2016"
    classes, values = CLASSES, f"ADE20K's masks hold 0 to {CLASSES}"

    def read_lists(self) -> None:
        self.subfolder = {"train": "training", "val": "validation"}[self.subset]
        if not (self.root / "images" / self.subfolder).is_dir():
            raise InputError(
                f"{self.root / 'images' / self.subfolder} does not exist; see datasets/README.md")
        file = self.root / f"lists_{self.subfolder}.json"
        if not file.is_file():
            write_atomic(file, json.dumps(self._find_classes()))
        lists = read_json_file(file)
        if not isinstance(lists, dict) or not all(isinstance(n, list) for n in lists.values()):
            raise InputError(f"{file} does not hold class -> picture names; "
                             "remove it to have it written again")

        for names in lists.values():
            check_names(map(str, names), file)
        self.class_names = {c: str(c + 1) for c in range(CLASSES)}
        self.class_ids = [c for c in range(CLASSES) if len(lists.get(str(c), ())) > 1]
        self.images = {c: [Sample(name) for name in lists[str(c)]] for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        mask = (self.root / "annotations" / self.subfolder / sample.name).with_suffix(".png")
        return [self.root / "images" / self.subfolder / sample.name, mask]

    def _find_classes(self) -> dict[str, list[str]]:
        """Reads all masks -> the names of the images that show enough of each class."""
        lists: dict[str, list[str]] = {}
        images = list_images(self.root / "images" / self.subfolder)
        for image in tqdm(images, unit="image", desc="lists"):
            mask = self.class_map(Sample(image.name))
            counts = np.bincount(mask.ravel(), minlength=CLASSES + 1)
            for value in np.flatnonzero(counts[1:] >= LEAST_SHARE * mask.size).tolist():
                lists.setdefault(str(value), []).append(image.name)
        return lists
