"""What a command's keys name: weights, folds, episodes, training classes. Loads no torch."""

import re
from typing import Any

from diffews.cli.keys import CHECKOUT
from diffews.cli.settings import BaselinesConfig, BenchmarkKeys, EvalConfig
from diffews.cli.training_settings import TrainConfig, TrainPresenceConfig
from diffews.data.episodes import Benchmark, EpisodeDataset
from diffews.data.registry import (
    BENCHMARKS, check_fold, load_benchmark, open_benchmark, option_names)
from diffews.errors import InputError
from diffews.models.find import WeightDir, find_weights
from diffews.variants import Variant

# ---- what is evaluated ----


def open_evaluation(
    config: EvalConfig | BaselinesConfig,
) -> tuple[WeightDir, int, EpisodeDataset]:
    """Finds the weights, the fold and the test episodes of a config, whose files are all there."""
    source = find_weights(config.weight or default_weight(config.fold), config.base)
    fold, size = find_fold(config, source), source.image_size(config.image_size)
    dataset = open_test_set(config, fold, size, **config.list_options())
    dataset.check_files()
    return source, fold, dataset


def open_test_set(
    config: BenchmarkKeys, fold: int | None, image_size: int, **options: Any
) -> EpisodeDataset:
    """Opens the episodes that a config names; options are more arguments of `load_benchmark`."""
    return load_benchmark(
        config.benchmark, config.data, fold=fold, shots=config.shots, image_size=image_size,
        splits=config.splits, **config.options(), **options)


def find_fold(config: BenchmarkKeys, source: WeightDir) -> int:
    """Returns the fold asked for, else `_fold<N>` of the weight dir's name, else the recorded."""
    if config.fold is not None or config.novel or BENCHMARKS[config.benchmark][2] == 0:
        return config.fold or 0
    named = re.search(r"_fold(\d+)", source.name)
    fold = int(named[1]) if named else source.record.get("fold")
    if fold is None:
        raise InputError(
            f"weight={source.path} does not end in _fold<N>; say which classes are novel with "
            "fold=N")
    check_fold(config.benchmark, fold, f" (that of weight={source.path}; give fold=N)")
    return fold


def default_weight(fold: int | None) -> str:
    """Returns the shipped tiny weights of a fold."""
    return str(CHECKOUT / "weight" / "tiny" / f"shapes_fold{fold or 0}")


# ---- what is trained ----


def open_training_set(config: TrainConfig) -> Benchmark:
    """Opens the training classes of a benchmark, or of the mix that is asked for."""
    if not config.mix:
        return open_benchmark(
            config.benchmark, config.data, config.fold, "train", config.splits, config.shots,
            **config.options())
    from diffews.data.mix import Mix, parse_mix

    # each benchmark of a mix takes the options that it knows
    options = {name: value for name, value in config.options().items() if value not in (None, [])}
    shares = [(name, weight, option_names(name)) for name, weight in parse_mix(config.mix)]
    foreign = options.keys() - {option for _, _, names in shares for option in names}
    if foreign:
        raise InputError(f"{min(foreign)}= is a key of no benchmark in mix=")
    return Mix([
        (name, weight, open_benchmark(
            name, config.data, None, "train", config.splits, config.shots,
            **{option: options[option] for option in names if option in options}))
        for name, weight, names in shares])


def find_start(config: TrainConfig) -> WeightDir:
    """Finds the weights to start from, which must be of the config's variant."""
    init = find_weights(str(config.init), config.base, key="init")
    ours, theirs = Variant.of(vars(config)).asdict(), init.record.get("variant")
    for name, value in Variant.read(theirs).asdict().items():
        if value != ours[name]:
            raise InputError(
                f"init={config.init} was trained with {name}={value}, and this run has "
                f"{name}={ours[name]}; give {name}={value}")
    return init


def check_head_fold(config: TrainPresenceConfig, source: WeightDir, fold: int) -> None:
    """Raises InputError for a fold whose training classes are novel to the weights."""
    named = re.search(r"_fold(\d+)", source.name)
    known = source.record.get("fold", int(named[1]) if named else None)
    same = source.record.get("benchmark", config.benchmark) == config.benchmark
    if BENCHMARKS[config.benchmark][2] and same and known not in (None, fold):
        raise InputError(
            f"fold={fold}: weight={source.path} was trained with fold {known}, so that training "
            f"classes of fold {fold} are novel to it, and a head may not see them; give "
            f"fold={known}")
