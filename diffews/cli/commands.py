"""What each command does: early checks without torch, then the work. The list of commands is in `cli.py`."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffews.cli import settings as keys
from diffews.cli.settings import CHECKOUT, ListKeys
from diffews.data.episodes import Benchmark, EpisodeDataset
from diffews.data.registry import (
    BENCHMARKS,
    check_fold,
    load_benchmark,
    open_benchmark,
    option_names,
)
from diffews.errors import InputError
from diffews.evaluation.segment import find_queries, segment
from diffews.images.files import find_masks
from diffews.models.find import (
    BASE_FILES,
    DEFAULT_IMAGE_SIZE,
    WeightSource,
    check_base,
    check_image_size,
    find_weights,
    resolve,
    vae_factor,
)
from diffews.runtime.files import check_new
from diffews.runtime.locks import one_writer
from diffews.variants import Variant


def run_eval(config: keys.EvalConfig) -> None:
    """Checks what can be checked without torch, evaluates, and prints the figures."""
    source = find_weights(config.weight or default_weight(config.fold), config.base)
    fold = find_fold(config, source)
    dataset = open_test_set(config, fold, source.image_size(config.image_size))
    dataset.check_files()
    config.weight = str(source.path)  # so that the result names the shipped weights, too
    out = Path(config.out or Path("results") / source.path.name / f"{config.benchmark}_fold{fold}_{config.shots}shot")

    from accelerate import PartialState

    from diffews.evaluation.evaluate import evaluate

    result = evaluate(config, dataset, source, out)
    PartialState().destroy_process_group()  # a process that ends without it may abort, and takes the others down
    if result is None:  # another process than the main one
        return
    for name, iou in result["per_class"].items():
        print(f"{name:>24} {iou:6.2f}")
    low, high = result["miou_interval"]
    absent = len(result["class_ids"]) - result["classes_drawn"]
    if absent:
        print(f"{absent} of {len(result['class_ids'])} classes are in no episode and count as 0, as in the protocol")
    print(f"written to {out}: result.json, episodes.jsonl")
    print(
        f"{config.benchmark} fold {fold}, {config.shots}-shot, {result['episodes']} episodes: "
        f"mIoU {result['miou']:.2f} (95 % interval {low:.2f} to {high:.2f}), FB-IoU {result['fb_iou']:.2f}"
    )


def run_episodes(config: keys.EpisodesConfig) -> None:
    """Prints the list; stdout is the JSON and nothing else."""
    dataset = open_test_set(config, config.fold or 0, image_size=DEFAULT_IMAGE_SIZE)
    if config.save:
        dataset.episodes.save(Path(config.save))
    print(dataset.episodes.to_json())


def run_segment(config: keys.SegmentConfig) -> None:
    """Segments pictures of one's own."""
    if not config.bank and not (config.support and config.mask):
        raise InputError("give support= with mask=, or bank=")
    queries = find_queries(config)
    if config.weight is None:
        warnings.warn("weight= is not given; the shipped tiny weights know coloured shapes only", stacklevel=1)
    source = find_weights(config.weight or default_weight(0), config.base)
    config.image_size = source.image_size(config.image_size)
    with one_writer(Path(config.out)):
        segment(config, source, queries)
    print(f"wrote {len(queries)} mask(s) and overlay(s) to {config.out}")


def run_init_base(config: keys.InitBaseConfig) -> None:
    """Converts Stable Diffusion to a base."""
    from diffews.runtime.device import torch_dtype
    from diffews.tools.init_base import init_base

    with one_writer(Path(config.out), new=True):
        init_base(config.sd, Path(config.out), torch_dtype(config.dtype), config.allow_bin)
    print(f"wrote {config.out}")


def run_train(config: keys.TrainConfig) -> None:
    """Trains a UNet."""
    base = check_base(resolve(config.base, BASE_FILES), f"base={config.base}")
    check_image_size(config.image_size, base)
    if config.mix:
        config.fold = None  # no class of a mix is held out
    benchmark = open_training_set(config)
    benchmark.check_files(dict.fromkeys(s for samples in benchmark.images.values() for s in samples))
    validation = None
    if config.validate_every is not None:
        validation = load_benchmark(
            config.benchmark,
            config.data,
            fold=config.fold or 0,
            split={"seen": "val", "novel": "test"}[config.validate_on],
            shots=config.shots,
            image_size=config.image_size,
            splits=config.splits,
            episodes=config.validate_episodes,
            **config.options(),
        )
        validation.check_files()

    from accelerate import PartialState

    from diffews.training.train import train

    train(config, benchmark, base, validation)
    if not PartialState().is_main_process:
        return
    stopped = config.stop_at is not None and config.stop_at < config.steps
    print(f"stopped at step {config.stop_at}; resume=latest goes on" if stopped else f"wrote {config.out}/unet/unet")


