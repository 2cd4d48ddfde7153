"""Reads label files with the tools that they are for; run by a Python that has those tools.

python label_readers.py OUT PHOTOS RESULT.npz: a label map of each picture and reader, as
"reader/name", from OUT as `diffews segment format=...` wrote it and the folder of its photos. What
a reader finds wrong is an error.
"""

import json
import sys
from pathlib import Path

import numpy as np
import supervision
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from labelme._label_file import LabelFile
from labelme.utils import shape as labelme_shape
from pycocotools.coco import COCO


def main(out: Path, photos: Path, result: Path) -> None:
    found = {}
    coco = COCO(out / "annotations.coco.json")
    for entry in coco.loadImgs(coco.getImgIds()):
        labels = np.zeros((entry["height"], entry["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[entry["id"]])):
            labels[coco.annToMask(annotation) > 0] = annotation["category_id"]
        found[f"pycocotools/{Path(entry['file_name']).stem}"] = labels

    # supervision: COCO and YOLO
    datasets = {
        "supervision coco": supervision.DetectionDataset.from_coco(
            str(photos), str(out / "annotations.coco.json"), force_masks=True
        ),
        "supervision yolo": supervision.DetectionDataset.from_yolo(
            str(out / "images"), str(out / "labels"), str(out / "data.yaml"), force_masks=True
        ),
    }
    for reader, dataset in datasets.items():
        for place, image, detections in dataset:
            labels = np.zeros(image.shape[:2], np.uint8)
            masks = detections.mask if detections.mask is not None else []
            for mask, number in zip(masks, detections.class_id, strict=True):
                labels[np.asarray(mask)] = number + 1
            found[f"{reader}/{Path(place).stem}"] = labels

    # Label Studio: the interface takes the predictions, and its own decoder the brushes
    interface = LabelInterface((out / "label_studio.xml").read_text())
    interface.validate()
    names = list(interface.get_control("brush").labels)
    for task in json.loads((out / "label_studio.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        (prediction,) = task["predictions"]
        errors = interface.validate_prediction(prediction, return_errors=True)
        assert not errors, errors
        stem = Path(task["data"]["image"]).stem
        for item in prediction["result"]:
            size = item["original_height"], item["original_width"]
            labels = found.setdefault(f"label studio/{stem}", np.zeros(size, np.uint8))
            if item["type"] == "brushlabels":
                marked = decode_rle(item["value"]["rle"]).reshape(*size, 4)[..., 3]
                labels[marked > 0] = names.index(item["value"]["brushlabels"][0]) + 1

    # LabelMe opens the photo that its file names, too
    for file in sorted((out / "labelme").rglob("*.json")):
        read = LabelFile(str(file))
        assert read.imageData
        content = json.loads(file.read_text())
        size = content["imageHeight"], content["imageWidth"]
        values = {name: i for i, name in enumerate(names, start=1)}
        labels, _ = labelme_shape.shapes_to_label(size, read.shapes, values)
        found[f"labelme/{file.stem}"] = labels.astype(np.uint8)
    np.savez_compressed(result, **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
