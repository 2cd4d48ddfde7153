"""Masks as people give them, and masks as the decoded picture gives them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diffews.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD_RULES = ("reference", "paper", "absolute")
GATE = 0.5  # presence from which a class counts as there, with a trained head


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resizes a mask (H, W) to (size, size), nearest neighbour as in torch; keeps the dtype."""
    nearest = []
    for length in mask.shape:
        # torch's arithmetic, which is in float32
        step = np.float32(length) / np.float32(size)
        place = np.floor(np.arange(size, dtype=np.float32) * step).astype(int)
        nearest.append(np.minimum(place, length - 1))
    return mask[np.ix_(*nearest)]


def shrink_mask(mask: np.ndarray, size: int, name: str) -> np.ndarray:
    """Resizes a support's mask, uint8 {0, 1} (H, W), to (size, size); see `resize_mask`.

    Raises:
        InputError: for a mask that marks nothing, or nothing any more at this size.

    """
    height, width = mask.shape
    if not mask.any():
        raise InputError(f"{name} marks no pixel of {width} x {height}; "
                         "the support's mask says what to look for")
    small = resize_mask(mask, size)
    if not small.any():
        count = np.count_nonzero(mask)
        raise InputError(f"{name}: no pixel left at image_size={size} ({count} at {width} x "
                         f"{height}); cut the support to the object, or give a larger image_size")
    return small


def foreground(grey: np.ndarray, least: int) -> np.ndarray:
    """Foreground of a benchmark's grey mask (H, W) -> uint8 {0, 1}.

    From `least` on, as the loaders of these benchmarks; a mask of {0, 1} or of one bit by its ones.
    """
    is_binary = grey.dtype == bool or grey.max(initial=0) <= 1
    return (grey >= (1 if is_binary else least)).astype(np.uint8)


def binary_mask(mask: np.ndarray, name: str = "mask") -> np.ndarray:
    """Checks a mask (H, W) of bool, {0, 1} or {0, 255} and returns it as uint8 {0, 1}."""
    if mask.ndim != 2:
        raise InputError(f"{name} has shape {mask.shape}; give one channel, (height, width)")
    values = np.unique(mask)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        shown = ", ".join(f"{value:g}" for value in values[:5].astype(float))
        more = ", ..." if len(values) > 5 else ""
        raise InputError(f"{name} holds the values {shown}{more}; give bool, {{0, 1}} or "
                         "{0, 255} (JPEG blurs masks: save them as PNG)")
    return (mask > 0).astype(np.uint8)


