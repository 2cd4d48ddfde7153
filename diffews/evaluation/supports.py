"""The supports that `diffews segment` is given: pictures, and what marks the object in them."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffews.errors import InputError
from diffews.images.drawn_masks import Pick
from diffews.images.masks import shrink_mask
from diffews.images.photos import open_photo, open_photo_mask
from diffews.images.weak import DEFAULT_WEAK, Box, Points, Scribble, read_numbers, widen

if TYPE_CHECKING:
    from diffews.cli.settings import SegmentConfig

MARKS = ("mask", "box", "point", "scribble")  # the keys of which one says where the object is


def count_marks(config: "SegmentConfig") -> int:
    """Returns how many objects are marked, by whichever key.

    Raises:
        InputError: for two keys that mark the same objects, or numbers that are none.

    """
    given = [name for name in MARKS if getattr(config, name)]
    if len(given) > 1:
        keys = " and ".join(f"{name}=" for name in given)
        raise InputError(f"{keys} are given; one of them says where the object is")
    if config.weak != DEFAULT_WEAK and not set(given) & {"box", "point", "scribble"}:
        raise InputError(f"weak={config.weak} makes a mask of box=, point= or scribble=, and none "
                         "of them is given")
    if config.box or config.point:
        return len(read_numbers(getattr(config, given[0]), given[0]))
    return len(config.mask) + len(config.scribble)


def open_supports(config: "SegmentConfig") -> tuple[list[Image.Image], list[Any]]:
    """Decodes the supports -> RGB upright, and what marks the object in each.

    Raises:
        InputError: for a picture that cannot be decoded, or a mask, box, point or scribble that
            does not fit it, or marks nothing at the size that the model works at.

    """
    pictures, marks = [], []
    for place, file in enumerate(config.support):
        picture, turned = open_photo(file)
        mark, drawn, name = _open_mark(config, place, picture, turned)
        if config.image_size is not None:
            shrink_mask(drawn, config.image_size, name)
        pictures.append(picture)
        marks.append(mark)
    return pictures, marks


def _open_mark(
    config: "SegmentConfig", place: int, picture: Image.Image, turned: int
) -> tuple[Any, np.ndarray, str]:
    """What marks the object in a support: as the pipeline takes it, as drawn, and its name."""
    shape = (picture.height, picture.width)
    if config.box:
        box = Box(read_numbers(config.box, "box")[place], "box=")
        return box, box.draw(shape), box.name
    if config.point:
        numbers = read_numbers(config.point, "point")[place]
        pairs = [numbers[first : first + 2] for first in range(0, len(numbers), 2)]
        points = Points(tuple(pairs), "point=")
        return points, points.draw(shape), points.name

    # a mask, or strokes, in a file; uint8 (H, W) of {0, 1}, of the support's size
    key = "scribble" if config.scribble else "mask"
    file = getattr(config, key)[place]
    name, pick = f"{key}={file}", Pick.of(config.mask_value, config.mask_colour)
    mask, notes = open_photo_mask(file, picture.size, turned, name, pick)
    for note in notes:
        print(f"diffews: {name} {note}", file=sys.stderr)
    if key == "mask":
        return mask, mask, name
    return Scribble(mask, name), widen(mask), name
