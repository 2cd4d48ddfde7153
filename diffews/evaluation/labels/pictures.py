"""Labels that are pictures: palette/<name>.png as PASCAL VOC's, cutouts/<name>.png with alpha."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from diffews.evaluation.labels.picture import Add, Objects, Picture
from diffews.images.photos import open_photo
from diffews.runtime.files import write_atomic

PALETTE, CUTOUTS = "palette", "cutouts"


@contextmanager
def write_palette(out: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Writes out/palette/<name>.png: indices 0 none, 1, 2, ..., in VOC's colours."""
    def add(picture: Picture, objects: Objects) -> None:
        image = Image.fromarray(paint(objects, *picture.size), "L")
        image.putpalette(voc_palette())
        write_atomic(out / PALETTE / f"{picture.name}.png", _png(image))

    yield add


@contextmanager
def write_cutout(out: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Writes out/cutouts/<name>.png: the photo's pixels where something is, else transparent."""
    def add(picture: Picture, objects: Objects) -> None:
        rgb = np.asarray(open_photo(picture.photo)[0])
        alpha = (paint(objects, *picture.size)[..., None] > 0) * np.uint8(255)
        image = Image.fromarray(np.concatenate([rgb * (alpha > 0), alpha], 2))
        write_atomic(out / CUTOUTS / f"{picture.name}.png", _png(image))

    yield add


def paint(objects: Objects, height: int, width: int) -> np.ndarray:
    """Puts objects back into a label map, uint8 (height, width)."""
    labels = np.zeros((height, width), np.uint8)
    for parts in objects:
        for part in parts:
            rows, columns = part.mask.shape
            box = labels[part.top : part.top + rows, part.left : part.left + columns]
            box[part.mask] = part.label
    return labels


def voc_palette() -> list[int]:
    """PASCAL VOC's 256 colours, red, green and blue in turn.

    The bits of an index are dealt to the three colours in turn, the lowest first, and each takes
    its own from the top bit down.
    """
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= (((np.arange(256) >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours.ravel().tolist()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
