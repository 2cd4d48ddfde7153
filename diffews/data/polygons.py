"""Masks from COCO-style segmentations, by pycocotools."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from diffews.errors import InputError


def segmentation_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Fills polygons [[x, y, x, y, ...], ...] or a run-length code -> uint8 {0, 1} (height, width).

    where: what to name in an error: file and annotation.
    """
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != [height, width] or "counts" not in segmentation:
            raise InputError(f"{where}: the run-length code is not of size {height} x {width}")
        counted = isinstance(segmentation["counts"], list)
        codes = coco_mask.frPyObjects(segmentation, height, width) if counted else segmentation
        return coco_mask.decode(codes)
    if not isinstance(segmentation, list) or not segmentation:
        raise InputError(f"{where}: no polygon and no run-length code")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise InputError(f"{where}: a polygon needs at least three points, x and y in turn")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
