"""YOLO segmentation: labels/<name>.txt, images/<name> and data.yaml."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffews.evaluation.labels.parts import Part, outline
from diffews.evaluation.labels.picture import Add, Objects, Picture
from diffews.runtime.files import write_atomic

LABELS, IMAGES, FILE = "labels", "images", "data.yaml"


@contextmanager
def write_yolo(out: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Writes out/labels/<name>.txt, a polygon a line, links to the photos, and out/data.yaml.

    YOLO looks for the labels of images/<name>.jpg in labels/<name>.txt. A picture without an object
    has an empty file: background. Holes are kept by a seam, see `outline`.
    """
    def add(picture: Picture, objects: Objects) -> None:
        lines = [yolo_line(part, *picture.size) for parts in objects for part in parts]
        write_atomic(out / LABELS / f"{picture.name}.txt", "".join(lines))
        link_photo(picture.photo, out / IMAGES / f"{picture.name}{picture.photo.suffix}")

    yield add
    names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(classes))
    write_atomic(out / FILE, "# val: should name other pictures, to be more than a look at what\n"
                 f"# was learned\ntrain: {IMAGES}\nval: {IMAGES}\nnames:\n{names}")


def yolo_line(part: Part, height: int, width: int) -> str:
    """Says a part as class and corners: 0 0.25 0.5 0.31 0.5 ..., shares of width and height."""
    # readers cut to whole pixels or round; a quarter of a pixel inside, both find the same one
    shares = [f"{(x + 0.25) / width:.7f} {(y + 0.25) / height:.7f}" for x, y in outline(part)]
    return f"{part.label - 1} {' '.join(shares)}\n"


def link_photo(photo: Path, place: Path) -> None:
    """Puts a link to the photo where YOLO looks for it; a file that is there stays."""
    if place.exists() and not place.is_symlink():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(photo.resolve(), place.parent.resolve())  # the photo may be this link
    place.unlink(missing_ok=True)
    place.symlink_to(target)
