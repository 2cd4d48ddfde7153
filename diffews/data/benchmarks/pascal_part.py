"""Pascal-Part: parts of objects in 4 folds; images are cropped to one object."""

import functools
from pathlib import Path
from typing import Any

from diffews.data.episodes import (
    Benchmark, DecodedSample, Episode, EpisodeList, LegacyDraws, Sample,
)
from diffews.data.lists import check_names, read_json_file
from diffews.data.polygons import crop_object
from diffews.errors import InputError, refuse
from diffews.images.files import open_rgb

FOLD_NAMES = ("animals", "indoor", "person", "vehicles")
LEFT_OUT = ("aeroplane", "TAIL")  # counts for the length, but is no class


class PascalPart(Benchmark):
    """Pascal-Part in the layout of datasets/README.md: image lists, and a JSON of objects each."""

    folder, test_episodes = "Pascal-Part", 2500  # at most

    def read_lists(self) -> None:
        self.root = self.root / "VOCdevkit" / "VOC2010"
        self.file = self.root / "all_obj_part_to_image.json"
        table, novel = read_json_file(self.file), FOLD_NAMES[self.fold] if self.holds_out else ""

        # a class has images in both subsets; the length counts every part's in val
        self.parts: list[tuple[str, str]] = []  # (object, part) by class id
        self.lists: list[list[str]] = []
        self.length = 0
        with refuse(f"{self.file} lacks a key", KeyError, TypeError, AttributeError,
                    cure="it holds fold -> object -> part -> train, val"):
            groups = [g for g in FOLD_NAMES if (g == novel) == (self.split == "test")]
            lists = {(kind, part): names for group in groups
                     for kind, content in table[group]["object"].items()
                     for part, names in content["part"].items()}
            for pair, names in lists.items():
                self.length += len(names["val"])
                if names["train"] and names["val"] and pair != LEFT_OUT:
                    self.parts.append(pair)
                    self.lists.append(names[self.subset])
                    check_names(names[self.subset], self.file)
        if not self.parts:
            raise InputError(f"{self.file}: no part of {groups} has pictures in train and val")
        self.set_classes(["+".join(names) for names in self.parts])
        self.annotations: dict[str, list[dict[str, Any]]] = {}  # by image name, as they are read

    @functools.cached_property
    def images(self) -> dict[int, list[Sample]]:  # type: ignore[override]
        """Every object of a class that has its part; reads the annotations of all images."""
        return {c: [sample for name in self.lists[c]
                    for sample, has_part in self._candidates(name, c).items() if has_part]
                for c in self.class_ids}

    def draw(self, shots: int) -> EpisodeList:
        """Draws as the reference does: classes in turn, image and object until it has the part."""
        draws, episodes = LegacyDraws(), []
        for class_id, samples in self.images.items():
            usable = len({sample.name for sample in samples})
            if usable <= shots:
                raise InputError(
                    f"class {class_id} ({self.class_names[class_id]}) has {usable} usable images "
                    f"in {self.file}; an episode of {shots} shots needs {shots + 1}")

        for index in range(min(self.test_episodes, self.length)):
            class_id = index % len(self.class_ids)
            found: dict[str, Sample] = {}  # by image: the query, then the supports
            while len(found) <= shots:
                name = draws.choice(self.lists[class_id])
                if name not in found:
                    candidates = self._candidates(name, class_id)
                    sample = draws.choice(list(candidates))
                    if candidates[sample]:
                        found[name] = sample
            query, *supports = found.values()
            episodes.append(Episode(class_id, query, tuple(supports)))
        return EpisodeList(episodes)

    def files(self, sample: Sample) -> list[Path]:
        folder = self.root / "Annotations_Part_json_merged_part_classes"
        return [self.root / "JPEGImages" / f"{sample.name}.jpg", folder / f"{sample.name}.json"]

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        image_file, file = self.files(sample)
        image, where = open_rgb(image_file), f"{file}: object {sample.object_id}"
        objects = self._objects(sample.name)
        if sample.object_id is None or sample.object_id >= len(objects):
            raise InputError(f"{where} of {sample.name} is not there")
        found = objects[sample.object_id]

        # the union of the part's masks, then the object's box
        with refuse(f"{where} has no box of numbers, bndbox", KeyError, TypeError, ValueError):
            box = [float(found["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")]
        with refuse(f"{where} has a part without a proper mask", KeyError, TypeError, ValueError):
            part = self.parts[class_id][1]
            codes = [code for p in found["parts"] if p["name"] == part for code in p["mask"]]
        return crop_object(image, codes, box, where, f"bndbox={found['bndbox']!r}")

    def classes_in(self, sample: Sample) -> list[int]:
        # of this split, whatever the lists say of the image
        found = self._objects(sample.name)[sample.object_id or 0]
        parts = {(found.get("name"), part.get("name")) for part in found.get("parts", ())}
        return [class_id for class_id, pair in enumerate(self.parts) if pair in parts]

    def _objects(self, name: str) -> list[dict[str, Any]]:
        """Reads the objects of an image."""
        if name not in self.annotations:
            file = self.files(Sample(name))[1]
            content = read_json_file(file)
            if not isinstance(content, dict) or not isinstance(content.get("object"), list):
                raise InputError(f"{file} lacks the key 'object'")
            for found in content["object"]:
                parts = found.get("parts", []) if isinstance(found, dict) else None
                if not isinstance(parts, list) or not all(isinstance(p, dict) for p in parts):
                    raise InputError(f"{file}: 'object' does not hold objects with 'parts'")
            self.annotations[name] = content["object"]
        return self.annotations[name]

    def _candidates(self, name: str, class_id: int) -> dict[Sample, bool]:
        """Returns the image's objects of the class's kind -> whether they have its part."""
        kind, part = self.parts[class_id]
        found = {Sample(name, i): part in [p.get("name") for p in o.get("parts", ())]
                 for i, o in enumerate(self._objects(name)) if o.get("name") == kind}
        if not found:
            raise InputError(f"{self.files(Sample(name))[1]} has no object {kind!r}")
        return found