def open_training_set(config: keys.TrainConfig) -> Benchmark:
    """Opens the training classes of a benchmark, or of the mix that is asked for."""
    if not config.mix:
        return open_benchmark(
            config.benchmark, config.data, config.fold, "train", config.splits, config.shots, **config.options()
        )
    from diffews.data.mix import Mix, parse_mix

    options = {key: value for key, value in config.options().items() if value not in (None, [])}
    shares = parse_mix(config.mix)
    foreign = sorted(options.keys() - set().union(*(option_names(name) for name, _ in shares)))
    if foreign:
        raise InputError(f"{foreign[0]}= is a key of no benchmark in mix=")
    parts = []
    for name, weight in shares:
        own = {key: value for key, value in options.items() if key in option_names(name)}
        part = open_benchmark(name, config.data, None, "train", config.splits, config.shots, **own)
        parts.append((name, weight, part))
    return Mix(parts)


def run_prepare(config: keys.PrepareConfig) -> int:
    """Makes masks and lists, and checks them."""
    from diffews.data import prepare

    workers = config.workers or os.cpu_count() or 1
    good = True
    if config.benchmark == "coco20i":
        for part in config.parts or ["train2014", "val2014"]:
            checked = prepare.prepare_and_check_coco(
                Path(config.data), part, workers, config.rasterizer, config.least_pixels
            )
            print(checked.summary())
            good = good and checked.good
    elif config.benchmark == "lvis92i":
        root = Benchmark.find_root(Path(config.data), "LVIS")
        for part in config.parts or ["train", "val"]:
            print(f"wrote {prepare.prepare_lvis(root, part)}")
        print("not checked: the order of the published lists is not known, so that episodes may differ from theirs")
    else:
        if config.sbd is None:
            raise InputError("sbd= is missing; folder of SBD's dataset, which holds cls/*.mat")
        root = Benchmark.find_root(Path(config.data), "VOC2012")
        count = prepare.prepare_pascal(root, Path(config.sbd), workers)
        print(f"{count} masks in {root / 'SegmentationClassAug'}; test them with `diffews check benchmark=pascal5i`")
    return 0 if good else 1


def run_check(config: keys.CheckConfig) -> int:
    """Tests a data folder."""
    from diffews.data.check import check_folder, compare_with_published

    workers, good = config.workers or os.cpu_count() or 1, True
    for split in config.parts:
        fold = config.fold if config.fold is not None else 0
        benchmark = open_benchmark(
            config.benchmark, config.data, fold, split, config.splits, config.shots, **config.options()
        )
        lines, split_is_good = check_folder(benchmark, split, workers)
        if benchmark.builtin_lists and config.splits != "builtin":
            published = open_benchmark(config.benchmark, config.data, fold, split, "builtin", config.shots)
            lines.append(compare_with_published(split, benchmark, published))
        print("\n".join(lines))
        good = good and split_is_good
    print("the folder is good" if good else "the folder is NOT good")
    return 0 if good else 1


def run_baselines(config: keys.BaselinesConfig) -> None:
    """Prints a table of figures that put a model's into proportion."""
    source = find_weights(config.weight or default_weight(config.fold), config.base)
    fold = find_fold(config, source)
    dataset = open_test_set(config, fold, source.image_size(config.image_size))
    dataset.check_files()

    from diffews.evaluation.baselines import baselines_table

    print(baselines_table(config, dataset, source))


def open_test_set(config: ListKeys, fold: int, image_size: int) -> EpisodeDataset:
    """Opens the test episodes that a config names."""
    return load_benchmark(
        config.benchmark,
        config.data,
        fold=fold,
        shots=config.shots,
        image_size=image_size,
        splits=config.splits,
        episodes=config.episodes,
        drawn_shots=config.drawn_shots,
        episodes_file=config.episodes_file,
        **config.options(),
    )


def run_table(config: keys.TableConfig) -> None:
    """Prints tables of finished evaluations."""
    from diffews.evaluation.tables import table

    print(table([Path(run) for run in config.runs], config.format, config.setting))


def run_figure(config: keys.FigureConfig) -> None:
    """Draws episodes of a finished evaluation."""
    from diffews.evaluation.figures import draw_figure, run_settings
    from diffews.evaluation.tables import read_run

    run = read_run(Path(config.run))
    settings = run_settings(run)
    source = find_weights(settings.weight or default_weight(run.fold), settings.base)
    dataset = open_test_set(settings, run.fold, source.image_size(run.result.get("image_size")))
    dataset.check_files()
    print(f"wrote {draw_figure(config, run, settings, source, dataset)}")


