"""Masks from COCO-style segmentations, by pycocotools."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from diffews.data.episodes import DecodedSample
from diffews.errors import InputError, refuse

FARTHEST = 1e6  # pixels; beyond it, or not finite, pycocotools runs out of memory or worse


def segmentation_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Fills polygons or a run-length code -> uint8 {0, 1} (height, width).

    segmentation: [[x, y, x, y, ...], ...] in pixels, or {"size": [height, width], "counts"} with
        counts as a list, or compressed as COCO does.
    where: what to name in an error: file and annotation.
    """
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size not in ([height, width], (height, width)) or "counts" not in segmentation:
            raise InputError(f"{where}: the run-length code is not of size {height} x {width}")
        with refuse(f"{where}: the run-length code's counts do not fill {height} x {width} pixels",
                    TypeError, ValueError, OverflowError):
            if isinstance(segmentation["counts"], list):
                segmentation = coco_mask.frPyObjects(segmentation, height, width)
            total = _sum_run_lengths(segmentation["counts"])
            if total != height * width:  # pycocotools would leave pixels as memory was
                raise ValueError(f"they fill {total}")
            return coco_mask.decode(segmentation)

    if not isinstance(segmentation, list) or not segmentation:
        raise InputError(f"{where}: no polygon and no run-length code")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise InputError(f"{where}: a polygon needs at least three points, x and y in turn")
        with refuse(f"{where}: a polygon holds what is no coordinate", ValueError):
            points = np.array(polygon)  # an error for lists of several lengths in it
            are_numbers = points.ndim == 1 and points.dtype.kind in "iuf"
            if not (are_numbers and (np.abs(points) < FARTHEST).all()):
                raise ValueError(f"{points.ravel()[:6].tolist()}")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))


def union_mask(codes: Iterable[Any], height: int, width: int, where: str) -> np.ndarray:
    """Fills the union of several segmentations; see `segmentation_mask`."""
    mask = np.zeros((height, width), np.uint8)
    for code in codes:
        mask |= segmentation_mask(code, height, width, where)
    return mask


def crop_object(image: Image.Image, codes: Iterable[Any], box: Sequence[float], where: str,
                box_name: str) -> DecodedSample:
    """Fills the union of segmentations and cuts it and the image to an object's box.

    box: left, top, right, bottom in pixels, which are truncated as the reference does; right and
        bottom may lie beyond the image.
    where, box_name: what to name in an error: file and object, and the box.
    """
    mask = union_mask(codes, image.height, image.width, where)
    left, top, right, bottom = (int(value) for value in box)
    right, bottom = min(right, image.width), min(bottom, image.height)
    if not (0 <= left < right and 0 <= top < bottom):
        raise InputError(f"{where}: {box_name} holds no pixel of the picture")
    return DecodedSample(image.crop((left, top, right, bottom)),
                         np.ascontiguousarray(mask[top:bottom, left:right]))


def _sum_run_lengths(counts: str | bytes) -> int:
    """Adds up COCO's compressed run lengths.

    A character holds 5 bits of a number and, in bit 5, whether more of them follow; from the third
    number on they are differences to the number before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        value, shift = value | (bits & 31) << shift, shift + 5

        # the last character of a number carries its sign
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return sum(runs)
