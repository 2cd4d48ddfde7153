"""ADE20K (SceneParsing release, 150 classes) as a source of training episodes for the in-context setting."""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffews.data.episodes import Benchmark, EpisodeList, Picture, Sample, draw_by_choice
from diffews.data.lists import read_json_file
from diffews.errors import InputError
from diffews.images.files import list_images, open_mask, open_rgb
from diffews.runtime.files import write_atomic

CLASSES = 150
PARTS = {"train": "training", "val": "validation", "test": "validation"}
LEAST_SHARE = 2048 / 512**2  # of a picture's pixels: what COCO-20i asks of a listed class
EPISODES = 1000


class Ade20k(Benchmark):
    """ADEChallengeData2016/{images,annotations}/{training,validation}; masks: 0 other, 1..150.

    Which classes a picture holds is read from the masks once and kept in the folder. There are no published folds:
    all classes are for training and all for testing.
    """

    def __init__(self, root: Path, fold: int | None, split: str, splits: str = "auto", shots: int = 1) -> None:
        self.root, self.fold = self.find_root(root, "ADEChallengeData2016"), 0
        self.part = PARTS[split]
        if not (self.root / "images" / self.part).is_dir():
            raise InputError(f"{self.root / 'images' / self.part} does not exist; see datasets/README.md")
        lists = self._read_lists()
        self.class_ids = [c for c in range(CLASSES) if len(lists.get(str(c), ())) > 1]
        self.class_names = {c: str(c + 1) for c in range(CLASSES)}
        self.images = {c: [Sample(name) for name in lists[str(c)]] for c in self.class_ids}

    def draw(self, shots: int) -> EpisodeList:
        """Draws 1000 episodes: class, query, then supports, each by one choice."""
        return draw_by_choice(self, shots, EPISODES)

    def files(self, sample: Sample) -> list[Path]:
        """Returns the picture and its mask."""
        mask = (self.root / "annotations" / self.part / sample.name).with_suffix(".png")
        return [self.root / "images" / self.part / sample.name, mask]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture and the pixels of the class."""
        image_file, mask_file = self.files(sample)
        return Picture(open_rgb(image_file), (open_mask(mask_file) == class_id + 1).astype(np.uint8))

    def classes_in(self, sample: Sample) -> list[int]:
        """Reads which classes the mask holds."""
        return [int(value) - 1 for value in np.unique(open_mask(self.files(sample)[1])) if value > 0]

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
            mask_file = self.files(Sample(image.name))[1]
            mask = open_mask(mask_file)
            if mask.max(initial=0) > CLASSES:
                raise InputError(f"{mask_file} holds the value {mask.max()}; ADE20K's masks hold 0 to {CLASSES}")
            counts = np.bincount(mask.ravel(), minlength=CLASSES + 1)
            for value in np.flatnonzero(counts[1:] >= LEAST_SHARE * mask.size).tolist():
                lists.setdefault(str(value), []).append(image.name)
        write_atomic(file, json.dumps(lists))
        return lists
