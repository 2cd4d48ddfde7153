"""COCO-20i: 80 classes in 4 folds; fold f tests the classes f, f + 4, f + 8, ... on val2014."""

from pathlib import Path

import numpy as np

from diffews.data.episodes import Benchmark, EpisodeList, Picture, Sample, draw_by_choice
from diffews.data.lists import ClassLists, read_class_lists, read_json_file
from diffews.errors import InputError
from diffews.images.files import open_mask, open_rgb

FOLDS = 4
TEST_EPISODES = 1000
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


class Coco20i(Benchmark):
    """COCO-20i in the layout of datasets/README.md; masks are class-index PNGs (0 background, class + 1)."""

    builtin_lists = True

    def __init__(
        self, root: Path, fold: int | None, split: str, splits: str = "auto", shots: int = 1, images: str = "2014"
    ) -> None:
        if images not in IMAGE_YEARS:
            raise InputError(f"images={images} is not one of {', '.join(IMAGE_YEARS)}")
        self.root = self.find_root(root, "COCO2014")
        self.fold, self.splits, self.year = fold or 0, splits, images
        self.class_names = dict(enumerate(self._read_class_names()))
        held_out = () if fold is None else range(fold, len(CLASS_NAMES), FOLDS)
        self.class_ids = [c for c in range(len(CLASS_NAMES)) if (c in held_out) == (split == "test")]
        part = "trn" if split == "train" else "val"
        lists: ClassLists = {}
        # a fold's val list holds its own classes, its trn list all others
        for listed in range(FOLDS) if split == "val" or fold is None else [fold]:
            lists.update(self._read_lists(part, listed))
        self.images = {c: [Sample(name) for name in lists.get(c, [])] for c in self.class_ids}

    def draw(self, shots: int) -> EpisodeList:
        """Draws the 1000 episodes of the reference."""
        return draw_by_choice(self, shots, TEST_EPISODES)

    def files(self, sample: Sample) -> list[Path]:
        """Returns the picture and its mask."""
        mask = (self.root / "annotations" / sample.name).with_suffix(".png")
        return [self.root / sample.name if self.year == "2014" else self._picture_of_2017(sample.name), mask]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture and the pixels of the class."""
        mask = self._class_map(sample) == class_id + 1
        return Picture(open_rgb(self.files(sample)[0]), mask.astype(np.uint8))

    def classes_in(self, sample: Sample) -> list[int]:
        """Reads which classes the mask holds."""
        return [int(value) - 1 for value in np.unique(self._class_map(sample)) if value > 0]

    def _picture_of_2017(self, name: str) -> Path:
        """Finds a 2014 name among the same pictures of COCO 2017: <id>.jpg in train2017 or val2017."""
        short = f"{name[-16:-4]}.jpg"  # the last 12 digits
        places = [base / part / short for base in (self.root, self.root.parent) for part in ("train2017", "val2017")]
        return next((place for place in places if place.is_file()), places[0])

    def _class_map(self, sample: Sample) -> np.ndarray:
        file = self.files(sample)[1]
        class_map = open_mask(file)
        if class_map.max(initial=0) > len(CLASS_NAMES):
            raise InputError(f"{file} holds the value {class_map.max()}; COCO masks hold 0 and class + 1, at most 80")
        return class_map

    def _read_class_names(self) -> list[str]:
        """COCO's names, or those of a folder in the same layout whose classes.json lists 80 others."""
        file = self.root / "classes.json"
        if not file.is_file():
            return CLASS_NAMES
        names = read_json_file(file)
        if not isinstance(names, list) or len(names) != len(CLASS_NAMES):
            raise InputError(f"{file} does not list {len(CLASS_NAMES)} class names")
        return names

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
