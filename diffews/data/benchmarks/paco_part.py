"""PACO-Part: 448 object-part classes in 4 folds; images are cropped to one object."""

from pathlib import Path
from typing import Any

from diffews.data.episodes import (
    Benchmark, DecodedSample, Episode, EpisodeList, LegacyDraws, Sample,
)
from diffews.data.lists import check_names, read_table
from diffews.data.polygons import crop_object
from diffews.errors import InputError, refuse
from diffews.images.files import open_rgb

FOLDS = 4


class PacoPart(Benchmark):
    """PACO-Part in the layout of datasets/README.md: its tables hold cid2img and img2anno."""

    folder, test_episodes = "PACO-Part", 2500

    def read_lists(self) -> None:
        tables = {part: read_table(self.root / "paco", f"paco_part_{part}")
                  for part in dict.fromkeys((self.subset, "train"))}
        self.file, table = tables[self.subset]
        train_file, train = tables["train"]
        if not isinstance(train.get("cid2img"), dict):
            raise InputError(f"{train_file} does not hold cid2img: class -> pictures")
        with refuse(f"{self.file} does not hold cid2img and img2anno",
                    KeyError, TypeError, AttributeError):
            paths = {_as_id(c): _paths_by_id(entries) for c, entries in table["cid2img"].items()}
            self.annotations = {_as_id(i): found for i, found in table["img2anno"].items()}

        # the classes are those of train, in its order, as far as they have images for an episode
        order = [_as_id(category) for category in train["cid2img"]]
        novel = set(order[self.fold :: FOLDS]) if self.holds_out else set()
        least = self.shots if self.split == "test" else 1
        self.categories = [c for c in order if (c in novel) == (self.split == "test")
                           and len(paths.get(c, ())) > least]
        if not self.categories:
            raise InputError(
                f"{self.file}: no class of fold {self.fold} has the pictures for an episode")

        self.set_classes(self.categories)
        self.names = [{i: "/".join(Path(path).parts[-2:]) for i, path in paths[category].items()}
                      for category in self.categories]  # image id -> name, of each class
        for found in self.names:
            check_names(found.values(), self.file)
        self.ids = {name: i for names in self.names for i, name in names.items()}
        self.images = {c: [Sample(name, o) for i, name in self.names[c].items()
                           for o in self._objects(i, c)] for c in self.class_ids}

    def draw(self, shots: int) -> EpisodeList:
        """Draws as the reference does: class, query and its object, each support and its object."""
        draws, episodes = LegacyDraws(), []

        for _ in range(self.test_episodes):
            class_id = draws.choice(self.class_ids)
            names = self.names[class_id]

            # the query, then supports from other images; one may come twice
            found: list[Sample] = []
            while len(found) <= shots:
                image_id = draws.choice(list(names))
                if not found or names[image_id] != found[0].name:
                    object_id = draws.choice(list(self._objects(image_id, class_id)))
                    found.append(Sample(names[image_id], object_id))
            episodes.append(Episode(class_id, found[0], tuple(found[1:])))
        return EpisodeList(episodes)

    def files(self, sample: Sample) -> list[Path]:
        return [self.root / "coco" / sample.name]  # masks come from the table

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        image = open_rgb(self.files(sample)[0])
        where = f"{self.file}: {sample.name}, object {sample.object_id}"
        parts = self._objects(self.ids[sample.name], class_id).get(sample.object_id)
        if parts is None:
            raise InputError(f"{where} is not there")

        # the union of the object's parts of the class, then the object's box
        with refuse(f"{where} lacks a key", KeyError):
            codes = [part["segmentation"] for part in parts]
        box = parts[0].get("obj_bbox")
        with refuse(f"{where}: obj_bbox={box!r} is not x, y, width, height", TypeError, ValueError):
            x, y, width, height = (float(value) for value in box or ())
        return crop_object(image, codes, (x, y, x + width, y + height), where, f"obj_bbox={box!r}")

    def classes_in(self, sample: Sample) -> list[int]:
        # of this split, whatever the lists of classes say of the image
        annotations = self.annotations[self.ids[sample.name]]
        found = {a["category_id"] for a in annotations if a["obj_ann_id"] == sample.object_id}
        return [c for c, category in enumerate(self.categories) if category in found]

    def _objects(self, image_id: Any, class_id: int) -> dict[Any, list[dict[str, Any]]]:
        """Returns the image's objects with the class -> their annotations of it."""
        category = self.categories[class_id]
        objects: dict[Any, list[dict[str, Any]]] = {}
        with refuse(f"{self.file}: image {image_id} in img2anno lacks a key", KeyError, TypeError):
            for annotation in self.annotations[image_id]:
                if annotation["category_id"] == category:
                    objects.setdefault(annotation["obj_ann_id"], []).append(annotation)
        if not objects:
            raise InputError(
                f"{self.file}: image {image_id} has no object of class {category} in img2anno")
        return objects


def _paths_by_id(entries: list[dict[Any, str]]) -> dict[Any, str]:
    """[{image_id: path}, ...] -> image id -> path; of a repeated id the first stays."""
    paths: dict[Any, str] = {}
    for image_id, path in (pair for entry in entries for pair in entry.items()):
        if not isinstance(path, str):
            raise TypeError(f"{path!r} is no path")
        paths.setdefault(_as_id(image_id), path)
    return paths


def _as_id(key: Any) -> Any:
    """JSON writes ids as texts."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key
