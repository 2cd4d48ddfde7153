"""PACO-Part: 448 object-part classes in 4 folds; pictures are cropped to one object."""

from pathlib import Path
from typing import Any

from diffews.data.episodes import Benchmark, Episode, EpisodeList, LegacyDraws, Picture, Sample
from diffews.data.lists import read_table
from diffews.data.polygons import crop_to_box, union_mask
from diffews.errors import InputError
from diffews.images.files import open_rgb

FOLDS = 4


class PacoPart(Benchmark):
    """PACO-Part in the layout of datasets/README.md: paco_part_{train,val} hold cid2img and img2anno."""

    folder, test_episodes = "PACO-Part", 2500

    def read(self) -> None:
        split = self.split
        self.file, table = read_table(self.root / "paco", "paco_part_train" if split == "train" else "paco_part_val")
        order_file, order = (
            (self.file, table) if split == "train" else read_table(self.root / "paco", "paco_part_train")
        )
        if not isinstance(order.get("cid2img"), dict):
            raise InputError(f"{order_file} does not hold cid2img: class -> pictures")
        try:
            novel = [_id(c) for c in order["cid2img"]][self.fold :: FOLDS] if self.holds_out else []
            pictures = {_id(c): _first_of_each(entries) for c, entries in table["cid2img"].items()}
            self.annotations: dict[Any, list[dict[str, Any]]] = {
                _id(i): found for i, found in table["img2anno"].items()
            }
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{self.file} does not hold cid2img and img2anno") from None
        wanted = novel if split == "test" else [c for c in map(_id, order["cid2img"]) if c not in novel]
        self.categories = [c for c in wanted if len(pictures.get(c, {})) > (self.shots if split == "test" else 1)]
        if not self.categories:
            raise InputError(f"{self.file}: no class of fold {self.fold} has the pictures for an episode")
        self.class_ids = list(range(len(self.categories)))
        self.class_names = {index: str(category) for index, category in enumerate(self.categories)}
        self.pictures = [pictures[category] for category in self.categories]  # image id -> path, of each class
        self.ids = {"/".join(Path(path).parts[-2:]): i for paths in self.pictures for i, path in paths.items()}
        self.images = {
            c: [self._sample(path, o) for i, path in self.pictures[c].items() for o in self._objects(i, c)]
            for c in self.class_ids
        }

    def draw(self, shots: int) -> EpisodeList:
        """Draws the 2500 episodes of the reference: class, query and its object, each support and its object."""
        draws, episodes = LegacyDraws(), []
        for _ in range(self.test_episodes):
            class_id = draws.choice(self.class_ids)
            paths = self.pictures[class_id]
            query_id = draws.choice(list(paths))
            query = self._sample(paths[query_id], draws.choice(self._objects(query_id, class_id)))
            supports: list[Sample] = []
            while len(supports) < shots:
                image_id = draws.choice(list(paths))
                if image_id != query_id:
                    object_id = draws.choice(self._objects(image_id, class_id))
                    supports.append(self._sample(paths[image_id], object_id))
            episodes.append(Episode(class_id, query, tuple(supports)))
        return EpisodeList(episodes)

    def files(self, sample: Sample) -> list[Path]:
        return [self.root / "coco" / sample.name]  # masks come from the table

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture, cropped to the object's box, and the union of the object's parts of the class."""
        image = open_rgb(self.files(sample)[0])
        where = f"{self.file}: {sample.name}, object {sample.object_id}"
        own = [a for a in self._of_class(self.ids[sample.name], class_id) if a["obj_ann_id"] == sample.object_id]
        if not own:
            raise InputError(f"{where} is not there")
        if not all("segmentation" in annotation for annotation in own):
            raise InputError(f"{where} has no segmentation")
        mask = union_mask((a["segmentation"] for a in own), image.height, image.width, where)
        box = own[0].get("obj_bbox")
        try:
            x, y, width, height = (float(value) for value in box or ())
        except (TypeError, ValueError):
            raise InputError(f"{where}: obj_bbox={box!r} is not x, y, width, height") from None
        return crop_to_box(image, mask, (x, y, x + width, y + height), f"{where}: obj_bbox={box!r}")

    def classes_in(self, sample: Sample) -> list[int]:
        """Returns the classes of this split that the sample's object has a part of."""
        annotations = self.annotations[self.ids[sample.name]]
        found = {a["category_id"] for a in annotations if a["obj_ann_id"] == sample.object_id}
        return [class_id for class_id, category in enumerate(self.categories) if category in found]

    def _sample(self, path: str, object_id: int) -> Sample:
        return Sample("/".join(Path(path).parts[-2:]), object_id)

    def _of_class(self, image_id: Any, class_id: int) -> list[dict[str, Any]]:
        category = self.categories[class_id]
        try:
            found = self.annotations[image_id]
        except (KeyError, TypeError):
            raise InputError(f"{self.file}: image {image_id} has no annotations in img2anno") from None
        try:
            own = [(a["obj_ann_id"], a) for a in found if a["category_id"] == category]
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.file}: image {image_id} in img2anno lacks the key {error}") from None
        if not own:
            raise InputError(f"{self.file}: image {image_id} has no object of class {category} in img2anno")
        return [annotation for _, annotation in own]

    def _objects(self, image_id: Any, class_id: int) -> list[int]:
        return list(dict.fromkeys(a["obj_ann_id"] for a in self._of_class(image_id, class_id)))


def _first_of_each(entries: list[dict[Any, str]]) -> dict[Any, str]:
    """[{image_id: path}, ...] -> image id -> path; of a repeated id the first stays."""
    paths: dict[Any, str] = {}
    for entry in entries:
        for image_id, path in entry.items():
            if not isinstance(path, str):
                raise TypeError
            paths.setdefault(_id(image_id), path)
    return paths


def _id(key: Any) -> Any:
    """JSON writes ids as texts."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key