def quantize(decoded: "Tensor") -> "Tensor":
    """Decoded RGB -> uint8 of the same shape.

    Clipped to [-1, 1], mapped to [0, 255] and truncated, as the reference does.
    """
    import torch

    return ((decoded.float().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


def scores_and_limit(rgb: "Tensor", threshold: float, rule: str) -> "tuple[Tensor, Tensor]":
    """Scores (the mean over RGB) and, per image, the limit that foreground exceeds.

    Args:
        rgb: [B, 3, H, W] in [0, 1].
        threshold: in [0, 1).
        rule: "reference" = threshold * maximum over the RGB image (released code), "paper" =
            threshold * maximum over the mean image (section 4.4), "absolute" = threshold.

    Returns:
        Scores [B, H, W] in [0, 1], and limits [B].

    """
    import torch

    scores = rgb.mean(1)
    if rule == "absolute":
        return scores, torch.full((len(rgb),), threshold, device=rgb.device)
    peak = {"reference": rgb, "paper": scores}[rule].flatten(1).amax(1)
    return scores, threshold * peak


def check_decoded(finite: Sequence[bool], names: Sequence[str], dtypes: str) -> None:
    """Raises InputError for the first of the queries that are not finite, by its name."""
    for good, name in zip(finite, names, strict=False):
        if not good:
            raise InputError(
                f"{name}: the decoded picture ({dtypes}) holds values that are not finite; "
                "give dtype=fp32, or other weights")


@dataclass(frozen=True)
class Segmentation:
    """What the model says of B queries, at the size (S, S) at which it works.

    Attributes:
        rgb: the decoded target as scores, [B, 3, S, S] in [0, 1].
        finite: whether all that was decoded were numbers, bool [B]; None: it is known that they
            are. What is not finite would be black, see `check`.
        dtypes: in what precision it was computed, in words.
        presence: how sure it is that the class is in the query at all, [B] in [0, 1]; None where
            nobody was asked.
        absent: bool [B], whose masks are empty whatever the scores; None: nobody's.

    """

    rgb: "Tensor"
    finite: "Tensor | None" = None
    dtypes: str = ""
    presence: "Tensor | None" = None
    absent: "Tensor | None" = None

    def check(self, names: Sequence[str]) -> "Segmentation":
        """Raises InputError for a query whose decoded picture holds what is no number.

        Waits for the GPU.
        """
        if self.finite is not None:
            check_decoded(self.finite.tolist(), names, self.dtypes)
        return self

    def gate(self, least: float | None) -> "Segmentation":
        """Empties the masks of queries whose presence is below `least`; None empties none.

        Raises:
            InputError: where nobody was asked for presence.

        """
        if least is None:
            return self
        if self.presence is None:
            raise InputError(
                f"min_presence={least:g} needs weights with a presence head; train one with "
                "`diffews train-presence`, or leave it out")
        return replace(self, absent=self.presence < least)

    def mirrored(self) -> "Segmentation":
        """Returns the scores flipped left to right."""
        return replace(self, rgb=self.rgb.flip(-1))

    def averaged_with(self, other: "Segmentation") -> "Segmentation":
        """Returns the mean of two answers to the same queries; finite where both are."""
        import torch

        flags = [part.finite for part in (self, other) if part.finite is not None]
        finite = torch.stack(flags).all(0) if flags else None
        presence = self.presence
        if presence is not None and other.presence is not None:
            presence = (presence + other.presence) / 2
        return replace(
            self, rgb=(self.rgb + other.rgb) / 2, finite=finite, presence=presence)

    def masks(self, threshold: float, rule: str) -> "Tensor":
        """Thresholds the scores -> bool [B, S, S]; see `scores_and_limit`."""
        scores, limits = self._limits(threshold, rule)
        return scores > limits[:, None, None]

    def at_sizes(
        self, shapes: Sequence[tuple[int, int]], threshold: float, rule: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Resizes each query's scores to its (height, width) -> mask, bool, and score (h, w).

        The limit is that before the resize.
        """
        _, limits = self._limits(threshold, rule)
        scores = [resize_scores(rgb, shape) for rgb, shape in zip(self.rgb, shapes, strict=True)]
        return [((score > limit).cpu().numpy(), score.cpu().numpy())
                for score, limit in zip(scores, limits, strict=True)]

    def _limits(self, threshold: float, rule: str) -> "tuple[Tensor, Tensor]":
        """Scores and limits as `scores_and_limit` gives them; no score exceeds an absent one's."""
        scores, limits = scores_and_limit(self.rgb, threshold, rule)
        if self.absent is not None:
            limits = limits.masked_fill(self.absent, float("inf"))
        return scores, limits


def resize_scores(scores: "Tensor", shape: tuple[int, int]) -> "Tensor":
    """Mean over RGB at another size: [3, H, W] -> [h, w].

    Bilinear, and before the mean, as for the decoded picture.
    """
    import torch

    if shape != tuple(scores.shape[1:]):
        scores = torch.nn.functional.interpolate(scores[None], size=shape, mode="bilinear")[0]
    return scores.mean(0)


def check_presence(least: float | None) -> None:
    """Raises InputError for a least presence outside [0, 1]."""
    if least is not None and not 0 <= least <= 1:
        raise InputError(f"min_presence={least:g} is not in [0, 1]")


def check_threshold(threshold: float, rule: str) -> None:
    """Raises InputError unless 0 <= threshold < 1 and the rule is known."""
    if rule not in THRESHOLD_RULES:
        raise InputError(f"threshold_rule={rule!r} is not one of {', '.join(THRESHOLD_RULES)}")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold={threshold} is not in [0, 1)")


def check_call(
    threshold: float, threshold_rule: str, batch: int, min_presence: float | None = None
) -> None:
    """Raises InputError for a threshold, a rule, a batch or a least presence that cannot be."""
    check_threshold(threshold, threshold_rule)
    check_presence(min_presence)
    if batch < 1:
        raise InputError(f"batch={batch} must be at least 1")
