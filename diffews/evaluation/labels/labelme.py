"""LabelMe: labelme/<name>.json, a polygon for each part."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffews.evaluation.labels.parts import outline
from diffews.evaluation.labels.picture import Add, Objects, Picture
from diffews.runtime.files import write_atomic

FOLDER = "labelme"
VERSION = "5.5.0"  # of LabelMe, whose layout this is; it warns of an older one


@contextmanager
def write_labelme(out: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Writes out/labelme/<name>.json beside the photo's path; the photo itself is not copied."""
    def add(picture: Picture, objects: Objects) -> None:
        place = out / FOLDER / f"{picture.name}.json"
        photo = os.path.relpath(picture.photo.resolve(), place.parent.resolve())
        content = describe(picture, objects, classes, photo)
        write_atomic(place, json.dumps(content, indent=1) + "\n")

    yield add


def describe(
    picture: Picture, objects: Objects, classes: Sequence[str], photo: str
) -> dict[str, Any]:
    """Makes the content of a LabelMe file.

    Polygons of one object share a group_id. A seam leads to each hole, see `outline`.

    photo: the path of the photo, seen from the file.
    """
    height, width = picture.size
    shapes: list[dict[str, Any]] = [
        {"label": classes[part.label - 1], "points": [list(point) for point in outline(part)],
         "group_id": number if len(parts) > 1 else None, "description": "",
         "shape_type": "polygon", "flags": {}, "mask": None}
        for number, parts in enumerate(objects, start=1) for part in parts]
    return {
        "version": VERSION, "flags": {}, "shapes": shapes, "imagePath": photo, "imageData": None,
        "imageHeight": height, "imageWidth": width}
