"""ADE20K (SceneParsing release, 150 classes) as a source of training episodes for the in-context setting."""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffews.data.benchmarks.class_maps import ClassMaps
from diffews.data.episodes import Sample
from diffews.data.lists import read_json_file
from diffews.errors import InputError
from diffews.images.files import list_images
from diffews.runtime.files import write_atomic

CLASSES = 150
PARTS = {"train": "training", "val": "validation", "test": "validation"}
LEAST_SHARE = 2048 / 512**2  # of a picture's pixels: what COCO-20i asks of a listed class


class Ade20k(ClassMaps):
    """ADEChallengeData2016/{images,annotations}/{training,validation}; masks: 0 other, 1..150.

    Which classes a picture holds is read from the masks once and kept in the folder. There are no published folds:
    all classes are for training and all for testing.
    """

    folder, folds = "ADEChallengeData2016", 0
    classes, values = CLASSES, f"ADE20K's masks hold 0 to {CLASSES}"

    def read(self) -> None:
        self.part = PARTS[self.split]
        if not (self.root / "images" / self.part).is_dir():
            raise InputError(f"{self.root / 'images' / self.part} does not exist; see datasets/README.md")
        lists = self._read_lists()
        self.class_ids = [c for c in range(CLASSES) if len(lists.get(str(c), ())) > 1]
        self.class_names = {c: str(c + 1) for c in range(CLASSES)}
        self.images = {c: [Sample(name) for name in lists[str(c)]] for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        mask = (self.root / "annotations" / self.part / sample.name).with_suffix(".png")
        return [self.root / "images" / self.part / sample.name, mask]

    def _read_lists(self) -> dict[str, list[str]]:
        file = self.root / f"lists_{self.part}.json"
        lists: dict[str, list[str]]
        if file.is_file():
            lists = read_json_file(file)
            if not isinstance(lists, dict) or not all(isinstance(names, list) for names in lists.values()):
                raise InputError(f"{file} does not hold class -> picture names; remove it to have it written again")
            return lists
        lists = {}
        for image in tqdm(list_images(self.root / "images" / self.part), unit="image", desc="lists"):
            mask = self.class_map(Sample(image.name))
            counts = np.bincount(mask.ravel(), minlength=CLASSES + 1)
            for value in np.flatnonzero(counts[1:] >= LEAST_SHARE * mask.size).tolist():
                lists.setdefault(str(value), []).append(image.name)
        write_atomic(file, json.dumps(lists))
        return lists
