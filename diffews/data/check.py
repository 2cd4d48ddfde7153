"""Tests an existing data folder: files, sizes, values, and what the published protocol counts."""

import functools

from diffews.data.episodes import Benchmark, Sample, decode_checked
from diffews.data.prepare import run_all
from diffews.errors import InputError

SHOWN = 5  # faults of a kind that are printed


def check_folder(benchmark: Benchmark, split: str, workers: int) -> tuple[list[str], bool]:
    """Decodes every image and mask of a split's lists.

    Returns lines that say what was found, and whether all is well: every file is there and can be
    decoded, every mask has its image's size and a pixel of the class that it is listed for, and
    test episodes can be drawn.
    """
    pairs = [(s, c) for c, samples in benchmark.images.items() for s in dict.fromkeys(samples)]
    samples = dict.fromkeys(sample for sample, _ in pairs)
    lines = [f"{split}: {len(benchmark.class_ids)} classes, {len(samples)} pictures, "
             f"{len(pairs)} masks"]

    # a sample is named once, by the first of its files that is not there
    missing = {sample: file for sample in samples for file in reversed(benchmark.files(sample))
               if not file.is_file()}
    lines += [f"  missing: {file}" for file in list(missing.values())[:SHOWN]]
    if missing:
        lines.append(
            f"{split}: {len(missing)} of {len(samples)} pictures or their masks are missing")

    present = [pair for pair in pairs if pair[0] not in missing]
    found = run_all(functools.partial(find_fault, benchmark), present, workers, f"check {split}")
    faults = list(dict.fromkeys(fault for fault in found if fault))
    try:
        if split == "test" and not benchmark.builtin_lists:
            benchmark.draw(benchmark.shots)
    except InputError as error:  # classes of too few pictures
        faults.insert(0, str(error))
    lines += [f"  {fault}" for fault in faults[:SHOWN]]
    if faults:
        lines.append(f"{split}: {len(faults)} faults")
    return lines, not missing and not faults


def find_fault(benchmark: Benchmark, pair: tuple[Sample, int]) -> str:
    """Decodes a sample and its mask of a class; returns what is wrong, or an empty text."""
    sample, class_id = pair
    try:
        decoded = decode_checked(benchmark, sample, class_id)
    except InputError as error:
        return str(error)
    name = benchmark.class_names[class_id]
    fault = f"{benchmark.files(sample)[-1]}: no pixel of class {class_id} ({name})"
    return "" if decoded.mask.any() else fault


def compare_with_published(split: str, benchmark: Benchmark, published: Benchmark) -> str:
    """Says whether a folder's lists are the published ones, and by how many pairs they differ."""
    here, there = ([(s.name, c) for c, samples in b.images.items() for s in samples]
                   for b in (benchmark, published))
    same = ("the same, in the same order" if here == there
            else "figures on these lists cannot stand beside published ones")
    return (f"{split}: {len(here)} (picture, class) pairs are listed here, {len(there)} in the "
            f"published lists: {same}")
