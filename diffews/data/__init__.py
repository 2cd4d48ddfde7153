"""Benchmarks: each gives episodes by name, and decodes them. Knows no model; torch comes with the first mask."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from diffews.errors import InputError, nearest

if TYPE_CHECKING:
    from diffews.data.episodes import Benchmark, EpisodeDataset

BENCHMARKS = {  # name -> module and class
    "coco20i": "diffews.data.coco20i:Coco20i",
}
FOLDS = {"coco20i": 4}
SPLITS = ("test", "train", "val")
SPLITS_SOURCES = ("auto", "folder", "builtin")


def check_fold(benchmark: str, fold: int) -> None:
    """Raises InputError for a fold that the benchmark does not have."""
    if benchmark in FOLDS and not 0 <= fold < FOLDS[benchmark]:
        raise InputError(f"fold={fold}: {benchmark} has the folds 0 to {FOLDS[benchmark] - 1}")


def load_benchmark(
    name: str,
    root: str | Path,
    fold: int = 0,
    split: str = "test",
    shots: int = 1,
    image_size: int = 512,
    splits: str = "auto",
    episodes: int | None = None,
    drawn_shots: int | None = None,
) -> "EpisodeDataset":
    """Opens a benchmark as a data set of decoded episodes.

    root: folder that holds the benchmark's folder (`COCO2014/` for coco20i); only decoding needs the pictures.
    split: "test" gives the published test episodes in order, of the fold's novel classes; "train" the training classes
        on the training pictures, and "val" the training classes on the test pictures, drawn in the same way.
    episodes: keep the first N of them.
    drawn_shots: draw the list for so many shots and keep the first `shots` supports of each episode.

    Raises:
        InputError: for a name, fold, split or number of shots that does not exist, or lists that cannot be read.

    """
    from diffews.data.episodes import EpisodeDataset

    if shots < 1:
        raise InputError(f"shots={shots} must be at least 1")
    benchmark = open_benchmark(name, root, fold, split, splits)
    drawn = benchmark.draw(drawn_shots or shots).first_shots(shots)
    if episodes is not None and episodes > len(drawn):
        raise InputError(f"episodes={episodes}: {name} has {len(drawn)} episodes")
    return EpisodeDataset(benchmark, drawn, image_size, episodes)


def open_benchmark(name: str, root: str | Path, fold: int, split: str, splits: str = "auto") -> "Benchmark":
    """Opens a benchmark's classes and image lists; see `load_benchmark`."""
    if name not in BENCHMARKS:
        raise InputError(f"benchmark={name!r} is not one of {', '.join(BENCHMARKS)}{nearest(name, BENCHMARKS)}")
    check_fold(name, fold)
    if split not in SPLITS:
        raise InputError(f"split={split!r} is not one of {', '.join(SPLITS)}{nearest(split, SPLITS)}")
    module, _, cls = BENCHMARKS[name].partition(":")
    return getattr(importlib.import_module(module), cls)(Path(root), fold, split, splits)