def run_export(config: keys.ExportConfig) -> None:
    """Writes weights in another precision."""
    source = find_weights(config.weight, config.base)
    from diffews.runtime.device import torch_dtype
    from diffews.tools.init_base import export_weights

    with one_writer(Path(config.out), new=True):
        export_weights(source, Path(config.out), torch_dtype(config.dtype))
    print(f"wrote {config.out}")


def run_make_shapes(config: keys.MakeShapesConfig) -> None:
    """Writes the shapes benchmark."""
    from diffews.tools.shapes import make_shapes

    with one_writer(Path(config.out) / "COCO2014", new=True):
        make_shapes(Path(config.out), config.seed)
    print(f"wrote {config.out}/COCO2014")


def run_make_tiny_base(config: keys.TinyBaseConfig) -> None:
    """Trains the tiny VAE."""
    out = Path(config.out)
    check_new(out)
    from diffews.tools.tiny import make_tiny_base

    with one_writer(out, new=True):
        make_tiny_base(config, out)
    print(f"wrote {out}")


def run_distill_decoder(config: keys.DistillConfig) -> None:
    """Trains a small decoder, and prints what it saves."""
    out = Path(config.out)
    check_new(out)
    base = check_base(resolve(config.base), f"base={config.base}")
    check_image_size(config.image_size, base)
    stages = vae_factor(base).bit_length()
    config.blocks = config.blocks or [3, 1, *[0] * stages][:stages]
    if len(config.blocks) != stages:
        raise InputError(
            f"blocks={','.join(map(str, config.blocks))}: the VAE in {base} has {stages} sizes; give {stages} numbers"
        )
    if config.masks is not None:
        find_masks(Path(config.masks))

    from diffews.tools.distill import distill_decoder

    with one_writer(out, new=True):
        theirs, ours = distill_decoder(config, base, out)
    print(
        f"wrote {out}: decoding a latent of 16 x 16 takes {ours / 1e6:.1f} million multiply-adds, "
        f"{ours / theirs:.3f} of the VAE's {theirs / 1e6:.1f} million"
    )


def run_benchmark(config: keys.BenchmarkConfig) -> None:
    """Prints a table, and all of it as JSON in the last line."""
    source = find_weights(config.weight, config.base) if config.weight is not None else None
    if source is not None:
        config.image_size = source.image_size(config.image_size)
        if Variant.read(source.record.get("variant")) != Variant():
            raise InputError(
                f"weight={config.weight}: made with another variant than the released one, which alone is measured"
            )

    from diffews.tools.timing import measure_all, timing_table

    results = measure_all(config, source)
    print(timing_table(results))
    print(json.dumps(results))


def default_weight(fold: int | None) -> str:
    """Returns the shipped tiny weights of a fold."""
    return str(CHECKOUT / "weight" / "tiny" / f"shapes_fold{fold or 0}")


def find_fold(config: ListKeys, source: WeightSource) -> int:
    """Returns the fold that was asked for, else `_fold<N>` of the weight dir's name, else the one that was trained."""
    if config.fold is not None or config.novel or BENCHMARKS[config.benchmark][2] == 0:
        return config.fold or 0
    named = re.search(r"_fold(\d+)", os.path.basename(os.path.abspath(source.path)))
    fold = int(named[1]) if named else source.record.get("fold")
    if fold is None:
        raise InputError(f"weight={source.path} does not end in _fold<N>; say which classes are novel with fold=N")
    check_fold(config.benchmark, fold)
    return fold


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {  # in the order of --help
    "eval": (keys.EvalConfig, run_eval),
    "segment": (keys.SegmentConfig, run_segment),
    "train": (keys.TrainConfig, run_train),
    "baselines": (keys.BaselinesConfig, run_baselines),
    "prepare": (keys.PrepareConfig, run_prepare),
    "check": (keys.CheckConfig, run_check),
    "table": (keys.TableConfig, run_table),
    "figure": (keys.FigureConfig, run_figure),
    "episodes": (keys.EpisodesConfig, run_episodes),
    "init-base": (keys.InitBaseConfig, run_init_base),
    "export": (keys.ExportConfig, run_export),
    "make-shapes": (keys.MakeShapesConfig, run_make_shapes),
    "make-tiny-base": (keys.TinyBaseConfig, run_make_tiny_base),
    "distill-decoder": (keys.DistillConfig, run_distill_decoder),
    "benchmark": (keys.BenchmarkConfig, run_benchmark),
}
