"""Any data set that is registered in detectron2's catalogue, as a benchmark; detectron2 is asked for when used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffews.data.benchmarks.coco_json import CocoContent, CocoJson
from diffews.errors import InputError, nearest


class Detectron2(CocoJson):
    """`dataset`: a name in detectron2's catalogue whose annotations have segmentations (polygons or RLE)."""

    def read(self, dataset: str = "", folds: int = 4, novel: Sequence[str] = ()) -> None:  # type: ignore[override]
        if not dataset:
            raise InputError("benchmark=detectron2 needs dataset=NAME, a name in detectron2's catalogue")
        try:
            from detectron2.data import DatasetCatalog, MetadataCatalog
        except ImportError:
            raise InputError(
                "benchmark=detectron2 needs detectron2, which has no wheel; build it with "
                "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'"
            ) from None
        if dataset not in DatasetCatalog.list():
            raise InputError(
                f"dataset={dataset} is not registered in detectron2{nearest(dataset, DatasetCatalog.list())}"
            )
        self.file, self.pictures_folder = Path(f"detectron2:{dataset}"), Path("/")
        records = DatasetCatalog.get(dataset)  # first: detectron2's COCO loader names the classes when it reads
        names = MetadataCatalog.get(dataset).get("thing_classes", None)
        if not names:
            raise InputError(f"dataset={dataset} names no classes; set thing_classes in detectron2's MetadataCatalog")
        self.take(from_catalogue(records, names, dataset), folds, novel)


def from_catalogue(records: Sequence[dict[str, Any]], names: Sequence[str], dataset: str) -> CocoContent:
    """Turns detectron2's list of dicts (file_name, height, width, image_id, annotations) into COCO content.

    An annotation has category_id (0-based, into `names`) and segmentation; one without a segmentation is an error.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, record in enumerate(records):
        for key in ("file_name", "height", "width"):
            if key not in record:
                raise InputError(f"{dataset}: record {position} lacks the key {key!r}")
        images.append({**{key: record[key] for key in ("height", "width")}, "id": position,
                       "file_name": str(Path(record["file_name"]).resolve().relative_to("/"))})  # fmt: skip
        for annotation in record.get("annotations", ()):
            if "segmentation" not in annotation:
                raise InputError(f"{dataset}: {record['file_name']} has an annotation without a segmentation")
            kept = {key: annotation[key] for key in ("category_id", "segmentation", "iscrowd") if key in annotation}
            annotations.append({**kept, "id": len(annotations), "image_id": position})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return CocoContent({"images": images, "annotations": annotations, "categories": categories}, dataset)
