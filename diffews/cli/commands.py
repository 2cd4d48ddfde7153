"""What each command does: early checks without torch, then the work. The list of them stands last.

Torch is imported inside the functions, after the checks, so that a mistake is answered at once.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffews.cli.keys import build, entries_of_scores
from diffews.cli.opening import (
    check_head_fold, default_weight, find_fold, find_start, open_evaluation, open_test_set,
    open_training_set)
from diffews.cli.settings import BaselinesConfig, EpisodesConfig, EvalConfig, SegmentConfig
from diffews.cli.tool_commands import (
    run_benchmark, run_distill_decoder, run_export, run_init_base, run_make_shapes,
    run_make_tiny_base)
from diffews.cli.tool_settings import (
    AppConfig, BenchmarkConfig, CheckConfig, DistillConfig, ExportConfig, FigureConfig,
    InitBaseConfig, MakeShapesConfig, PrepareConfig, TableConfig, TinyBaseConfig)
from diffews.cli.training_settings import TrainConfig, TrainPresenceConfig
from diffews.data.episodes import Benchmark
from diffews.data.lists import check_names
from diffews.data.negatives import check_absence_is_known
from diffews.data.registry import open_benchmark
from diffews.errors import InputError, printable
from diffews.evaluation.queries import find_queries
from diffews.evaluation.segment import open_export, report, segment
from diffews.evaluation.supports import count_marks
from diffews.models.find import (
    DEFAULT_IMAGE_SIZE, EXPORT, PRESENCE, WeightDir, check_base, check_image_size, find_weights)
from diffews.models.hub import BASE_FILES, HUB, resolve
from diffews.runtime.locks import one_writer

# ---- evaluation ----


def run_eval(config: EvalConfig) -> None:
    """Evaluates, and prints the IoU of each class and the mean."""
    source, fold, dataset = open_evaluation(config)
    asked = f"_{config.protocol}_{config.way}way" if config.protocol != "fs_s" else ""
    name = f"{config.benchmark}_fold{fold}_{config.shots}shot{asked}"
    out = Path(config.out or Path("results") / source.name / name)

    from accelerate import PartialState
    from diffews.evaluation.evaluate import evaluate, result_file

    # the result names the weights that were taken, the shipped ones, too
    taken = replace(config, weight=source.hub_id or str(source.path))
    result = evaluate(taken, dataset, source, out)
    # a process that ends without it may abort, and takes the others down
    PartialState().destroy_process_group()
    if result is None:  # another process than the main one
        return

    if config.protocol == "fs_cs":
        print(f"written to {out}: result.json, episodes.jsonl")
        print(f"{config.benchmark} fold {fold}, {config.way}-way {config.shots}-shot FS-CS, "
              f"{result['episodes']} episodes: exact ratio {result['exact_ratio']:.2f}, "
              f"mIoU {result['miou']:.2f}")
        return
    for class_name, iou in result["per_class"].items():
        print(f"{printable(class_name):>24} {iou:6.2f}")
    count = len(result["class_ids"])
    if absent := count - result["classes_drawn"]:
        print(f"{absent} of {count} classes are in no episode and count as 0, as in the protocol")
    if empty := result["empty_episodes"]:
        print(f"{empty} of {result['episodes']} episodes have a support or query whose mask is "
              f"empty at image_size={result['image_size']}")
    if absent_scores := result.get("absent"):
        print_absent(absent_scores, config.presence)
    low, high = result["miou_interval"]
    print(f"written to {out}: {result_file(out, result['episodes']).name}, episodes.jsonl")
    print(f"{config.benchmark} fold {fold}, {config.shots}-shot, {result['episodes']} episodes: "
          f"mIoU {result['miou']:.2f} (95 % interval {low:.2f} to {high:.2f}), "
          f"FB-IoU {result['fb_iou']:.2f}")


def print_absent(scores: dict[str, Any], presence: str) -> None:
    """Prints how well queries without the class are told from those with it."""
    print(f"absent, {scores['negatives']} negatives: AUROC {scores['auroc']:.3f}, "
          f"{100 * scores['fpr_at_95_recall']:.1f} % false alarms at 95 % recall")
    if presence == "cosine":
        print("presence=cosine has no calibrated gate; what is gated at 0.5 means nothing")
        return
    twins = f", of {scores['twins']} twins {100 * scores['twins_rejected']:.1f} %"
    print(f"gate {scores['gate']}: exact {100 * scores['exact_ratio']:.1f} %, MCC "
          f"{scores['il_mcc']:.3f}, negatives found empty "
          f"{100 * scores['negatives_rejected']:.1f} %{twins * bool(scores['twins'])}; "
          f"mIoU {scores['miou_gated']:.2f} with the gate, {scores['miou_ungated']:.2f} without")


def run_baselines(config: BaselinesConfig) -> None:
    """Prints a table of what puts a model's mIoU into proportion."""
    source, _, dataset = open_evaluation(config)

    from diffews.evaluation.baselines import baselines_table

    print(baselines_table(config, dataset, source))


