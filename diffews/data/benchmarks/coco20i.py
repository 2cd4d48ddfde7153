"""COCO-20i: 80 classes in 4 folds; fold f tests the classes f, f + 4, f + 8, ... on val2014."""

import functools
from pathlib import Path

import numpy as np

from diffews.data.episodes import ClassMaps, Sample
from diffews.data.lists import BUILTIN, ClassLists, read_class_lists, read_json_file
from diffews.errors import InputError

FOLDS = 4
IMAGE_YEARS = ("2014", "2017")
CLASS_NAMES = [  # in the order of the sorted COCO category ids
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush"]


class Coco20i(ClassMaps):
    """COCO-20i in the layout of datasets/README.md.

    images: the year of the pictures, 2014 or 2017; they are the same, under other names.
    """

    folder, builtin_lists = "COCO2014", True
    classes, values = len(CLASS_NAMES), "COCO masks hold 0 and class + 1, at most 80"

    def read_lists(self, images: str = "2014") -> None:
        if images not in IMAGE_YEARS:
            raise InputError(f"images={images} is not one of {', '.join(IMAGE_YEARS)}")
        self.year, names, own_names = images, CLASS_NAMES, self.root / "classes.json"
        if own_names.is_file():  # another data set of 80 classes in the same layout
            names = read_json_file(own_names)
            if not isinstance(names, list) or len(names) != self.classes:
                raise InputError(f"{own_names} does not list {self.classes} class names")
        novel = range(self.fold, self.classes, FOLDS) if self.holds_out else ()
        self.set_classes(names, novel)

        # a fold's val list holds its own classes, its trn list all others
        lists: ClassLists = {}
        for fold in range(FOLDS) if self.split == "val" or not self.holds_out else [self.fold]:
            part = "trn" if self.subset == "train" else "val"
            builtin = functools.partial(_builtin_lists, self.subset, fold)
            found = read_class_lists(self.root / "splits" / part, fold, self.splits, builtin)
            lists |= {c: names for c, names in found.items() if names}  # pickles may name all 80
        self.images = {c: [Sample(name) for name in lists.get(c, [])] for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        mask = (self.root / "annotations" / sample.name).with_suffix(".png")
        if self.year == "2014":
            return [self.root / sample.name, mask]

        # COCO 2017 has the same images by the last 12 digits of their names, in either part
        short = f"{sample.name[-16:-4]}.jpg"
        places = [base / part / short for base in (self.root, self.root.parent)
                  for part in ("train2017", "val2017")]
        return [next((place for place in places if place.is_file()), places[0]), mask]


def _builtin_lists(part: str, fold: int) -> ClassLists:
    year = f"{part}2014"
    with np.load(BUILTIN / "coco20i.npz") as arrays:
        ids = np.split(arrays[year], np.cumsum(arrays[f"{year}_counts"])[:-1])
    return {c: [f"{year}/COCO_{year}_{i:012d}.jpg" for i in ids[c]]
            for c in range(len(CLASS_NAMES)) if (c % FOLDS == fold) == (part == "val")}
