"""The benchmarks by name. Knows no model; torch comes with the first mask."""

import importlib
import inspect
from pathlib import Path
from typing import Any

from diffews.data.episodes import Benchmark, EpisodeDataset, EpisodeList
from diffews.errors import InputError, nearest

# name -> module, class, number of folds (0: none, any is taken; None: as folds= says)
BENCHMARKS = {
    "coco20i": ("coco20i", "Coco20i", 4),
    "pascal5i": ("pascal5i", "Pascal5i", 4),
    "coco2pascal": ("pascal5i", "CocoToPascal", 4),
    "fss1000": ("fss1000", "Fss1000", 0),
    "lvis92i": ("lvis92i", "Lvis92i", 10),
    "paco_part": ("paco_part", "PacoPart", 4),
    "pascal_part": ("pascal_part", "PascalPart", 4),
    "deepglobe": ("crossdomain", "DeepGlobe", 0),
    "isic": ("crossdomain", "Isic", 0),
    "chest_xray": ("crossdomain", "ChestXray", 0),
    "ade20k": ("ade20k", "Ade20k", 0),
    "coco_json": ("coco_json", "CocoJson", None),
    "folder": ("folder", "FolderBenchmark", None),
    "detectron2": ("detectron2", "Detectron2", None),
}
RASTERIZERS = ("pycocotools", "fillpoly")
SPLITS = ("test", "train", "val")
SPLITS_SOURCES = ("auto", "folder", "builtin")


def check_fold(benchmark: str, fold: int, origin: str = "") -> None:
    """Raises InputError for a fold that the benchmark does not have; origin: who said it."""
    folds = BENCHMARKS[benchmark][2]
    if folds and not 0 <= fold < folds:
        raise InputError(f"fold={fold}{origin}: {benchmark} has the folds 0 to {folds - 1}")


def load_benchmark(
    name: str, root: str | Path, fold: int | None = 0, split: str = "test", shots: int = 1,
    image_size: int = 512, splits: str = "auto", episodes: int | None = None,
    drawn_shots: int | None = None, episodes_file: str | Path | None = None, **options: Any,
) -> EpisodeDataset:
    """Opens a benchmark as a data set of decoded episodes.

    root: folder that holds the benchmark's folder (`COCO2014/` for coco20i); only decoding needs
        the images.
    split: "test" gives the published test episodes in order, of the fold's novel classes; "train"
        the training classes on the training images, and "val" the training classes on the test
        images, drawn in the same way.
    shots: supports of each episode, at least 1.
    image_size: side of the decoded images and masks, in pixels.
    splits: "auto" takes the folder's lists where there are any, "folder" insists on them,
        "builtin" ignores them.
    episodes: keep the first N of them.
    drawn_shots: draw the list for so many shots and keep the first `shots` of each episode.
    episodes_file: take this list, as `EpisodeList.save` wrote it, instead of drawing one.
    options: what the benchmark itself takes, such as annotations= and images= of coco_json.

    Raises:
        InputError: for a name, fold, split or number of shots that does not exist, or lists that
            cannot be read.

    """
    if shots < 1:
        raise InputError(f"shots={shots} must be at least 1")
    given = EpisodeList.load(Path(episodes_file)) if episodes_file else None
    drawn_shots = given.shots if given is not None else drawn_shots or shots
    if drawn_shots < shots:
        raise InputError(f"shots={shots}, but the episodes are drawn for {drawn_shots}")

    benchmark = open_benchmark(name, root, fold, split, splits, drawn_shots, **options)
    if given is not None:
        check_listed(given, benchmark, f"{episodes_file}")
    listed = (benchmark.draw(drawn_shots) if given is None else given).first_shots(shots)
    if episodes is not None and episodes > len(listed):
        raise InputError(f"episodes={episodes}: {name} has {len(listed)} episodes")
    return EpisodeDataset(benchmark, listed, image_size, episodes)


def check_listed(episodes: EpisodeList, benchmark: Benchmark, where: str) -> None:
    """Raises InputError for an episode whose class or images the benchmark does not have."""
    known = {class_id: set(samples) for class_id, samples in benchmark.images.items()}
    for episode in episodes:
        c = episode.class_id
        if c not in known:
            raise InputError(f"{where}: class {c} is not among those of fold {benchmark.fold}")
        for sample in (episode.query, *episode.supports):
            if sample not in known[c]:
                place = "" if sample.object_id is None else f", object {sample.object_id}"
                raise InputError(
                    f"{where}: {sample.name}{place} is not among the pictures of class {c}")


def open_benchmark(name: str, root: str | Path, fold: int | None, split: str, splits: str = "auto",
                   shots: int = 1, **options: Any) -> Benchmark:
    """Opens a benchmark's classes and image lists, without episodes; see `load_benchmark`.

    fold: None holds no class out of training.
    shots: how many supports an episode will need: some benchmarks leave out smaller classes.
    """
    cls = benchmark_class(name)
    if fold is not None:
        check_fold(name, fold)
        fold = 0 if BENCHMARKS[name][2] == 0 else fold
    elif split == "test":
        raise InputError("fold= is missing; test episodes are of the classes that a fold holds out")
    if split not in SPLITS:
        raise InputError(
            f"split={split!r} is not one of {', '.join(SPLITS)}{nearest(split, SPLITS)}")

    if splits not in SPLITS_SOURCES:
        raise InputError(f"splits={splits!r} is not one of {', '.join(SPLITS_SOURCES)}"
                         f"{nearest(splits, SPLITS_SOURCES)}")
    if splits == "builtin" and not cls.builtin_lists:
        raise InputError(f"splits=builtin: benchmark={name} has no lists that are built in")

    given = {key: value for key, value in options.items() if value not in (None, "", [])}
    foreign = sorted(given.keys() - option_names(name))
    if foreign:
        raise InputError(f"{foreign[0]}= is no key of benchmark={name}")
    return cls(Path(root), fold, split, splits, shots, **given)


def option_names(name: str) -> set[str]:
    """Returns the keys that only some benchmarks take, such as annotations=, and this one does."""
    return set(inspect.signature(benchmark_class(name).read_lists).parameters) - {"self"}


def benchmark_class(name: str) -> type[Benchmark]:
    """Imports a benchmark's class; an unknown name is an InputError."""
    if name not in BENCHMARKS:
        raise InputError(f"benchmark={name!r} is not one of {', '.join(BENCHMARKS)}"
                         f"{nearest(name, BENCHMARKS)}")
    module, cls, _ = BENCHMARKS[name]
    return getattr(importlib.import_module(f"diffews.data.benchmarks.{module}"), cls)
