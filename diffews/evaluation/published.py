"""Published scores (mIoU in percent), to stand beside ours. None was measured by this code."""

from dataclasses import dataclass

PAPER = "DiffewS paper (arXiv 2410.02369)"
SANSA = "quoted for DiffewS by SANSA (arXiv 2505.21795)"
SETTINGS = ("all", "strict", "in-context")
FoldScores = tuple[tuple[float, ...], float]  # of each fold, if printed, and the mean as printed


@dataclass(frozen=True)
class Published:
    """A row of a published table."""

    method: str
    benchmark: str
    setting: str  # "strict": novel classes were never seen; "in-context": they were, in training
    scores: dict[int, FoldScores]  # by the number of shots
    source: str
    note: str = ""


def _strict(
    method: str, one: tuple[float, ...], five: tuple[float, ...], note: str = ""
) -> Published:
    """A row of table 2: four folds and their mean, of one shot and of five."""
    scores = {1: (one[:4], one[4]), 5: (five[:4], five[4])}
    return Published(method, "coco20i", "strict", scores, f"{PAPER}, table 2", note)


def _in_context(
    method: str, benchmark: str, one: float, few: float | None = None,
    source: str = f"{PAPER}, table 1"
) -> Published:
    """A row of table 1, or of another source: means alone, of one shot and of five."""
    scores: dict[int, FoldScores] = {n: ((), x) for n, x in ((1, one), (5, few)) if x is not None}
    return Published(method, benchmark, "in-context", scores, source)


PUBLISHED = [
    _strict("HSNet", (37.2, 44.1, 42.4, 41.3, 41.2), (45.9, 53.0, 51.8, 47.1, 49.5)),
    _strict("CyCTR", (38.9, 43.0, 39.6, 39.8, 40.3), (41.1, 48.9, 45.2, 47.0, 45.6)),
    _strict("VAT", (39.0, 43.8, 42.6, 39.7, 41.3), (44.1, 51.1, 50.2, 46.1, 47.9)),
    _strict("BAM", (43.4, 50.6, 47.5, 43.4, 46.2), (49.3, 54.2, 51.6, 49.6, 51.2)),
    _strict("DCAMA", (49.5, 52.7, 52.8, 48.7, 50.9), (55.4, 60.3, 59.9, 57.5, 58.3)),
    _strict("HDMNet", (43.8, 55.3, 51.6, 49.4, 50.0), (50.6, 61.6, 55.7, 56.0, 56.0)),
    _strict("DiffewS", (47.7, 56.4, 51.9, 48.7, 51.2), (52.0, 63.0, 54.5, 54.3, 56.0)),
    _strict(
        "DiffewS-n", (47.1, 56.6, 53.8, 48.3, 52.2), (57.3, 66.5, 60.3, 58.8, 60.7),
        "the printed 1-shot mean 52.2 does not follow from its folds, whose mean is 51.45"),
    _in_context("SegGPT", "coco20i", 56.1, 67.9),
    _in_context("Matcher", "coco20i", 52.7, 60.7),
    _in_context("DiffewS", "coco20i", 71.3, 72.2),
    _in_context("SegGPT", "pascal5i", 83.2, 89.8),
    _in_context("Matcher", "pascal5i", 67.9, 75.6),
    _in_context("DiffewS", "pascal5i", 88.3, 87.8),
    _in_context("SegGPT", "lvis92i", 18.6, 25.4),
    _in_context("Matcher", "lvis92i", 33.0, 40.0),
    _in_context("DiffewS", "lvis92i", 31.4, 35.4),
    Published("DiffewS", "lvis92i", "strict", {1: ((), 33.9), 5: ((), 43.7)}, SANSA),
    Published("DiffewS", "fss1000", "strict", {1: ((), 90.2), 5: ((), 90.6)}, SANSA),
    _in_context("DiffewS", "fss1000", 87.8, 88.0, SANSA),
    _in_context("DiffewS", "pascal_part", 34.0, source=SANSA),
    _in_context("DiffewS", "paco_part", 22.8, source=SANSA),
]
