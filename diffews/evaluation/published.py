"""Published scores (mIoU in percent), to stand beside ours. None was measured by this code."""

from dataclasses import dataclass

PAPER = "DiffewS paper (arXiv 2410.02369)"
TABLE_1 = f"{PAPER}, table 1"
SANSA = "quoted for DiffewS by SANSA (arXiv 2505.21795)"
PROMPTED = "SANSA (arXiv 2505.21795), 1-shot, by what is shown of the support"
IMAGE_SIZE = 512  # of all of them, in pixels
SETTINGS = ("all", "strict", "in-context")
FoldScores = tuple[tuple[float, ...], float]  # of each fold, if printed, and the mean as printed


@dataclass(frozen=True)
class Published:
    """A row of a published table."""

    method: str
    benchmark: str
    setting: str  # "strict": novel classes were never seen; "in-context": they were, in training
    source: str
    scores: dict[int, FoldScores]  # by the number of shots
    note: str = ""


IFSL = "iFSL (CVPR 2022, arXiv 2203.15712)"
EMAT = "EMAT (GCPR 2025, arXiv 2507.23642), DINOv2-S"
FS_CS = [  # COCO-20i, one shot: method, N, exact ratio and mIoU, both means of four folds, source
    ("PANet", 1, 66.7, 25.2, IFSL), ("PFENet", 1, 71.4, 31.9, IFSL),
    ("HSNet", 1, 77.0, 34.3, IFSL), ("ASNet", 1, 78.6, 35.8, IFSL),
    ("CST*", 2, 78.70, 51.47, EMAT), ("EMAT", 2, 80.07, 52.81, EMAT)]
TABLE_2 = {  # method -> the folds and their mean as printed, of one shot and of five
    "HSNet": ((37.2, 44.1, 42.4, 41.3, 41.2), (45.9, 53.0, 51.8, 47.1, 49.5)),
    "CyCTR": ((38.9, 43.0, 39.6, 39.8, 40.3), (41.1, 48.9, 45.2, 47.0, 45.6)),
    "VAT": ((39.0, 43.8, 42.6, 39.7, 41.3), (44.1, 51.1, 50.2, 46.1, 47.9)),
    "BAM": ((43.4, 50.6, 47.5, 43.4, 46.2), (49.3, 54.2, 51.6, 49.6, 51.2)),
    "DCAMA": ((49.5, 52.7, 52.8, 48.7, 50.9), (55.4, 60.3, 59.9, 57.5, 58.3)),
    "HDMNet": ((43.8, 55.3, 51.6, 49.4, 50.0), (50.6, 61.6, 55.7, 56.0, 56.0)),
    "DiffewS": ((47.7, 56.4, 51.9, 48.7, 51.2), (52.0, 63.0, 54.5, 54.3, 56.0)),
    "DiffewS-n": ((47.1, 56.6, 53.8, 48.3, 52.2), (57.3, 66.5, 60.3, 58.8, 60.7))}
NOTES = {
    "DiffewS-n": "the printed 1-shot mean 52.2 does not follow from its folds, whose mean is 51.45"}
MEANS = [  # method, benchmark, setting, source, means of one shot and, if printed, of five
    ("SegGPT", "coco20i", "in-context", TABLE_1, (56.1, 67.9)),
    ("Matcher", "coco20i", "in-context", TABLE_1, (52.7, 60.7)),
    ("DiffewS", "coco20i", "in-context", TABLE_1, (71.3, 72.2)),
    ("SegGPT", "pascal5i", "in-context", TABLE_1, (83.2, 89.8)),
    ("Matcher", "pascal5i", "in-context", TABLE_1, (67.9, 75.6)),
    ("DiffewS", "pascal5i", "in-context", TABLE_1, (88.3, 87.8)),
    ("SegGPT", "lvis92i", "in-context", TABLE_1, (18.6, 25.4)),
    ("Matcher", "lvis92i", "in-context", TABLE_1, (33.0, 40.0)),
    ("DiffewS", "lvis92i", "in-context", TABLE_1, (31.4, 35.4)),
    ("SANSA", "coco20i", "strict", PROMPTED, (60.2,)),
    ("SANSA, prompt=box", "coco20i", "strict", PROMPTED, (54.3,)),
    ("SANSA, prompt=scribble", "coco20i", "strict", PROMPTED, (53.1,)),
    ("SANSA, prompt=point", "coco20i", "strict", PROMPTED, (53.4,)),
    ("DiffewS", "lvis92i", "strict", SANSA, (33.9, 43.7)),
    ("DiffewS", "fss1000", "strict", SANSA, (90.2, 90.6)),
    ("DiffewS", "fss1000", "in-context", SANSA, (87.8, 88.0)),
    ("DiffewS", "pascal_part", "in-context", SANSA, (34.0,)),
    ("DiffewS", "paco_part", "in-context", SANSA, (22.8,))]
PUBLISHED = [
    Published(method, "coco20i", "strict", f"{PAPER}, table 2",
              {1: (one[:4], one[4]), 5: (five[:4], five[4])}, NOTES.get(method, ""))
    for method, (one, five) in TABLE_2.items()]
PUBLISHED += [
    Published(method, benchmark, setting, source,
              {n: ((), mean) for n, mean in zip((1, 5), means, strict=False)})
    for method, benchmark, setting, source, means in MEANS]
