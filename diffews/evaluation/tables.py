"""Tables in the shape of the paper's, from result.json files, beside the published figures."""

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
from diffews.evaluation.metrics import bootstrap_samples, interval
from diffews.evaluation.published import PUBLISHED, Published
from diffews.runtime.files import read_json

MODEL_KEYS = ("variant", "encoder_sha256", "decoder_sha256", "denoising_steps", "ensemble", "kv_sampling")
PROTOCOL = ("image_size", "episodes", "threshold", "threshold_rule", "dtype", "list", *MODEL_KEYS)
BUILT_IN = ("coco20i", "pascal5i", "fss1000")  # benchmarks whose published list is known without data
Row = list[str]


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
    queries: list[str]
    records: list[dict[str, Any]]  # the lines of episodes.jsonl
    result: dict[str, Any]  # result.json as it stands
    samples: np.ndarray  # bootstrap resamples of the mIoU
    protocol: dict[str, Any]


def table(folders: Sequence[Path], style: str, setting: str = "all") -> str:
    """Returns one table for each benchmark that was run: published rows, our rows, and differences to the paper's.

    style: "md", "csv" or "latex". setting: which published rows, "strict", "in-context" or "all".

    Raises:
        InputError: for runs that cannot stand in one mean, naming what differs.

    """
    runs = [read_run(folder) for folder in folders]
    taken: dict[tuple[str, str, int, int], Run] = {}
    for run in runs:
        place = (run.method, run.benchmark, run.fold, run.shots)
        if place in taken:
            raise InputError(f"{run.path} and {taken[place].path} are the same weights, fold and shots; give one")
        taken[place] = run
    parts = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        own = [run for run in runs if run.benchmark == benchmark]
        shots = sorted({run.shots for run in own})
        folds = max(1, BENCHMARKS[benchmark][2] or max(run.fold for run in own) + 1)
        header = ["method", *(f"{n}-shot {f}" for n in shots for f in [*(f"F{i}" for i in range(folds)), "mean"])]
        published = [e for e in PUBLISHED if e.benchmark == benchmark and setting in ("all", e.setting)]
        rows = [_published_row(entry, shots, folds) for entry in published]
        for method in dict.fromkeys(run.method for run in own):
            rows += _own_rows(method, [run for run in own if run.method == method], published, shots, folds)
        notes = [entry.note for entry in published if entry.note] + [
            f"ours: {note}" for note in dict.fromkeys(_protocol_note(run) for run in own)
        ]
        parts.append(STYLES[style](benchmark, [*header, "source"], rows, notes))
    return "\n\n".join(parts)


