"""Tables in the shape of the paper's: finished evaluations beside the published scores."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.registry import BENCHMARKS, benchmark_class, load_benchmark
from diffews.errors import InputError, printable, refuse, shorten
from diffews.evaluation.fs_cs import is_fs_cs, read_fs_cs
from diffews.evaluation.metrics import interval
from diffews.evaluation.published import FS_CS, IMAGE_SIZE, PUBLISHED, FoldScores, Published
from diffews.evaluation.records import Record, read_result, resample

# what the runs of one row need not have in common, since it goes with the fold
BY_FOLD = (
    "benchmark", "fold", "shots", "weight_sha256", "base_sha256", "list_sha256",
    "presence_sha256")
Row = list[str]
Columns = list[float | None]  # scores of each number of shots: the folds, then their mean
Measured = tuple[float, np.ndarray]  # a score in percent, and its bootstrap resamples


@dataclass(frozen=True)
class Run:
    """One evaluation that was found on disk."""

    path: Path
    method: str  # name of the weight dir without its fold
    benchmark: str
    fold: int
    shots: int
    miou: float
    fb_iou: float
    class_ids: list[int]
    records: list[Record]  # the lines of episodes.jsonl
    result: dict[str, Any]  # result.json, and as "list" whether its episodes are the published ones
    samples: np.ndarray  # bootstrap resamples of the mIoU


def table(
    folders: Sequence[Path], compared: Sequence[str], style: str, setting: str = "all",
    names: Sequence[str] = ()
) -> str:
    """Returns a table for each benchmark: published rows, our rows, their difference to the paper.

    Args:
        folders: of finished evaluations.
        compared: entries of result.json that change a score; the runs of a row agree in them, but
            for those that go with the fold.
        style: "md", "csv" or "latex".
        setting: which published rows, "strict", "in-context" or "all".
        names: of each run's row; by default its weight dir, and in what the rows of one differ.

    Raises:
        InputError: for runs that cannot stand in one mean, naming what differs.

    """
    if names and len(names) != len(folders):
        raise InputError(f"names= has {len(names)} names for {len(folders)} runs; name each, the "
                         "runs of one row alike")
    if any(is_fs_cs(folder) for folder in folders):
        return fs_cs_table(folders, style, names)
    runs = [read_run(folder) for folder in folders]
    compared = ["episodes", "list", "variant", *(key for key in compared if key not in BY_FOLD)]

    parts = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        shown = [i for i, run in enumerate(runs) if run.benchmark == benchmark]
        named = [names[i] for i in shown] if names else ()
        ours = _sort_into_rows([runs[i] for i in shown], compared, named)
        shots = sorted({runs[i].shots for i in shown})
        folds = max(1, BENCHMARKS[benchmark][2] or max(runs[i].fold for i in shown) + 1)
        columns = [*(f"F{fold}" for fold in range(folds)), "mean"]
        header = ["method", *(f"{n}-shot {column}" for n in shots for column in columns), "source"]

        # published rows first, then a few rows of ours for each weight dir
        published = [entry for entry in PUBLISHED
                     if entry.benchmark == benchmark and setting in ("all", entry.setting)]
        rows, notes = [], [entry.note for entry in published if entry.note]
        for entry in published:
            scores = _in_columns(entry.scores, shots, folds)
            cells = ("" if score is None else f"{score:.1f}" for score in scores)
            rows.append([f"{entry.method}, {entry.setting}", *cells, entry.source])
        for name, of_row in ours.items():
            rows += _our_rows(name, of_row, published, shots, folds)
            notes += [f"{name}: {note}" for note in _row_notes(of_row)]

        notes += dict.fromkeys(_protocol_note(run) for of_row in ours.values() for run in of_row)
        notes = list(map(printable, notes))
        rows = [list(map(printable, row)) for row in rows]
        parts.append(STYLES[style](benchmark, header, rows, notes))
    return "\n\n".join(parts)


def fs_cs_table(folders: Sequence[Path], style: str, names: Sequence[str] = ()) -> str:
    """Returns a table of runs with protocol=fs_cs, beside published rows of as many classes.

    A row is the mean of a weight dir's folds, with their exact ratio and mIoU.

    Raises:
        InputError: for runs of another protocol among them, or of two settings in one row.

    """
    others = [folder for folder in folders if not is_fs_cs(folder)]
    if others:
        raise InputError(f"{others[0]} is not of protocol=fs_cs, as others are; make two tables")
    rows: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for number, folder in enumerate(folders):
        run = read_fs_cs(folder)
        name = names[number] if names else _method(Path(run["weight"]))
        key = (run["benchmark"], run["way"], run["shots"], name, run["image_size"],
               run["episodes"], str(run["presence"]))
        if run["fold"] in rows.setdefault(key, {}):
            raise InputError(f"{folder}: fold {run['fold']} of {name} is there already; name the "
                             "runs apart with names=")
        rows[key][run["fold"]] = run

    parts = []
    for benchmark, way, shots in dict.fromkeys(key[:3] for key in rows):
        header = ["method", "folds", "exact ratio", "mIoU", "source"]
        cells = [[method, "mean", f"{exact:.1f}", f"{miou:.1f}", source]
                 for method, n, exact, miou, source in FS_CS
                 if (benchmark, shots, n) == ("coco20i", 1, way)]
        for key, of_fold in rows.items():
            if key[:3] == (benchmark, way, shots):
                means = [np.mean([run[score] for run in of_fold.values()])
                         for score in ("exact_ratio", "miou")]
                cells.append([f"{key[3]} (ours)", ", ".join(f"F{fold}" for fold in sorted(of_fold)),
                              *(f"{mean:.1f}" for mean in means), "measured here"])
        notes = ["other rows are quoted from their source, at 400 pixels; the data of ours are "
                 "those in its result.json"]
        title = f"{benchmark}, FS-CS, {way}-way {shots}-shot"
        parts.append(STYLES[style](title, header, cells, notes))
    return "\n\n".join(parts)


def read_run(folder: Path) -> Run:
    """Reads result.json and episodes.jsonl of an evaluation; see `read_result`.

    Raises:
        InputError: where there is no finished evaluation, or its figures are not those of its
            records.

    """
    result, records = read_result(folder)
    named = ("benchmark", "fold", "shots", "miou", "fb_iou", "class_ids")
    with refuse(f"{folder} is no finished evaluation", KeyError, TypeError, ValueError,
                AttributeError, cure="run `diffews eval` into it"):
        if result["benchmark"] not in BENCHMARKS:
            raise ValueError(f"benchmark is {shorten(result['benchmark'])}")
        return Run(
            **{name: result[name] for name in named}, path=folder, records=records,
            method=_method(Path(str(result["config"]["weight"]))),
            result={"prompt": "mask", **result, "list": _list_name(result)},
            samples=resample(records, result["class_ids"]))


def _method(weight: Path) -> str:
    """Names a row: the weight dir without its fold, looked for above `unet` and `checkpoint-N`."""
    while re.fullmatch(r"unet|checkpoint-\d+", weight.name) and weight.parent != weight:
        weight = weight.parent
    return re.sub(r"_fold\d+$", "", weight.name)


def _list_name(result: dict[str, Any]) -> str:
    """Says whether the run's episodes are the published ones."""
    benchmark, config = result["benchmark"], result["config"]
    if not benchmark_class(benchmark).builtin_lists:
        return "from the data folder"
    shown = load_benchmark(benchmark, "", result["fold"], shots=result["shots"], splits="builtin")
    if shown.episodes[: result["episodes"]].sha256 == result["episodes_sha256"]:
        return "published"
    made = [f"{k}={config[k]}" for k in ("episodes_file", "drawn_shots") if config.get(k)]
    return ", ".join(["not the published one", *made])


