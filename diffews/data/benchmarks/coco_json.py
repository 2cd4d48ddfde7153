"""Any COCO-format file is a benchmark: classes split into folds, masks filled when needed."""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.benchmarks.folder import SHOWN, OwnClasses
from diffews.data.episodes import DecodedSample, Sample
from diffews.data.lists import LONGEST, name_fault, read_json_file
from diffews.data.polygons import check_segmentation, segmentation_mask
from diffews.errors import InputError
from diffews.images.photos import open_annotated

CROWD = {"none": 0, "0": 0, "0.0": 0, "false": 0, "": 0, "1": 1, "1.0": 1, "true": 1}

LARGEST_SIDE = 65_500  # pixels: what JPEG can hold
LARGEST_PICTURE = 200_000_000  # pixels; a file may claim more than memory holds


class CocoJson(OwnClasses):
    """A COCO-format file and the folder of its images.

    A class's mask is the union of its annotations; pixels of its crowd regions alone are ignored.

    annotations: the JSON file (images, annotations, categories).
    images: the folder of its images; links are followed.
    """

    def read_lists(self, annotations: str = "", images: str = "", folds: int = 4,
                   novel: Sequence[str] = (), crowd: str = "ignore") -> None:
        if not annotations or not images:
            raise InputError("benchmark=coco_json needs annotations=FILE and images=DIR")
        self.file, self.images_folder = Path(annotations), Path(images)
        if not self.images_folder.is_dir():
            raise InputError(f"images={images}: no such folder")
        self.set_content(CocoContent(read_json_file(self.file), self.file), folds, novel, crowd)

    def set_content(self, content: "CocoContent", folds: int, novel: Sequence[str],
                    crowd: str) -> None:
        """Sets classes and images from a checked file, and says what of it is left out."""
        self.content = content
        self.reading = {} if crowd == "ignore" else {"crowd": crowd}
        content.crowd_is_object = crowd == "object"
        counts = [len(content.images_of(category)) for category in content.categories]
        self.split_classes(
            list(content.categories.values()), folds, novel, counts, str(content.where))
        for remark in content.remarks():
            self.tell(remark)
        self.categories = list(content.categories)  # category id by class id
        self.entries = {entry["file_name"]: entry for entry in content.images.values()}
        self.images = {c: [Sample(name) for name in content.images_of(self.categories[c])]
                       for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        return [self.images_folder / sample.name]

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        file, entry = self.files(sample)[0], self.entries[sample.name]
        image, remark = open_annotated(file, (entry["width"], entry["height"]), str(self.file))
        if remark:
            self.tell(f"{self.file}: {remark}")

        mask, crowd = (np.zeros((image.height, image.width), np.uint8) for _ in range(2))
        for annotation in self.content.annotations_of(entry["id"], self.categories[class_id]):
            where = f"{self.file}: annotation {annotation['id']}"
            filled = segmentation_mask(annotation["segmentation"], *mask.shape, where)
            (crowd if self.content.is_crowd(annotation) else mask)[filled > 0] = 1
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
    shapes: also check every segmentation, which takes seconds for a hundred thousand.
    crowd_is_object: regions with iscrowd=1 are objects as any other, not pixels to ignore.
    """

    def __init__(self, content: Any, where: Path | str, shapes: bool = True) -> None:
        self.where, self.crowd_is_object, self.shapes = where, False, shapes
        if not isinstance(content, dict):
            raise InputError(
                f"{where} holds {type(content).__name__}, not images, annotations and categories")
        categories = self._by_id(content, "categories", ("name",))
        self.categories = {i: str(categories[i]["name"]).strip() for i in sorted(categories)}
        for name, count in Counter(self.categories.values()).items():
            if count > 1 or not name:
                raise InputError(f"{where}: the name {name!r} stands {count} times in categories; "
                                 "give each class a name of its own")

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
                fault = (f"the width and height {sides[0]} x {sides[1]}, which is no size: "
                         f"up to {LARGEST_SIDE} a side and {LARGEST_PICTURE} pixels are read")
            elif wrong := name_fault(name):
                fault = f"the file_name {name[:LONGEST]!r}, which {wrong}"
            if fault:
                raise InputError(f"{where}: image {i} has {fault}")
            names.add(name)

        # what is wrong with annotations is said at once, not one run after the other
        faults: list[str] = []
        self.of_image: dict[Any, list[dict[str, Any]]] = {}
        self.only_crowd: dict[Any, dict[Any, bool]] = {}  # category -> images that hold it
        self.places = {i: place for place, i in enumerate(self.images)}
        self.flat: list[Any] = []  # ids of those that mark no area
        shares = total = 0
        needed = ("image_id", "category_id", "segmentation")
        for i, annotation in self._by_id(content, "annotations", needed, faults).items():
            if fault := self._find_fault(annotation):
                faults.append(f"annotation {i}{fault}")
                continue
            self.of_image.setdefault(annotation["image_id"], []).append(annotation)
            images = self.only_crowd.setdefault(annotation["category_id"], {})
            only = images.get(annotation["image_id"], True)
            images[annotation["image_id"]] = only and bool(annotation["iscrowd"])
            if shapes and isinstance(annotation["segmentation"], list):
                total += 1
                shares += all(min(p) >= 0 and max(p) <= 1 for p in annotation["segmentation"])
        if len(faults) == 1:
            raise InputError(f"{where}: {faults[0]}")
        if faults:
            raise InputError(
                f"{where}: {len(faults)} bad annotation(s): {'; '.join(faults[:SHOWN])}"
                + (f"; and {len(faults) - SHOWN} more" * (len(faults) > SHOWN)))
        if shares > total / 2:
            raise InputError(f"{where}: {shares} of {total} polygons have all coordinates in [0, 1]"
                             ": shares of the picture, not pixels; multiply x by width, y by "
                             "height")
        self._drop_headings(categories)

    def _find_fault(self, annotation: dict[str, Any]) -> str:
        """Says what is wrong with an annotation, or nothing; settles its iscrowd."""
        for key, known in (("image_id", self.images), ("category_id", self.categories)):
            if not isinstance(annotation[key], Hashable) or annotation[key] not in known:
                return f" has the {key} {_shown(annotation[key])}, which is not there"
        crowd = annotation.get("iscrowd")
        settled = CROWD.get(str(crowd).lower())
        if settled is None:
            return f" has the iscrowd {crowd!r}, which is neither 0 nor 1"
        annotation["iscrowd"] = settled

        if not self.shapes:
            return ""
        image = self.images[annotation["image_id"]]
        try:
            area = check_segmentation(
                annotation["segmentation"], image["height"], image["width"], "")
        except InputError as error:
            return str(error)
        if not area:
            self.flat.append(annotation["id"])
        return ""

    def _drop_headings(self, categories: dict[Any, dict[str, Any]]) -> None:
        """Takes out what is no class: the heading of others, without an annotation (Roboflow)."""
        used = {a["category_id"] for annotations in self.of_image.values() for a in annotations}
        headings = {str(entry.get("supercategory")).strip() for i, entry in categories.items()
                    if str(entry.get("supercategory")).strip() != self.categories[i]}
        self.headings = [name for i, name in self.categories.items()
                         if i not in used and name in headings]
        self.categories = {i: name for i, name in self.categories.items()
                           if name not in self.headings}

    def remarks(self) -> list[str]:
        """Returns what is left out, or marks nothing: a line each."""
        remarks = []
        if self.headings:
            remarks.append(f"{self.where}: {', '.join(self.headings)} is the heading of other "
                           "categories and has no annotation; it is left out")
        if self.flat:
            shown = ", ".join(map(_shown, self.flat[:SHOWN]))
            remarks.append(f"{self.where}: {len(self.flat)} annotations mark no area in their "
                           f"picture: {shown}")
        if not self.crowd_is_object:
            found = {name: len(self.images_of(i, crowd=True))
                     for i, name in self.categories.items()}
            shown = ", ".join(f"{name} ({count})" for name, count in found.items() if count)
            if shown:
                remarks.append(f"{self.where}: pictures that hold a class only as crowd (iscrowd=1)"
                               f" are left out for it: {shown}; crowd=object takes them")
        return remarks

    def is_crowd(self, annotation: dict[str, Any]) -> bool:
        """Whether an annotation is a crowd region, whose pixels are ignored."""
        return bool(annotation.get("iscrowd")) and not self.crowd_is_object

    def annotations_of(self, image_id: Any, category_id: Any) -> list[dict[str, Any]]:
        """Returns an image's annotations of one category, in the file's order."""
        return [a for a in self.of_image.get(image_id, []) if a["category_id"] == category_id]

    def images_of(self, category_id: Any, crowd: bool = False) -> list[str]:
        """Returns the names of images that hold a category beyond crowds, in the file's order.

        crowd: those that hold it only as crowd.
        """
        found = self.only_crowd.get(category_id, {})
        chosen = [i for i, only in found.items() if (only and not self.crowd_is_object) == crowd]
        return [self.images[i]["file_name"] for i in sorted(chosen, key=self.places.__getitem__)]

    def _by_id(self, content: dict[str, Any], name: str, keys: Sequence[str],
               faults: list[str] | None = None) -> dict[Any, dict[str, Any]]:
        """Reads a list of entries that have `keys` -> id -> entry.

        faults: takes what is wrong with an entry; without it, the first is raised.
        """
        entries = content.get(name)
        if not isinstance(entries, list):
            raise InputError(f"{self.where} lacks the list {name!r}")

        by_id: dict[Any, dict[str, Any]] = {}
        for position, entry in enumerate(entries):
            fault, place = "", f"{name}[{position}]"
            lacking = [k for k in ("id", *keys) if not isinstance(entry, dict) or k not in entry]
            if lacking:
                fault = f"{place} lacks the key {lacking[0]!r}"
            elif isinstance(entry["id"], bool) or not isinstance(
                    entry["id"], int | float | str | np.integer):
                fault = f"{place} has the id {entry['id']!r}, which is no number"
            elif entry["id"] in by_id:
                fault = f"the id {_shown(entry['id'])} stands twice in {name}"
            elif by_id and isinstance(entry["id"], str) != isinstance(next(iter(by_id)), str):
                fault = (f"{place} has the id {entry['id']!r}, others are of another type "
                         f"({next(iter(by_id))!r}); give all numbers, or all texts")
            if fault and faults is None:
                raise InputError(f"{self.where}: {fault}")
            if fault and faults is not None:
                faults.append(fault)
            else:
                by_id[entry["id"]] = entry
        return by_id


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
