"""The one door to all formats: pictures with their label maps come, files are written."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from diffews.evaluation.labels.coco import write_coco
from diffews.evaluation.labels.label_studio import write_label_studio
from diffews.evaluation.labels.labelme import write_labelme
from diffews.evaluation.labels.parts import Part, find_parts
from diffews.evaluation.labels.picture import Format, Picture
from diffews.evaluation.labels.pictures import write_cutout, write_palette
from diffews.evaluation.labels.yolo import write_yolo

WRITERS: dict[str, Format] = {
    "coco": write_coco, "yolo": write_yolo, "label_studio": write_label_studio,
    "labelme": write_labelme, "palette": write_palette, "cutout": write_cutout}


@dataclass
class Counts:
    """What was written: pictures, objects in them, and parts that were too small."""

    pictures: int = 0
    objects: int = 0
    small: int = 0


def write_labels(
    out: Path, pictures: Iterable[Picture], classes: Sequence[str], formats: Sequence[str],
    parts: bool = True, least_area: int = 1
) -> Counts:
    """Writes the labels of pictures in all formats, one picture after the other.

    A file of all pictures is complete or not there at all; so is each file of one picture.

    Args:
        out: folder to write into.
        pictures: one is held at a time.
        classes: names of the labels 1, 2, ...
        formats: words of WRITERS; others are passed over.
        parts: each connected part is an object; else a class is one object of a picture.
        least_area: pixels; smaller parts are left out.

    """
    counts = Counts()
    with ExitStack() as stack:
        add = [stack.enter_context(WRITERS[name](out, classes)) for name in formats
               if name in WRITERS]
        for picture in pictures:
            found, small = find_parts(picture.labels, least_area)
            objects = [[part] for part in found] if parts else _by_class(found)
            counts.pictures += 1
            counts.objects += len(objects)
            counts.small += small
            for write in add:
                write(picture, objects)
    return counts


def _by_class(parts: Sequence[Part]) -> list[list[Part]]:
    classes = dict.fromkeys(part.label for part in parts)
    return [[part for part in parts if part.label == label] for label in classes]
