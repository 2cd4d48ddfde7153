"""Any data set that is registered in detectron2's catalogue; detectron2 is asked for when used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffews.data.benchmarks.coco_json import CocoContent, CocoJson
from diffews.errors import InputError, nearest, refuse


class Detectron2(CocoJson):
    """dataset: a name in detectron2's catalogue whose annotations have segmentations."""

    def read_lists(self, dataset: str = "", folds: int = 4,  # type: ignore[override]
                   novel: Sequence[str] = (), crowd: str = "ignore") -> None:
        if not dataset:
            raise InputError("benchmark=detectron2 needs dataset=NAME, "
                             "a name in detectron2's catalogue")
        with refuse("benchmark=detectron2 needs detectron2, which has no wheel", ImportError,
                    cure="build it with pip install --no-build-isolation "
                    "'git+https://github.com/facebookresearch/detectron2'"):
            from detectron2.data import DatasetCatalog, MetadataCatalog
        if dataset not in DatasetCatalog.list():
            raise InputError(f"dataset={dataset} is not registered in detectron2"
                             f"{nearest(dataset, DatasetCatalog.list())}")

        # entries first: detectron2's COCO loader names the classes when it reads
        entries = DatasetCatalog.get(dataset)
        names = MetadataCatalog.get(dataset).get("thing_classes", None)
        if not names:
            raise InputError(f"dataset={dataset} names no classes; "
                             "set thing_classes in detectron2's MetadataCatalog")
        self.file, self.images_folder = Path(f"detectron2:{dataset}"), Path("/")
        self.set_content(from_catalogue(entries, names, dataset), folds, novel, crowd)


def from_catalogue(entries: Sequence[dict[str, Any]], names: Sequence[str],
                   dataset: str) -> CocoContent:
    """Turns detectron2's list of dicts into COCO content.

    entries: file_name, height, width and annotations of each image; an annotation has category_id
        (0-based, into `names`), segmentation, and perhaps iscrowd.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    # images are numbered as they come, and so are the annotations of all of them
    for i, entry in enumerate(entries):
        with refuse(f"{dataset}: record {i}, {entry.get('file_name')}, lacks a key", KeyError):
            path = Path(entry["file_name"]).resolve().relative_to("/")
            images.append({"id": i, "file_name": str(path),
                           "height": entry["height"], "width": entry["width"]})
            annotations += [{"id": k, "image_id": i, "category_id": a["category_id"],
                             "segmentation": a["segmentation"], "iscrowd": a.get("iscrowd", 0)}
                            for k, a in enumerate(entry.get("annotations", ()), len(annotations))]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return CocoContent(
        {"images": images, "annotations": annotations, "categories": categories}, dataset)