def run_table(config: TableConfig) -> None:
    """Prints tables of finished evaluations."""
    from diffews.evaluation.tables import table

    compared = entries_of_scores(EvalConfig)
    folders = [Path(run) for run in config.runs]
    print(table(folders, compared, config.format, config.setting, config.names))


def run_figure(config: FigureConfig) -> None:
    """Draws episodes of a finished evaluation."""
    from diffews.evaluation.figures import draw_figure
    from diffews.evaluation.tables import read_run

    # the same weights and episodes as in the run; keys that this version lacks are left out
    run = read_run(Path(config.run))
    known = {item.name for item in fields(EvalConfig)}
    values = {k: v for k, v in run.result["config"].items() if k in known}
    for key in ("weight", "base", "encoder", "decoder"):  # a result may come from elsewhere
        if str(values.get(key)).startswith(HUB):
            values[key] = str(resolve(values[key], may_fetch=False))
            if not Path(values[key]).is_dir():
                raise InputError(
                    f"{run.path}: {key}={values[key]} is not in the hub's cache, and what a file "
                    "names is not fetched")
    settings = build(EvalConfig, [(f"{run.path}: config", values)])
    source = find_weights(settings.weight or default_weight(run.fold), settings.base)
    size = source.image_size(run.result.get("image_size"))
    dataset = open_test_set(settings, run.fold, size, **settings.list_options())
    dataset.check_files()

    print(f"wrote {draw_figure(config, run, settings, source, dataset)}")


# ---- one's own pictures ----


def run_segment(config: SegmentConfig) -> int:
    """Segments pictures of one's own; 1 if one of them could not be read."""
    if not config.bank and not (config.support and count_marks(config)):
        raise InputError("give support= with mask=, box=, point= or scribble=, or bank=")
    if config.save_bank is not None:
        check_names(config.classes, "classes=")  # files of these names are written
    if config.weight is None:
        warnings.warn(
            "weight= is not given; the shipped tiny weights know coloured shapes only",
            stacklevel=1)

    # a weight dir, or graphs that need no torch
    weight, graphs = config.weight or default_weight(0), None
    folder = Path(weight)
    if (folder / EXPORT).is_file():
        graphs = open_export(config, folder)
        source = WeightDir(folder, folder, folder, graphs.record)
        size = graphs.check_size(config.image_size)
    else:
        source = find_weights(weight, config.base)
        size = source.image_size(config.image_size)
    config = replace(config, image_size=size, threshold=source.threshold(config.threshold))

    from diffews.evaluation.clips import unpack_clips, write_overlays
    from diffews.evaluation.labels.results import label_results

    config = unpack_clips(config)
    queries = find_queries(config)

    with one_writer(Path(config.out)):
        count = segment(config, source, queries, graphs)
        labelled = label_results(config, queries)
        write_overlays(config)
    report(queries)
    print(f"wrote {count} mask(s) and overlay(s) to {config.out}")
    if labelled:
        print(labelled)
    return 1 if queries.unreadable else 0


def run_app(config: AppConfig) -> None:
    """Serves the page."""
    if config.folder is not None and not Path(config.folder).is_dir():
        raise InputError(f"folder={config.folder} is no folder")
    source = find_weights(config.weight or default_weight(0), config.base)
    config = replace(config, image_size=source.image_size(config.image_size))

    from diffews.tools.app import serve

    tiny = Path(default_weight(0)).parent
    serve(config, source, is_tiny=source.path.resolve().is_relative_to(tiny))


# ---- training ----


def run_train(config: TrainConfig) -> None:
    """Trains a UNet."""
    base = check_base(resolve(config.base, BASE_FILES), f"base={config.base}")
    check_image_size(config.image_size, base)
    init = None if config.init is None else find_start(config)

    # what is learned from, and what is validated on
    if config.mix:
        config = replace(config, fold=None)  # no class of a mix is held out
    benchmark = open_training_set(config)
    benchmark.check_files(
        dict.fromkeys(sample for samples in benchmark.images.values() for sample in samples))
    validation = None
    if config.validate_every is not None:
        if config.fold is None and config.validate_on == "novel":
            raise InputError("validate_on=novel: no class is novel with mix= or fold=null, which "
                             "train on all; say validate_on=seen, or fold=N")
        split = {"seen": "val", "novel": "test"}[config.validate_on]
        validation = open_test_set(
            config, config.fold, config.image_size, split=split,
            episodes=config.validate_episodes)
        validation.check_files()

    from accelerate import PartialState

    from diffews.training.train import train

    train(config, benchmark, base, validation, init)
    if not PartialState().is_main_process:
        return
    if config.stop_at is not None and config.stop_at < config.steps:
        print(f"stopped at step {config.stop_at}; resume=latest goes on")
    else:
        print(f"wrote {config.out}/unet/unet")


