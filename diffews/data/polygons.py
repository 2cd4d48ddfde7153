"""Masks from COCO-style segmentations, by pycocotools."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from diffews.data.episodes import DecodedSample
from diffews.errors import InputError, refuse

FARTHEST = 1e6  # pixels; beyond it, or not finite, pycocotools runs out of memory or worse
LONGEST = 1e7  # pixels of a polygon's outline, of which pycocotools keeps some 100 bytes each


def segmentation_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Fills polygons or a run-length code -> uint8 {0, 1} (height, width).

    segmentation: [[x, y, x, y, ...], ...] in pixels, or {"size": [height, width], "counts"} with
        counts as a list, or compressed as COCO does.
    where: what to name in an error: file and annotation.
    """
    check_segmentation(segmentation, height, width, where)
    if isinstance(segmentation, list):
        polygons = coco_mask.frPyObjects(segmentation, height, width)
        return coco_mask.decode(coco_mask.merge(polygons))
    code = {"size": [height, width], "counts": segmentation["counts"]}
    is_list = isinstance(segmentation["counts"], list)
    return coco_mask.decode(coco_mask.frPyObjects(code, height, width) if is_list else code)


def check_segmentation(segmentation: Any, height: int, width: int, where: str) -> float:
    """Raises InputError unless pycocotools can fill it; see `segmentation_mask`.

    Returns the area in pixels, roughly: 0 for what marks nothing.
    """
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size not in ([height, width], (height, width)) or "counts" not in segmentation:
            raise InputError(f"{where}: the run-length code is not of size {height} x {width}")
        with refuse(f"{where}: the run-length code's counts do not fill {height} x {width} pixels",
                    TypeError, ValueError, OverflowError):
            runs = _run_lengths(segmentation["counts"])

            # pycocotools trusts them: too few leave pixels as memory was, too many write beyond
            if not ((runs >= 0) & (runs <= height * width)).all():
                raise ValueError(f"a run of {runs.min() if runs.min() < 0 else runs.max()} pixels")
            if (total := int(runs.sum())) != height * width:
                raise ValueError(f"they fill {total}")
        return float(runs[1::2].sum())

    if not isinstance(segmentation, list) or not segmentation:
        raise InputError(f"{where}: no polygon and no run-length code")
    area = 0.0
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise InputError(f"{where}: a polygon needs at least three points, x and y in turn")
        with refuse(f"{where}: a polygon holds what is no coordinate", ValueError):
            points = np.array(polygon)  # an error for lists of several lengths in it
            are_numbers = points.ndim == 1 and points.dtype.kind in "iuf"
            if not (are_numbers and (np.abs(points) < FARTHEST).all()):
                raise ValueError(f"{points.ravel()[:6].tolist()}")
            corners = points.reshape(-1, 2)
            if np.abs(np.diff(corners, axis=0)).max(1).sum() > LONGEST:  # memory goes with it
                raise ValueError(f"its outline is longer than {LONGEST:g} pixels")
        x, y = np.clip(corners, 0, (width, height)).T
        area += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return area


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


def _run_lengths(counts: Any) -> np.ndarray:
    """Reads COCO's run lengths, a list or compressed -> int64 (runs,), unchecked.

    A character holds 5 bits of a number and, in bit 5, whether more of them follow; from the third
    number on they are differences to the number before the last.
    """
    if isinstance(counts, list):
        runs = np.array(counts)
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise ValueError("they are no list of whole numbers")
        return runs.astype(np.int64)

    # where each number ends; six characters hold more than any picture has pixels
    if not isinstance(counts, str | bytes):
        raise ValueError(f"they are {type(counts).__name__}, neither a list nor a code")
    code = counts.encode() if isinstance(counts, str) else counts
    bits = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if not len(ends) or ends[-1] != len(bits) - 1 or not ((bits >= 0) & (bits < 64)).all():
        raise ValueError("they are cut off, or hold a character of no code")
    if lengths.max() > 6:
        raise ValueError("a number takes more than six characters")

    # the numbers, the last character of which carries the sign
    starts = ends - lengths + 1
    places = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << places, starts)
    runs -= np.where(bits[ends] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
