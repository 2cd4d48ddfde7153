"""Scores at a picture's own size, label maps, and the forms of both. Without torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffews.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray
OUTPUT_TYPES = ("np", "pt", "pil")


class LabelMaps(list[np.ndarray]):
    """Label maps; `presence` holds a list for each query, one float a class, or is None."""

    presence: list[list[float]] | None = None

    def add(self, labels: list[np.ndarray], presence: list["Tensor | None"]) -> None:
        """Adds B label maps, and the presence of each class [B] if it is known."""
        self += labels
        known = [of_class.tolist() for of_class in presence if of_class is not None]
        if known:
            self.presence = [*(self.presence or []), *map(list, zip(*known, strict=True))]


def at_size(
    rgb: Array, shape: tuple[int, int], threshold: float, rule: str
) -> tuple[Array, Array]:
    """Resizes scores [3, S, S] to (height, width) -> mask, bool, and score, both (height, width).

    What `Segmentation.at_sizes` does in torch: the limit is that before the resize; see
    `diffews.images.masks.scores_and_limit`.
    """
    peak = {"reference": rgb, "paper": rgb.mean(0), "absolute": np.ones(1, np.float32)}[rule].max()
    score = resize_bilinear(rgb, shape).mean(0)
    return score > threshold * peak, score


def resize_bilinear(rgb: Array, shape: tuple[int, int]) -> Array:
    """Resizes float32 [3, h, w] to [3, height, width], as torch does without antialiasing."""
    for axis, size in zip((1, 2), shape, strict=True):
        length = rgb.shape[axis]
        if size == length:
            continue

        # a pixel lies between two others, nearer to one; the first and last stand at the edge
        step = np.float32(length) / np.float32(size)
        place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
        before = np.floor(place.clip(0, length - 1)).astype(int)
        share = (place.clip(0, length - 1) - before).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        after = np.minimum(before + 1, length - 1)
        rgb = rgb.take(before, axis) * (1 - share) + rgb.take(after, axis) * share
    return rgb


# ---- the forms that people ask for ----


def check_output_type(kind: str, known: Sequence[str] = OUTPUT_TYPES) -> None:
    """Raises InputError for a form that is none of the known ones."""
    if kind not in known:
        raise InputError(f"output_type={kind!r} is not one of {', '.join(known)}"
                         f"{nearest(str(kind), known)}")


def in_form(masks: list[Array], scores: list[Array], kind: str) -> tuple[list[Any], list[Any]]:
    """Returns masks and scores as arrays ("np"), tensors ("pt") or pictures ("pil").

    Pictures of masks hold 0 and 255 (mode L), those of scores the scores (mode F).
    """
    if kind == "pil":
        pictures = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]
        return pictures, [*map(Image.fromarray, scores)]
    if kind == "pt":
        import torch

        return [*map(torch.from_numpy, masks)], [*map(torch.from_numpy, scores)]
    return masks, scores
