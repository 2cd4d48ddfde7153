"""Masks from COCO-style segmentations, by pycocotools."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from diffews.data.episodes import Picture
from diffews.errors import InputError

FARTHEST = 1e6  # pixels; beyond it, or not finite, pycocotools runs out of memory or worse


def segmentation_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Fills polygons [[x, y, x, y, ...], ...] or a run-length code -> uint8 {0, 1} (height, width).

    where: what to name in an error: file and annotation.
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") not in ([height, width], (height, width)) or "counts" not in segmentation:
            raise InputError(f"{where}: the run-length code is not of size {height} x {width}")
        counts = segmentation["counts"]
        try:
            code = coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
            if _run_lengths_sum(code["counts"]) != height * width:  # pycocotools would leave pixels as memory was
                raise ValueError
            return coco_mask.decode(code)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{where}: the run-length code's counts do not fill {height} x {width} pixels") from None
    if not isinstance(segmentation, list) or not segmentation:
        raise InputError(f"{where}: no polygon and no run-length code")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise InputError(f"{where}: a polygon needs at least three points, x and y in turn")
        if not _are_coordinates(polygon):
            raise InputError(f"{where}: a polygon holds what is no coordinate")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))


def union_mask(codes: Iterable[Any], height: int, width: int, where: str) -> np.ndarray:
    """Fills the union of several segmentations; see `segmentation_mask`."""
    mask = np.zeros((height, width), np.uint8)
    for code in codes:
        mask |= segmentation_mask(code, height, width, where)
    return mask


def crop_to_box(image: Image.Image, mask: np.ndarray, box: Sequence[float], where: str) -> Picture:
    """Cuts picture and mask to left, top, right, bottom, truncated to pixels as the reference does."""
    left, top, right, bottom = (int(value) for value in box)
    right, bottom = min(right, image.width), min(bottom, image.height)
    if not (0 <= left < right and 0 <= top < bottom):
        raise InputError(f"{where} holds no pixel of the picture")
    return Picture(image.crop((left, top, right, bottom)), np.ascontiguousarray(mask[top:bottom, left:right]))


def _are_coordinates(polygon: list[Any]) -> bool:
    try:
        numbers = np.array(polygon)
    except ValueError:  # lists of several lengths in it
        return False
    return numbers.ndim == 1 and numbers.dtype.kind in "iuf" and bool((np.abs(numbers) < FARTHEST).all())


def _run_lengths_sum(counts: str | bytes) -> int:
    """Adds up COCO's compressed run lengths: 5 bits a character, bit 5 goes on, from the third on differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        value, shift = value | (bits & 31) << shift, shift + 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return sum(runs)
