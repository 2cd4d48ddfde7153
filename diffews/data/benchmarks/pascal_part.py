"""Pascal-Part: parts of objects in 4 folds (animals, indoor, person, vehicles); pictures are cropped to one object."""

import functools
from pathlib import Path
from typing import Any

from diffews.data.episodes import Benchmark, Episode, EpisodeList, LegacyDraws, Picture, Sample
from diffews.data.lists import read_json_file
from diffews.data.polygons import crop_to_box, union_mask
from diffews.errors import InputError
from diffews.images.files import open_rgb

FOLD_NAMES = ("animals", "indoor", "person", "vehicles")
LEFT_OUT = ("aeroplane", "TAIL")  # counts for the length, but is no class


class PascalPart(Benchmark):
    """Pascal-Part in the layout of datasets/README.md: picture lists and one JSON of objects a picture."""

    folder, test_episodes = "Pascal-Part", 2500  # at most

    def read(self) -> None:
        self.root, split = self.root / "VOCdevkit" / "VOC2010", self.split
        self.file = self.root / "all_obj_part_to_image.json"
        table, part_list = read_json_file(self.file), "train" if split == "train" else "val"
        novel = [FOLD_NAMES[self.fold]] if self.holds_out else []
        known = [name for name in FOLD_NAMES if name not in novel]
        self.parts: list[tuple[str, str]] = []  # (object, part) by class id
        self.lists: list[list[str]] = []
        self.length = 0
        try:
            for group in novel if split == "test" else known:
                for object_name, content in table[group]["object"].items():
                    for part, pictures in content["part"].items():
                        self.length += len(pictures["val"])
                        if pictures["train"] and pictures["val"] and (object_name, part) != LEFT_OUT:
                            self.parts.append((object_name, part))
                            self.lists.append(pictures[part_list])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.file} lacks the key {error}; it holds fold -> object -> part -> train, val"
            ) from None
        if not self.parts:
            raise InputError(f"{self.file}: no part of {novel} has pictures in train and val")
        self.class_ids = list(range(len(self.parts)))
        self.class_names = {c: "+".join(names) for c, names in enumerate(self.parts)}
        self._annotations: dict[str, list[dict[str, Any]]] = {}  # by picture, as they are read

    @functools.cached_property
    def images(self) -> dict[int, list[Sample]]:  # type: ignore[override]
        """Every object of a class that has its part; reads the annotations of all pictures."""
        return {c: [s for name in self.lists[c] for s in self._with_part(name, c)] for c in self.class_ids}

    def draw(self, shots: int) -> EpisodeList:
        """Draws the reference's episodes: classes in turn; picture and object again until the object has the part."""
        draws, episodes = LegacyDraws(), []
        for class_id in self.class_ids:
            usable = len({sample.name for sample in self.images[class_id]})
            if usable <= shots:
                raise InputError(
                    f"class {class_id} ({self.class_names[class_id]}) has {usable} usable images in {self.file}; "
                    f"an episode of {shots} shots needs {shots + 1}"
                )
        for index in range(min(self.test_episodes, self.length)):
            class_id = index % len(self.class_ids)
            found: list[Sample] = []
            while len(found) <= shots:
                name = draws.choice(self.lists[class_id])
                if any(name == sample.name for sample in found):
                    continue
                sample = draws.choice(self._of_class(name, class_id))
                if sample in self._with_part(name, class_id):
                    found.append(sample)
            episodes.append(Episode(class_id, found[0], tuple(found[1:])))
        return EpisodeList(episodes)

    def files(self, sample: Sample) -> list[Path]:
        """Returns the picture and its annotations."""
        return [self.root / "JPEGImages" / f"{sample.name}.jpg", self._annotation_file(sample.name)]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture, cropped to the object's box, and the union of the part's masks."""
        image, file = open_rgb(self.files(sample)[0]), self._annotation_file(sample.name)
        if sample.object_id is None:
            raise InputError(f"{file}: which object of {sample.name}? a sample of Pascal-Part names one")
        if sample.object_id >= len(self._objects(sample.name)):
            raise InputError(f"{file}: {sample.name} has no object {sample.object_id}")
        found = self._objects(sample.name)[sample.object_id]
        where = f"{file}: object {sample.object_id}"
        try:
            box = [float(found["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")]
        except KeyError as error:
            raise InputError(f"{where} lacks the key {error}") from None
        except (TypeError, ValueError):
            raise InputError(f"{where}: bndbox={found['bndbox']!r} is no box of numbers") from None
        try:
            codes = [c for p in found["parts"] if p["name"] == self.parts[class_id][1] for c in p["mask"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: part without a proper mask ({error})") from None
        mask = union_mask(codes, image.height, image.width, where)
        return crop_to_box(image, mask, box, f"{where}: bndbox={found['bndbox']!r}")

    def classes_in(self, sample: Sample) -> list[int]:
        """Returns the classes of this split that the sample's object has a part of."""
        found = self._objects(sample.name)[sample.object_id or 0]
        own = {(found.get("name"), part.get("name")) for part in found.get("parts", ())}
        return [class_id for class_id in self.class_ids if self.parts[class_id] in own]

    def _annotation_file(self, name: str) -> Path:
        return self.root / "Annotations_Part_json_merged_part_classes" / f"{name}.json"

    def _objects(self, name: str) -> list[dict[str, Any]]:
        if name in self._annotations:
            return self._annotations[name]
        file = self._annotation_file(name)
        content = read_json_file(file)
        if not isinstance(content, dict) or not isinstance(content.get("object"), list):
            raise InputError(f"{file} lacks the key 'object'")
        for found in content["object"]:
            parts = found.get("parts", []) if isinstance(found, dict) else None
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                raise InputError(f"{file}: 'object' does not hold objects with 'parts'")
        self._annotations[name] = content["object"]
        return content["object"]

    def _of_class(self, name: str, class_id: int) -> list[Sample]:
        objects = enumerate(self._objects(name))
        samples = [Sample(name, index) for index, found in objects if found.get("name") == self.parts[class_id][0]]
        if not samples:
            raise InputError(f"{self._annotation_file(name)} has no object {self.parts[class_id][0]!r}")
        return samples

    def _with_part(self, name: str, class_id: int) -> list[Sample]:
        part, objects = self.parts[class_id][1], self._objects(name)
        return [
            sample
            for sample in self._of_class(name, class_id)
            if any(p.get("name") == part for p in objects[sample.object_id or 0].get("parts", ()))
        ]
