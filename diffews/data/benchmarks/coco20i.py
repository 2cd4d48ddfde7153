"""COCO-20i: 80 classes in 4 folds; fold f tests the classes f, f + 4, f + 8, ... on val2014."""

from pathlib import Path

import numpy as np

from diffews.data.benchmarks.class_maps import ClassMaps
from diffews.data.episodes import Sample
from diffews.data.lists import ClassLists, read_class_lists, read_json_file
from diffews.errors import InputError

FOLDS = 4
IMAGE_YEARS = ("2014", "2017")
CLASS_NAMES = [  # in the order of the sorted COCO category ids
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
]


class Coco20i(ClassMaps):
    """COCO-20i in the layout of datasets/README.md."""

    folder, builtin_lists = "COCO2014", True
    classes, values = len(CLASS_NAMES), "COCO masks hold 0 and class + 1, at most 80"

    def read(self, images: str = "2014") -> None:
        if images not in IMAGE_YEARS:
            raise InputError(f"images={images} is not one of {', '.join(IMAGE_YEARS)}")
        self.year, names = images, CLASS_NAMES
        if (self.root / "classes.json").is_file():  # another data set of 80 classes in the same layout
            names = read_json_file(self.root / "classes.json")
            if not isinstance(names, list) or len(names) != self.classes:
                raise InputError(f"{self.root / 'classes.json'} does not list {self.classes} class names")
        self.class_names = dict(enumerate(names))
        self.class_ids = self.of_split(self.classes, range(self.fold, self.classes, FOLDS))
        part = "trn" if self.split == "train" else "val"
        lists: ClassLists = {}
        # a fold's val list holds its own classes, its trn list all others
        for listed in range(FOLDS) if self.split == "val" or not self.holds_out else [self.fold]:
            lists.update(self._read_lists(part, listed))
        self.images = {c: [Sample(name) for name in lists.get(c, [])] for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        mask = (self.root / "annotations" / sample.name).with_suffix(".png")
        if self.year == "2014":
            return [self.root / sample.name, mask]
        short = f"{sample.name[-16:-4]}.jpg"  # COCO 2017 has the same pictures by the last 12 digits of their names
        places = [base / part / short for base in (self.root, self.root.parent) for part in ("train2017", "val2017")]
        return [next((place for place in places if place.is_file()), places[0]), mask]

    def _read_lists(self, part: str, fold: int) -> ClassLists:
        novel = range(fold, len(CLASS_NAMES), FOLDS)

        def builtin() -> ClassLists:
            year = "val2014" if part == "val" else "train2014"
            with np.load(Path(__file__).parent.parent / "splits" / "coco20i.npz") as arrays:
                ids = np.split(arrays[year], np.cumsum(arrays[f"{year}_counts"])[:-1])
            names = {c: [f"{year}/COCO_{year}_{i:012d}.jpg" for i in ids[c]] for c in range(len(CLASS_NAMES))}
            return {c: names[c] for c in names if (c in novel) == (part == "val")}

        lists = read_class_lists(self.root / "splits" / part, fold, self.splits, builtin)
        return {c: names for c, names in lists.items() if names}  # pickles may name all 80