def _sort_into_rows(
    runs: Sequence[Run], compared: Sequence[str], names: Sequence[str] = ()
) -> dict[str, list[Run]]:
    """Sorts a benchmark's runs into rows: by their names, else by weight dir and settings."""
    rows: dict[str, list[Run]] = {}
    for name, run in zip(names, runs, strict=False):
        rows.setdefault(name, []).append(run)
        _check_row(rows[name], compared)

    unnamed = [] if names else runs
    for method in dict.fromkeys(run.method for run in unnamed):
        of_method = [run for run in runs if run.method == method]
        texts = {key: {str(run.result.get(key)) for run in of_method} for key in compared}
        differ = [key for key in compared if len(texts[key]) > 1]
        for run in of_method:
            said = (f"{key}={shorten(run.result.get(key))}" for key in differ)
            rows.setdefault(", ".join([method, *said]), []).append(run)

    # a place of the table holds one run
    for of_row in rows.values():
        taken: dict[tuple[int, int], Run] = {}
        for run in of_row:
            if (other := taken.setdefault((run.fold, run.shots), run)) is not run:
                paths = f"{run.path} and {other.path}"
                raise InputError(f"{paths} are the same weights, fold and shots; give one, or "
                                 "tell them apart with names=")
    return rows


def _check_row(runs: list[Run], compared: Sequence[str]) -> None:
    """Raises InputError for runs that do not go into one row, naming what differs."""
    first, *others = runs
    for run in others:
        pairs = {key: (first.result.get(key), run.result.get(key)) for key in compared}
        changes = [f"{key}: {a} and {b}" for key, (a, b) in pairs.items() if a != b]
        if changes:
            paths = f"{first.path} and {run.path}"
            raise InputError(f"{paths} do not go into one table row ({', '.join(changes)})")


