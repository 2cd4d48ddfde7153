"""COCO JSON: annotations.coco.json, an annotation for each object."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from diffews.evaluation.labels.parts import Part, run_lengths
from diffews.evaluation.labels.picture import Add, Objects, Picture
from diffews.runtime.files import atomic_file

FILE = "annotations.coco.json"


@contextmanager
def write_coco(out: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Writes out/annotations.coco.json, an annotation a line, as pictures come.

    Masks are run-length codes, which keep holes. Ids count from 1; categories are in the order of
    the classes.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    images: list[str] = []
    ids = count(1)
    with atomic_file(out / FILE) as file:
        file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": ['.encode())

        def add(picture: Picture, objects: Objects) -> None:
            height, width = picture.size
            image = {"id": len(images) + 1, "file_name": picture.place, "width": width,
                     "height": height}
            images.append(json.dumps(image))
            for parts in objects:
                number = next(ids)
                annotation = {"id": number, "image_id": len(images),
                              **annotate(parts, height, width)}
                if (score := picture.score(parts[0].label)) is not None:
                    annotation["score"] = score
                comma = "," if number > 1 else ""
                file.write(f"{comma}\n{json.dumps(annotation)}".encode())

        yield add
        lines = ",\n".join(images)
        file.write(f'],\n"images": [\n{lines}]}}\n'.encode())


def annotate(parts: Sequence[Part], height: int, width: int) -> dict[str, Any]:
    """Makes a COCO annotation of an object, without ids; its box is left, top, width, height."""
    counts = run_lengths(parts, height, width, by_column=True).tolist()
    code = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {
        "category_id": parts[0].label, "bbox": coco_mask.toBbox(code).tolist(),
        "area": sum(part.area for part in parts), "iscrowd": 0,
        "segmentation": {"size": [height, width], "counts": code["counts"].decode()}}
