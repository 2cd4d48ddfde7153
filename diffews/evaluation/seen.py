"""Whether novel classes are novel: which of them the weights were trained on."""

from typing import TYPE_CHECKING, Any

from diffews.data.episodes import EpisodeDataset
from diffews.data.registry import BENCHMARKS
from diffews.errors import refuse
from diffews.models.find import RECORD, WeightDir

if TYPE_CHECKING:
    from diffews.cli.settings import BenchmarkKeys

PARTITION = {"coco2pascal": "coco20i"}  # whose folds hold out the same classes as another's
ALL_CLASSES = ("ade20k",)  # has no folds, trains on what it tests


def seen_classes(
    source: WeightDir, config: "BenchmarkKeys", dataset: EpisodeDataset
) -> list[str] | None:
    """Returns the names of the data set's novel classes that weights were trained on.

    Args:
        source: the weights, with what training recorded of them.
        config: the benchmark's keys of this run.
        dataset: the episodes.

    Returns:
        The names, none where all are novel; None where the record does not say.

    Raises:
        InputError: for a record that no training wrote.

    """
    with refuse(f"{source.path / RECORD} is no record of a training", TypeError, ValueError,
                AttributeError, ArithmeticError, cure="remove it, or take it from its weights"):
        found = _seen(source.record, config, dataset)

        # of a second stage also what the weights that it started from were trained on
        record = source.record
        while found is not None and "init" in record:
            record = dict(record["init"])
            before = _seen(record, config, dataset)
            known = {*found, *(before or ())}
            names = dataset.class_names.values()
            found = None if before is None else [name for name in names if name in known]
        return found


def _seen(
    record: dict[str, Any], config: "BenchmarkKeys", dataset: EpisodeDataset
) -> list[str] | None:
    trained = record.get("config")
    if trained is None or "benchmark" not in record:
        return None
    novel, benchmark = list(dataset.class_names.values()), config.benchmark

    # weights of a mix were trained on whole benchmarks; of another benchmark nothing is known
    mix = [part.partition(":")[0] for part in trained.get("mix") or ()]
    ours, theirs = (PARTITION.get(name, name) for name in (benchmark, str(record["benchmark"])))
    if mix:
        return novel if ours in mix else None
    if ours != theirs:
        return None

    # folds of a benchmark hold out different classes, or there are no folds at all
    folds = BENCHMARKS[benchmark][2]
    if folds == 0:
        return novel if benchmark in ALL_CLASSES else []
    if folds:
        return [] if record.get("fold") == dataset.fold else novel

    # own data: named classes, or every so many of the list, if it is the same list
    same_data = all(trained.get(key) == getattr(config, key)
                    for key in ("data", "annotations", "dataset"))
    if trained.get("novel"):
        return [name for name in novel if name not in trained["novel"]]
    if record.get("fold") is None or not same_data:
        return novel if same_data else None
    every = dataset.benchmark.class_names
    held = {every[c] for c in every if c % (trained.get("folds") or 4) == record["fold"]}
    return [name for name in novel if name not in held]
