"""Any COCO-format file is a benchmark: classes split into folds, masks filled when they are needed."""

import os
from collections.abc import Hashable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.benchmarks.folder import split_classes
from diffews.data.episodes import Benchmark, Picture, Sample
from diffews.data.lists import read_json_file
from diffews.data.polygons import segmentation_mask
from diffews.errors import InputError
from diffews.images.files import open_rgb


class CocoJson(Benchmark):
    """`annotations`: the JSON file (images, annotations, categories). `images`: the folder of its pictures.

    A class's mask is the union of its annotations; pixels of its crowd regions alone are ignored.
    """

    folds = None

    def read(self, annotations: str = "", images: str = "", folds: int = 4, novel: Sequence[str] = ()) -> None:
        if not annotations or not images:
            raise InputError("benchmark=coco_json needs annotations=FILE and images=DIR")
        self.file, self.pictures_folder = Path(annotations), Path(images)
        if not self.pictures_folder.is_dir():
            raise InputError(f"images={images}: no such folder")
        self.take(read_coco(self.file), folds, novel)

    def take(self, content: "CocoContent", folds: int, novel: Sequence[str]) -> None:
        """Sets classes and images from a checked file."""
        self.content = content
        names = list(content.categories.values())
        self.class_ids = split_classes(names, self.fold if self.holds_out else None, folds, novel, self.split)
        self.class_names = dict(enumerate(names))
        self.categories = list(content.categories)  # category id by class id
        self.pictures = {picture["file_name"]: picture for picture in content.images.values()}
        self.images = {
            c: [Sample(content.images[i]["file_name"]) for i in content.images_of(self.categories[c])]
            for c in self.class_ids
        }

    def files(self, sample: Sample) -> list[Path]:
        return [self.pictures_folder / sample.name]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture and fills the class's annotations."""
        file, picture = self.files(sample)[0], self.pictures[sample.name]
        if not file.resolve().is_relative_to(self.pictures_folder.resolve()):
            raise InputError(f"{self.file}: the file name {sample.name!r} leads out of {self.pictures_folder}")
        image = open_rgb(file)
        if (picture["width"], picture["height"]) != image.size:
            raise InputError(
                f"{file} is {image.width} x {image.height}, {self.file} says {picture['width']} x {picture['height']}"
            )
        mask, crowd = (np.zeros((image.height, image.width), np.uint8) for _ in range(2))
        for annotation in self.content.annotations_of(picture["id"], self.categories[class_id]):
            where = f"{self.file}: annotation {annotation['id']}"
            filled = segmentation_mask(annotation["segmentation"], image.height, image.width, where)
            (crowd if annotation.get("iscrowd") else mask)[filled > 0] = 1
        return Picture(image, mask, crowd & ~mask & 1 if crowd.any() else np.zeros_like(mask))

    def classes_in(self, sample: Sample) -> list[int]:
        found = {a["category_id"] for a in self.content.of_image.get(self.pictures[sample.name]["id"], [])}
        return [class_id for class_id, category in enumerate(self.categories) if category in found]


class CocoContent:
    """A COCO-format file, checked: ids are unique and point somewhere, every annotation has a segmentation."""

    def __init__(self, content: Any, where: Path | str) -> None:
        self.where = where
        if not isinstance(content, dict):
            raise InputError(f"{where} holds {type(content).__name__}, not images, annotations and categories")
        categories = self._by_id(content, "categories", ("name",))
        self.categories = {i: str(categories[i]["name"]) for i in sorted(categories)}
        self.images = self._by_id(content, "images", ("file_name", "height", "width"))
        names: set[str] = set()
        for i, picture in self.images.items():
            name = picture["file_name"]
            if not isinstance(name, str) or name in names:
                raise InputError(f"{where}: image {i} has the file_name {name!r}, which is no text or stands twice")
            if not all(isinstance(picture[key], Integral) and picture[key] > 0 for key in ("height", "width")):
                size = f"{picture['width']} x {picture['height']}"
                raise InputError(f"{where}: image {i} has the width and height {size}, which is no size")
            if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
                raise InputError(f"{where}: image {i} has the file_name {name!r}, which leads out of the folder")
            names.add(name)
        self.of_image: dict[Any, list[dict[str, Any]]] = {}
        for i, annotation in self._by_id(content, "annotations", ("image_id", "category_id", "segmentation")).items():
            for key, known in (("image_id", self.images), ("category_id", self.categories)):
                if not isinstance(annotation[key], Hashable) or annotation[key] not in known:
                    raise InputError(f"{where}: annotation {i} has the {key} {annotation[key]}, which is not there")
            self.of_image.setdefault(annotation["image_id"], []).append(annotation)

    def annotations_of(self, image_id: Any, category_id: Any) -> list[dict[str, Any]]:
        """Returns a picture's annotations of one category, in the file's order."""
        return [a for a in self.of_image.get(image_id, []) if a["category_id"] == category_id]

    def images_of(self, category_id: Any) -> list[Any]:
        """Returns the ids of the pictures that hold a category beyond crowd regions, in the file's order."""
        return [i for i in self.images if any(not a.get("iscrowd") for a in self.annotations_of(i, category_id))]

    def _by_id(self, content: dict[str, Any], name: str, keys: Sequence[str]) -> dict[Any, dict[str, Any]]:
        entries = content.get(name)
        if not isinstance(entries, list):
            raise InputError(f"{self.where} lacks the list {name!r}")
        by_id: dict[Any, dict[str, Any]] = {}
        for position, entry in enumerate(entries):
            lacking = [key for key in ("id", *keys) if not isinstance(entry, dict) or key not in entry]
            if lacking:
                raise InputError(f"{self.where}: {name}[{position}] lacks the key {lacking[0]!r}")
            if not isinstance(entry["id"], Hashable):
                raise InputError(f"{self.where}: {name}[{position}] has the id {entry['id']!r}, which is no number")
            if entry["id"] in by_id:
                raise InputError(f"{self.where}: the id {entry['id']} stands twice in {name}")
            by_id[entry["id"]] = entry
        return by_id


def read_coco(file: Path) -> CocoContent:
    """Reads a COCO-format file."""
    return CocoContent(read_json_file(file), file)
