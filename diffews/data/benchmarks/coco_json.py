"""Any COCO-format file is a benchmark: classes split into folds, masks filled when needed."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.benchmarks.folder import OwnClasses
from diffews.data.episodes import DecodedSample, Sample
from diffews.data.lists import LONGEST, name_fault, read_json_file
from diffews.data.polygons import segmentation_mask
from diffews.errors import InputError
from diffews.images.files import open_rgb

LARGEST_SIDE = 65_500  # pixels: what JPEG can hold
LARGEST_PICTURE = 200_000_000  # pixels; a file may claim more than memory holds


class CocoJson(OwnClasses):
    """A COCO-format file and the folder of its images.

    A class's mask is the union of its annotations; pixels of its crowd regions alone are ignored.

    annotations: the JSON file (images, annotations, categories).
    images: the folder of its images; links are followed.
    """

    def read_lists(self, annotations: str = "", images: str = "", folds: int = 4,
                   novel: Sequence[str] = ()) -> None:
        if not annotations or not images:
            raise InputError("benchmark=coco_json needs annotations=FILE and images=DIR")
        self.file, self.images_folder = Path(annotations), Path(images)
        if not self.images_folder.is_dir():
            raise InputError(f"images={images}: no such folder")
        self.set_content(CocoContent(read_json_file(self.file), self.file), folds, novel)

    def set_content(self, content: "CocoContent", folds: int, novel: Sequence[str]) -> None:
        """Sets classes and images from a checked file."""
        self.content = content
        self.split_classes(list(content.categories.values()), folds, novel)
        self.categories = list(content.categories)  # category id by class id
        self.entries = {entry["file_name"]: entry for entry in content.images.values()}
        self.images = {c: [Sample(name) for name in content.images_of(self.categories[c])]
                       for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        return [self.images_folder / sample.name]

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        file, entry = self.files(sample)[0], self.entries[sample.name]
        image = open_rgb(file)
        if (entry["width"], entry["height"]) != image.size:
            raise InputError(f"{file} is {image.width} x {image.height}, "
                             f"{self.file} says {entry['width']} x {entry['height']}")

        mask, crowd = (np.zeros((image.height, image.width), np.uint8) for _ in range(2))
        for annotation in self.content.annotations_of(entry["id"], self.categories[class_id]):
            where = f"{self.file}: annotation {annotation['id']}"
            filled = segmentation_mask(annotation["segmentation"], *mask.shape, where)
            (crowd if annotation.get("iscrowd") else mask)[filled > 0] = 1
        return DecodedSample(image, mask, crowd & ~mask)

    def classes_in(self, sample: Sample) -> list[int]:
        annotations = self.content.of_image.get(self.entries[sample.name]["id"], [])
        found = {annotation["category_id"] for annotation in annotations}
        return [c for c, category in enumerate(self.categories) if category in found]


class CocoContent:
    """A COCO-format file, checked.

    Ids are unique and point somewhere, names stay in the folder, sizes are sizes, and every
    annotation has a segmentation.

    content: the decoded JSON.
    where: what to name in an error.
    """

    def __init__(self, content: Any, where: Path | str) -> None:
        self.where = where
        if not isinstance(content, dict):
            raise InputError(
                f"{where} holds {type(content).__name__}, not images, annotations and categories")
        categories = self._by_id(content, "categories", ("name",))
        kinds = sorted({type(i).__name__ for i in categories})
        if len(kinds) > 1:
            raise InputError(f"{where}: ids of categories are {' and '.join(kinds)}; give numbers")
        self.categories = {i: str(categories[i]["name"]) for i in sorted(categories)}

        self.images = self._by_id(content, "images", ("file_name", "height", "width"))
        names: set[str] = set()
        for i, entry in self.images.items():
            name, sides = entry["file_name"], (entry["width"], entry["height"])
            fault = ""
            if not isinstance(name, str) or name in names:
                fault = f"the file_name {name!r}, which is no text or stands twice"
            elif not all(
                isinstance(side, int | np.integer) and not isinstance(side, bool)
                and 0 < side <= LARGEST_SIDE for side in sides
            ) or sides[0] * sides[1] > LARGEST_PICTURE:
                fault = (f"the width and height {sides[0]!r} x {sides[1]!r}, which is no size: "
                         f"up to {LARGEST_SIDE} a side and {LARGEST_PICTURE} pixels are read")
            elif wrong := name_fault(name):
                fault = f"the file_name {name[:LONGEST]!r}, which {wrong}"
            if fault:
                raise InputError(f"{where}: image {i} has {fault}")
            names.add(name)

        self.of_image: dict[Any, list[dict[str, Any]]] = {}
        needed = ("image_id", "category_id", "segmentation")
        for i, annotation in self._by_id(content, "annotations", needed).items():
            for key, known in (("image_id", self.images), ("category_id", self.categories)):
                if not isinstance(annotation[key], Hashable) or annotation[key] not in known:
                    raise InputError(f"{where}: annotation {i} has the {key} {annotation[key]}, "
                                     "which is not there")
            self.of_image.setdefault(annotation["image_id"], []).append(annotation)

    def annotations_of(self, image_id: Any, category_id: Any) -> list[dict[str, Any]]:
        """Returns an image's annotations of one category, in the file's order."""
        return [a for a in self.of_image.get(image_id, []) if a["category_id"] == category_id]

    def images_of(self, category_id: Any) -> list[str]:
        """Returns the names of images that hold a category beyond crowds, in the file's order."""
        return [entry["file_name"] for i, entry in self.images.items()
                if any(not a.get("iscrowd") for a in self.annotations_of(i, category_id))]

    def _by_id(self, content: dict[str, Any], name: str,
               keys: Sequence[str]) -> dict[Any, dict[str, Any]]:
        """Reads a list of entries that have `keys` -> id -> entry."""
        entries = content.get(name)
        if not isinstance(entries, list):
            raise InputError(f"{self.where} lacks the list {name!r}")

        by_id: dict[Any, dict[str, Any]] = {}
        for position, entry in enumerate(entries):
            place = f"{self.where}: {name}[{position}]"
            lacking = [k for k in ("id", *keys) if not isinstance(entry, dict) or k not in entry]
            if lacking:
                raise InputError(f"{place} lacks the key {lacking[0]!r}")
            if not isinstance(entry["id"], Hashable):
                raise InputError(f"{place} has the id {entry['id']!r}, which is no number")
            if entry["id"] in by_id:
                raise InputError(f"{self.where}: the id {entry['id']} stands twice in {name}")
            by_id[entry["id"]] = entry
        return by_id