def _our_rows(
    name: str, runs: list[Run], published: Sequence[Published], shots: list[int], folds: int
) -> list[Row]:
    """Returns a row of ours, and its differences to the rows of DiffewS that it compares with."""
    # of each number of shots the folds, then their mean, if none of them is missing
    ours: list[Measured | None] = []
    for count in shots:
        found = {run.fold: (run.miou, run.samples) for run in runs if run.shots == count}
        ours += [found.get(fold) for fold in range(folds)]
        mean = None
        if len(found) == folds:
            scores, samples = zip(*(found[fold] for fold in range(folds)), strict=True)
            mean = (float(np.mean(scores)), np.mean(samples, axis=0))
        ours.append(mean)

    mark = "ours, SAW NOVEL CLASSES" if _seen(runs) else "ours"
    rows = [[f"{name} ({mark})", *map(_with_interval, ours), "measured here"]]
    for entry in published:
        novel_to_both = entry.setting != "strict" or not _seen(runs)
        if entry.method.startswith("DiffewS") and _is_comparable(runs) and novel_to_both:
            theirs = _in_columns(entry.scores, shots, folds)
            rows.append([f"{name} minus {entry.method}, {entry.setting}",
                         *map(_difference, ours, theirs), "difference"])
    return rows


def _is_comparable(runs: Sequence[Run]) -> bool:
    """Whether runs are of the published lists, at the published rows' image size."""
    return all(run.result["list"] == "published" and run.result["image_size"] == IMAGE_SIZE
               for run in runs)


def _seen(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs whose weights were trained on classes that should be novel."""
    return [run for run in runs if run.result.get("seen_classes")]


def _row_notes(runs: Sequence[Run]) -> list[str]:
    """Says what keeps a row from being read as the published ones are."""
    notes = [f"fold {run.fold}, {run.shots}-shot: the weights were trained on "
             f"{len(run.result['seen_classes'])} of the {len(run.class_ids)} novel classes"
             for run in _seen(runs)]
    if not _is_comparable(runs):
        notes.append("no difference to the published rows, which are of the published lists at "
                     f"image size {IMAGE_SIZE}")
    return notes


def _in_columns(scores: dict[int, FoldScores], shots: list[int], folds: int) -> Columns:
    """Lays published scores out."""
    columns: Columns = []
    for count in shots:
        each, mean = scores.get(count, ((), None))
        columns += [*(each or [None] * folds), mean]
    return columns


def _with_interval(score: Measured | None) -> str:
    if score is None:
        return ""
    return "{:.1f} [{:.1f}, {:.1f}]".format(score[0], *interval(score[1]))


def _difference(ours: Measured | None, theirs: float | None) -> str:
    return "" if ours is None or theirs is None else f"{ours[0] - theirs:+.1f}"


def _protocol_note(run: Run) -> str:
    episodes, size, name = (run.result.get(key) for key in ("episodes", "image_size", "list"))
    made = f"ours: {episodes} episodes a fold, image size {size}, list: {name}"
    quoted = "all other rows are quoted from their source"
    return f"{made}, 95 % bootstrap intervals over episodes; {quoted}"


def _markdown(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
             for row in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join([f"### {title}", "", *lines, "", *(f"- {note}" for note in notes)])


def _csv(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    text = io.StringIO()
    lines = [["benchmark", *header], *([title, *row] for row in rows)]
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().rstrip("\n")


def _latex(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    head, *body = (
        " & ".join(re.sub(r"([&%_#${}])", r"\\\1", cell) for cell in row) + r" \\"
        for row in (header, *rows))
    columns = "l" + "r" * (len(header) - 2) + "l"
    return "\n".join([
        f"% {title}", f"\\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes)])


Style = Callable[[str, Row, list[Row], list[str]], str]  # title, header, rows, notes
STYLES: dict[str, Style] = {"md": _markdown, "csv": _csv, "latex": _latex}
