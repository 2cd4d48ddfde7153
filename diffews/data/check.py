"""Tests an existing data folder: files, sizes, values, and what the published protocol counts."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

from diffews.data.episodes import Benchmark, Sample
from diffews.data.prepare import run_all
from diffews.errors import InputError

SHOWN = 5  # faults of a kind that are printed


@dataclass
class FolderReport:
    """What was found in a data folder."""

    lines: list[str] = field(default_factory=list)
    good: bool = True

    def fault(self, text: str) -> None:
        """Adds a line that makes the verdict bad."""
        self.lines.append(text)
        self.good = False


def check_folder(benchmark: Benchmark, split: str, workers: int) -> FolderReport:
    """Decodes every picture and mask of a split's lists; a class must have a pixel in each of its masks."""
    report = FolderReport()
    pairs = [(s, c) for c, samples in benchmark.images.items() for s in dict.fromkeys(samples)]
    samples = dict.fromkeys(sample for sample, _ in pairs)
    missing = dict.fromkeys(s for s in samples if not all(file.is_file() for file in benchmark.files(s)))
    report.lines.append(f"{split}: {len(benchmark.class_ids)} classes, {len(samples)} pictures, {len(pairs)} masks")
    for sample in list(missing)[:SHOWN]:
        absent = next(file for file in benchmark.files(sample) if not file.is_file())
        report.lines.append(f"  missing: {absent}")
    if missing:
        report.fault(f"{split}: {len(missing)} of {len(samples)} pictures or their masks are missing")
    present = [pair for pair in pairs if pair[0] not in missing]
    found = run_all(functools.partial(_fault_of, benchmark), present, workers, f"check {split}")
    _count(report, split, (fault for fault in found if fault))
    return report


def compare_with_published(split: str, benchmark: Benchmark, published: Benchmark) -> str:
    """Says whether a folder's lists are the published ones, and by how many (picture, class) pairs they differ."""
    here, there = ([(s.name, c) for c, samples in b.images.items() for s in samples] for b in (benchmark, published))
    line = f"{split}: {len(here)} (picture, class) pairs are listed here, {len(there)} in the published lists"
    if here == there:
        return f"{line}: the same, in the same order"
    return f"{line}: figures on these lists cannot stand beside published ones"


def _fault_of(benchmark: Benchmark, pair: tuple[Sample, int]) -> str:
    sample, class_id = pair
    try:
        picture = benchmark.decode(sample, class_id)
    except InputError as error:
        return str(error)
    if picture.mask.shape != picture.image.size[::-1]:
        return f"{benchmark.files(sample)[-1]}: the mask is of another size than its picture"
    if not picture.mask.any():
        return f"{benchmark.files(sample)[-1]}: no pixel of class {class_id} ({benchmark.class_names[class_id]})"
    return ""


def _count(report: FolderReport, split: str, faults: Iterable[str]) -> None:
    distinct = list(dict.fromkeys(faults))
    report.lines += [f"  {fault}" for fault in distinct[:SHOWN]]
    if distinct:
        report.fault(f"{split}: {len(distinct)} faults")
