"""Intersection and union of masks, and the protocol's scores from them. Counts are integers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np


def intersection_and_union(
    prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None
) -> tuple[list[int], list[int]]:
    """Counts the pixels of two masks: intersection and union, each [background, foreground].

    Args:
        prediction, truth: (H, W), foreground where they are not 0.
        ignore: (H, W); pixels where it is set are left out of both.

    """
    valid = np.ones(truth.shape, bool) if ignore is None else ignore == 0
    predicted, true = prediction.astype(bool), truth.astype(bool)
    agree, differ = valid & (predicted == true), valid & (predicted != true)
    inter = [int((agree & ~true).sum()), int((agree & true).sum())]
    return inter, [count + int(differ.sum()) for count in inter]


def boundary_counts(
    prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None,
    share: float = 0.02
) -> tuple[int, int]:
    """Counts (intersection, union) of Boundary IoU (Cheng et al., CVPR 2021, section 4).

    Of each mask only the pixels near its contour count; the image's edge is a contour, too.

    Args:
        prediction, truth, ignore: (H, W) as in `intersection_and_union`.
        share: how near, as a share of the image's diagonal; rounded to pixels, at least 1.

    """
    distance = max(1, round(share * float(np.hypot(*truth.shape))))
    valid = np.ones(truth.shape, bool) if ignore is None else ignore == 0
    predicted, true = (_boundary(mask, distance) & valid for mask in (prediction, truth))
    return int((predicted & true).sum()), int((predicted | true).sum())


def _boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Returns what a mask loses when a 3 x 3 square erodes it `distance` times: bool (H, W)."""
    padded = np.pad(mask.astype(bool).astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return (padded > inner)[1:-1, 1:-1]


def iou_percent(inter: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Returns intersection / max(union, 1) in percent, of counts of any shape."""
    return 100 * inter / np.maximum(union, 1)


@dataclass
class Scores:
    """Adds up counts per class.

    IoU_c = I_c / max(U_c, 1); mIoU is its mean over the fold's classes, in percent.
    """

    class_ids: Sequence[int]
    inter: dict[int, np.ndarray] = field(default_factory=dict)  # class id -> [bg, fg]
    union: dict[int, np.ndarray] = field(default_factory=dict)
    episodes: int = 0

    def add(self, class_id: int, inter: Sequence[int], union: Sequence[int]) -> None:
        """Adds an episode's counts, each [background, foreground]."""
        self.episodes += 1
        self.inter[class_id] = self.inter.get(class_id, np.zeros(2, np.int64)) + inter
        self.union[class_id] = self.union.get(class_id, np.zeros(2, np.int64)) + union

    def per_class(self) -> dict[int, float]:
        """Foreground IoU of each class in percent; a class that was never drawn counts as 0."""
        zero, ids = np.zeros(2, np.int64), self.class_ids
        counts = {c: (self.inter.get(c, zero)[1], self.union.get(c, zero)[1]) for c in ids}
        return {c: float(iou_percent(*pair)) for c, pair in counts.items()}

    def miou(self) -> float:
        """Mean of the classes' IoU, in percent."""
        return float(np.mean(list(self.per_class().values())))

    def running_miou(self) -> float:
        """The same over the classes drawn so far."""
        return float(np.mean([iou for c, iou in self.per_class().items() if c in self.union]))

    def fb_iou(self) -> float:
        """Mean of background and foreground IoU over all classes' sums, in percent."""
        inter, union = (sum(part.values(), np.zeros(2)) for part in (self.inter, self.union))
        return float(np.mean(iou_percent(inter, union)))


def bootstrap_samples(
    episode_classes: Sequence[int], class_ids: Sequence[int], inter: np.ndarray, union: np.ndarray,
    resamples: int = 1000
) -> np.ndarray:
    """Resamples the episodes within each class, with replacement (seed 0).

    Args:
        episode_classes: class id of each episode.
        class_ids: of the fold; classes that were never drawn count as 0, as in the mIoU.
        inter, union: foreground counts (episodes,).
        resamples: number of lists.

    Returns:
        The mIoU of each list in percent: (resamples,).

    """
    generator, classes = np.random.default_rng(0), np.array(episode_classes)
    totals = np.zeros(resamples)
    for class_id in class_ids:
        episodes = np.flatnonzero(classes == class_id)
        if count := len(episodes):
            chosen = episodes[generator.integers(count, size=(resamples, count))]
            totals += iou_percent(inter[chosen].sum(1), union[chosen].sum(1))
    return totals / len(class_ids)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of bootstrap samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