def run_train_presence(config: TrainPresenceConfig) -> None:
    """Trains a presence head on frozen weights."""
    source = find_weights(config.weight, config.base)
    fold, out = find_fold(config, source), Path(config.out or source.path)
    check_head_fold(config, source, fold)
    if (out / PRESENCE).exists():
        raise InputError(f"{out / PRESENCE} exists; remove it or give out=")
    config = replace(config, image_size=source.image_size(config.image_size))
    benchmark = open_benchmark(
        config.benchmark, config.data, fold, "train", config.splits, config.shots,
        **config.options())
    check_absence_is_known(benchmark, f"benchmark={config.benchmark}")
    benchmark.check_files(
        dict.fromkeys(sample for samples in benchmark.images.values() for sample in samples))

    from diffews.training.presence import check_out, train_presence

    check_out(source, out)
    with one_writer(out):
        record = train_presence(config, benchmark, source, out, fold)
    if "held_out_auroc" in record:
        print(f"AUROC {record['held_out_auroc']:.3f} on held-out queries of seen classes")
    print(f"wrote {out / PRESENCE}")


# ---- data ----


def run_episodes(config: EpisodesConfig) -> None:
    """Prints the list; stdout is the JSON and nothing else."""
    dataset = open_test_set(config, config.fold or 0, DEFAULT_IMAGE_SIZE, **config.list_options())
    if config.save:
        dataset.episodes.save(Path(config.save))
    print(dataset.episodes.to_json())


def run_prepare(config: PrepareConfig) -> int:
    """Makes masks and lists, and checks them."""
    from diffews.data import prepare

    workers, data, good = config.workers or os.cpu_count() or 1, Path(config.data), True
    if config.benchmark == "coco20i":
        for part in config.parts or ["train2014", "val2014"]:
            checked = prepare.prepare_and_check_coco(
                data, part, workers, config.rasterizer, config.least_pixels)
            print(checked.summary())
            good = good and checked.good

    elif config.benchmark == "lvis92i":
        for part in config.parts or ["train", "val"]:
            print(f"wrote {prepare.prepare_lvis(Benchmark.find_root(data, 'LVIS'), part)}")
        print(
            "not checked: the order of the published lists is not known, so that episodes may "
            "differ from theirs")

    elif config.sbd is None:
        raise InputError("sbd= is missing; folder of SBD's dataset, which holds cls/*.mat")
    else:
        root = Benchmark.find_root(data, "VOC2012")
        count = prepare.prepare_pascal(root, Path(config.sbd), workers)
        print(
            f"{count} masks in {root / 'SegmentationClassAug'}; test them with `diffews check "
            "benchmark=pascal5i`")
    return 0 if good else 1


def run_check(config: CheckConfig) -> int:
    """Tests a data folder."""
    from diffews.data.check import check_folder, compare_with_published

    good, fold = True, config.fold or 0
    for split in config.parts:
        try:
            benchmark = open_benchmark(
                config.benchmark, config.data, fold, split, config.splits, config.shots,
                **config.options())
        except InputError as error:
            if not config.annotations or not Path(config.annotations).exists():
                raise
            print(f"  {printable(error)}")  # annotations that eval would refuse
            good = False
            continue
        lines, split_is_good = check_folder(benchmark, split, config.workers or os.cpu_count() or 1)
        if benchmark.builtin_lists and config.splits != "builtin":
            published = open_benchmark(
                config.benchmark, config.data, fold, split, "builtin", config.shots)
            lines.append(compare_with_published(split, benchmark, published))
        print("\n".join(map(printable, lines)))
        good = good and split_is_good
    print("the folder is good" if good else "the folder is NOT good")
    return 0 if good else 1


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {  # in the order of --help
    "eval": (EvalConfig, run_eval),
    "segment": (SegmentConfig, run_segment),
    "app": (AppConfig, run_app),
    "train": (TrainConfig, run_train),
    "train-presence": (TrainPresenceConfig, run_train_presence),
    "baselines": (BaselinesConfig, run_baselines),
    "prepare": (PrepareConfig, run_prepare),
    "check": (CheckConfig, run_check),
    "table": (TableConfig, run_table),
    "figure": (FigureConfig, run_figure),
    "episodes": (EpisodesConfig, run_episodes),
    "init-base": (InitBaseConfig, run_init_base),
    "export": (ExportConfig, run_export),
    "make-shapes": (MakeShapesConfig, run_make_shapes),
    "make-tiny-base": (TinyBaseConfig, run_make_tiny_base),
    "distill-decoder": (DistillConfig, run_distill_decoder),
    "benchmark": (BenchmarkConfig, run_benchmark),
}
