"""Tables in the shape of the paper's: finished evaluations beside the published scores."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffews.data.registry import BENCHMARKS, load_benchmark
from diffews.errors import InputError
from diffews.evaluation.metrics import interval
from diffews.evaluation.published import PUBLISHED, FoldScores
from diffews.evaluation.records import Record, resample
from diffews.runtime.files import read_json

# what the runs of one row need not have in common, since it goes with the fold
BY_FOLD = ("benchmark", "fold", "shots", "weight_sha256", "base_sha256", "list_sha256")
BUILT_IN = ("coco20i", "pascal5i", "fss1000")  # whose published list is known without data
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
    folders: Sequence[Path], compared: Sequence[str], style: str, setting: str = "all"
) -> str:
    """Returns a table for each benchmark: published rows, our rows, their difference to the paper.

    Args:
        folders: of finished evaluations.
        compared: entries of result.json that change a score; the runs of a row agree in them, but
            for those that go with the fold.
        style: "md", "csv" or "latex".
        setting: which published rows, "strict", "in-context" or "all".

    Raises:
        InputError: for runs that cannot stand in one mean, naming what differs.

    """
    runs = [read_run(folder) for folder in folders]
    compared = ["episodes", "list", "variant", *(key for key in compared if key not in BY_FOLD)]
    taken: dict[tuple[str, str, int, int], Run] = {}
    for run in runs:
        place = (run.method, run.benchmark, run.fold, run.shots)
        if (other := taken.setdefault(place, run)) is not run:
            paths = f"{run.path} and {other.path}"
            raise InputError(f"{paths} are the same weights, fold and shots; give one")

    parts = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        shown = [run for run in runs if run.benchmark == benchmark]
        shots = sorted({run.shots for run in shown})
        folds = max(1, BENCHMARKS[benchmark][2] or max(run.fold for run in shown) + 1)
        columns = [*(f"F{fold}" for fold in range(folds)), "mean"]
        header = ["method", *(f"{n}-shot {column}" for n in shots for column in columns), "source"]

        # published rows first, then a few rows for each weight dir
        rows, theirs, notes = [], {}, []
        for entry in PUBLISHED:
            if entry.benchmark != benchmark or setting not in ("all", entry.setting):
                continue
            notes += [entry.note] if entry.note else []
            name = f"{entry.method}, {entry.setting}"
            theirs[name] = _in_columns(entry.scores, shots, folds)
            cells = ("" if score is None else f"{score:.1f}" for score in theirs[name])
            rows.append([name, *cells, entry.source])
        for method in dict.fromkeys(run.method for run in shown):
            of_method = [run for run in shown if run.method == method]
            _check_row(of_method, compared)
            rows += _our_rows(of_method, theirs, shots, folds)

        notes += [f"ours: {note}" for note in dict.fromkeys(map(_protocol_note, shown))]
        parts.append(STYLES[style](benchmark, header, rows, notes))
    return "\n\n".join(parts)


def read_run(folder: Path) -> Run:
    """Reads result.json and episodes.jsonl of an evaluation.

    Raises:
        InputError: where there is no finished evaluation.

    """
    result = read_json(folder / "result.json")
    named = ("benchmark", "fold", "shots", "miou", "fb_iou", "class_ids")
    try:
        lines = (folder / "episodes.jsonl").read_text().splitlines()[: result["episodes"]]
        records = [json.loads(line) for line in lines]
        if len(records) != result["episodes"] or result["benchmark"] not in BENCHMARKS:
            raise ValueError(f"{len(records)} of {result['episodes']} episodes")

        return Run(
            **{name: result[name] for name in named}, path=folder, records=records,
            method=_method(Path(str(result["config"]["weight"]))),
            result=result | {"list": _list_name(result)},
            samples=resample(records, result["class_ids"]))
    except (KeyError, OSError, ValueError, IndexError, TypeError) as error:
        cure = "run `diffews eval` into it"
        raise InputError(f"{folder} is no finished evaluation ({error!r}); {cure}") from None


def _method(weight: Path) -> str:
    """Names a row: the weight dir without its fold, looked for above `unet` and `checkpoint-N`."""
    while re.fullmatch(r"unet|checkpoint-\d+", weight.name) and weight.parent != weight:
        weight = weight.parent
    return re.sub(r"_fold\d+$", "", weight.name)


def _list_name(result: dict[str, Any]) -> str:
    """Says whether the run's episodes are the published ones."""
    benchmark, config = result["benchmark"], result["config"]
    if benchmark not in BUILT_IN:
        return "from the data folder"
    shown = load_benchmark(benchmark, "", result["fold"], shots=result["shots"], splits="builtin")
    if shown.episodes[: result["episodes"]].sha256 == result["episodes_sha256"]:
        return "published"
    made = [f"{k}={config[k]}" for k in ("episodes_file", "drawn_shots") if config.get(k)]
    return ", ".join(["not the published one", *made])


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
    runs: list[Run], theirs: dict[str, Columns], shots: list[int], folds: int
) -> list[Row]:
    """Returns the row of a weight dir, and its differences to each published row of DiffewS."""
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

    return [
        [f"{runs[0].method} (ours)", *map(_with_interval, ours), "measured here"],
        *([f"{runs[0].method} minus {name}", *map(_difference, ours, columns), "difference"]
          for name, columns in theirs.items() if name.startswith("DiffewS"))]


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
    made = f"{episodes} episodes a fold, image size {size}, list: {name}"
    quoted = "all other rows are quoted from their source"
    return f"{made}, 95 % bootstrap intervals over episodes; {quoted}"


def _markdown(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join([f"### {title}", "", *lines, "", *(f"- {note}" for note in notes)])


def _csv(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    text = io.StringIO()
    lines = [["benchmark", *header], *([title, *row] for row in rows)]
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().rstrip("\n")


def _latex(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    head, *body = (
        " & ".join(re.sub(r"([&%_#])", r"\\\1", cell) for cell in row) + r" \\"
        for row in (header, *rows))
    columns = "l" + "r" * (len(header) - 2) + "l"
    return "\n".join([
        f"% {title}", f"\\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes)])


Style = Callable[[str, Row, list[Row], list[str]], str]  # title, header, rows, notes
STYLES: dict[str, Style] = {"md": _markdown, "csv": _csv, "latex": _latex}