def read_run(folder: Path) -> Run:
    """Reads result.json and episodes.jsonl of an evaluation."""
    result = read_json(folder / "result.json")
    try:
        lines = (folder / "episodes.jsonl").read_text().splitlines()[: result["episodes"]]
        records = [json.loads(line) for line in lines]
        if len(records) != result["episodes"] or result["benchmark"] not in BENCHMARKS:
            raise ValueError(f"{len(records)} of {result['episodes']} episodes")
        inter, union = (np.array([record[part][1] for record in records]) for part in ("inter", "union"))
        samples = bootstrap_samples([r["class_id"] for r in records], result["class_ids"], inter, union)
        weight = str(result["config"]["weight"])
        return Run(
            path=folder,
            method=_method(Path(weight)),
            benchmark=result["benchmark"],
            fold=result["fold"],
            shots=result["shots"],
            miou=result["miou"],
            fb_iou=result["fb_iou"],
            class_ids=result["class_ids"],
            queries=[record["query"] for record in records],
            records=records,
            result=result,
            samples=samples,
            protocol={**{key: result[key] for key in PROTOCOL if key in result}, "list": _list_name(result)},
        )
    except (KeyError, OSError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{folder} is no finished evaluation ({error!r}); run `diffews eval` into it") from None


def _method(weight: Path) -> str:
    """Names a row: the weight dir without its fold, looked for above `unet` and `checkpoint-N`."""
    while re.fullmatch(r"unet|checkpoint-\d+", weight.name) and weight.parent != weight:
        weight = weight.parent
    return re.sub(r"_fold\d+$", "", weight.name)


def _list_name(result: dict[str, Any]) -> str:
    """Says whether the run's episodes are the published ones."""
    benchmark = result["benchmark"]
    if benchmark not in BUILT_IN:
        return "from the data folder"
    shown = load_benchmark(benchmark, "", result["fold"], shots=result["shots"], splits="builtin")
    same = shown.episodes[: result["episodes"]].sha256 == result["episodes_sha256"]
    made = [f"{k}={v}" for k in ("episodes_file", "drawn_shots") if (v := result["config"].get(k))]
    return "published" if same else ", ".join(["not the published one", *made])


def _own_rows(method: str, runs: list[Run], published: list[Published], shots: list[int], folds: int) -> list[Row]:
    for run in runs[1:]:
        differ = [k for k in PROTOCOL if run.protocol.get(k) != runs[0].protocol.get(k)]
        if differ:
            changes = ", ".join(f"{k}: {runs[0].protocol.get(k)} and {run.protocol.get(k)}" for k in differ)
            raise InputError(f"{runs[0].path} and {run.path} do not go into one table row ({changes})")
    found = {(run.shots, run.fold): run for run in runs}
    cells, figures = [], {}
    for count in shots:
        have = [found.get((count, fold)) for fold in range(folds)]
        cells += [_with_interval(run.miou, run.samples) if run else "" for run in have]
        complete = [run for run in have if run is not None]
        mean = float(np.mean([run.miou for run in complete])) if len(complete) == folds else None
        cells.append("" if mean is None else _with_interval(mean, np.mean([run.samples for run in complete], axis=0)))
        figures[count] = ([run.miou if run else None for run in have], mean)
    rows = [[f"{method} (ours)", *cells, "measured here"]]
    for entry in published:
        if not entry.method.startswith("DiffewS"):
            continue
        differences: Row = []
        for count in shots:
            theirs, their_mean = entry.figures.get(count, ((), None))
            for fold, value in enumerate(figures[count][0]):
                differences.append(_difference(value, theirs[fold] if theirs else None))
            differences.append(_difference(figures[count][1], their_mean))
        rows.append([f"{method} minus {entry.method}, {entry.setting}", *differences, "difference"])
    return rows


def _published_row(entry: Published, shots: list[int], folds: int) -> Row:
    cells = [f"{entry.method}, {entry.setting}"]
    for count in shots:
        theirs, mean = entry.figures.get(count, ((), None))
        cells += [f"{value:.1f}" for value in theirs] or [""] * folds
        cells.append("" if mean is None else f"{mean:.1f}")
    return [*cells, entry.source]


def _with_interval(value: float, samples: np.ndarray) -> str:
    low, high = interval(samples)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _difference(ours: float | None, theirs: float | None) -> str:
    return "" if ours is None or theirs is None else f"{ours - theirs:+.1f}"


def _protocol_note(run: Run) -> str:
    protocol = run.protocol
    settings = f"{protocol.get('episodes')} episodes a fold, image size {protocol.get('image_size')}"
    quoted = "all other rows are quoted from their source"
    return f"{settings}, list: {protocol['list']}, 95 % bootstrap intervals over episodes; {quoted}"


def _markdown(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def _csv(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["benchmark", *header], *([title, *row] for row in rows)])
    return text.getvalue().rstrip("\n")


def _latex(title: str, header: Row, rows: list[Row], notes: list[str]) -> str:
    def line(cells: Row) -> str:
        return " & ".join(re.sub(r"([&%_#])", r"\\\1", cell) for cell in cells) + r" \\"

    body = "\n".join([line(header), r"\midrule", *(line(row) for row in rows)])
    columns = "l" + "r" * (len(header) - 2) + "l"
    notes_line = "\n".join(f"% {note}" for note in notes)
    return (
        f"% {title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n{notes_line}"
    )


STYLES: dict[str, Callable[[str, Row, list[Row], list[str]], str]] = {"md": _markdown, "csv": _csv, "latex": _latex}
