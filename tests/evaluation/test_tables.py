"""Tables: our scores beside the published ones, and runs that do not go together."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import diffews
from diffews.cli.main import main
from diffews.data.registry import load_benchmark
from diffews.data.weak_masks import PROMPTS
from diffews.evaluation.published import PUBLISHED
from diffews.evaluation.records import summarize

pytest_plugins = ("benchmark_fixtures",)

SCRIPT = Path(diffews.__file__).parent.parent / "scripts" / "reproduce_tables.sh"
PAPER_TABLE_2 = """
HSNet     37.2 44.1 42.4 41.3 41.2   45.9 53.0 51.8 47.1 49.5
CyCTR     38.9 43.0 39.6 39.8 40.3   41.1 48.9 45.2 47.0 45.6
VAT       39.0 43.8 42.6 39.7 41.3   44.1 51.1 50.2 46.1 47.9
BAM       43.4 50.6 47.5 43.4 46.2   49.3 54.2 51.6 49.6 51.2
DCAMA     49.5 52.7 52.8 48.7 50.9   55.4 60.3 59.9 57.5 58.3
HDMNet    43.8 55.3 51.6 49.4 50.0   50.6 61.6 55.7 56.0 56.0
DiffewS   47.7 56.4 51.9 48.7 51.2   52.0 63.0 54.5 54.3 56.0
DiffewS-n 47.1 56.6 53.8 48.3 52.2   57.3 66.5 60.3 58.8 60.7
"""
PAPER_TABLE_1 = {
    ("SegGPT", "coco20i"): (56.1, 67.9),
    ("SegGPT", "pascal5i"): (83.2, 89.8),
    ("SegGPT", "lvis92i"): (18.6, 25.4),
    ("Matcher", "coco20i"): (52.7, 60.7),
    ("Matcher", "pascal5i"): (67.9, 75.6),
    ("Matcher", "lvis92i"): (33.0, 40.0),
    ("DiffewS", "coco20i"): (71.3, 72.2),
    ("DiffewS", "pascal5i"): (88.3, 87.8),
    ("DiffewS", "lvis92i"): (31.4, 35.4),
}
QUOTED_BY_SANSA = {
    ("lvis92i", "strict"): (33.9, 43.7),
    ("fss1000", "strict"): (90.2, 90.6),
    ("fss1000", "in-context"): (87.8, 88.0),
    ("pascal_part", "in-context"): (34.0,),
    ("paco_part", "in-context"): (22.8,),
}


# ---- published scores ----


def means(entry):
    return tuple(mean for _, mean in entry.scores.values())


def test_table_2_is_the_papers():
    rows = [line.split() for line in PAPER_TABLE_2.split("\n") if line]
    table_2 = [e for e in PUBLISHED if "table 2" in e.source]
    assert [entry.method for entry in table_2] == [row[0] for row in rows]
    for entry, row in zip(table_2, rows, strict=True):
        one, five = (tuple(float(cell) for cell in row[i : i + 5]) for i in (1, 6))
        assert entry.scores == {1: (one[:4], one[4]), 5: (five[:4], five[4])}
        assert "2410.02369" in entry.source and "table 2" in entry.source


def test_table_1_is_the_papers():
    table_1 = [e for e in PUBLISHED if e.setting == "in-context" and "table 1" in e.source]
    assert {(e.method, e.benchmark): means(e) for e in table_1} == PAPER_TABLE_1
    assert all(tuple(e.scores) == (1, 5) and "2410.02369" in e.source for e in table_1)


def test_the_rows_of_boxes_scribbles_and_points_are_sansas():
    rows = {e.method: means(e) for e in PUBLISHED if e.method.startswith("SANSA")}
    assert list(rows.values()) == [(60.2,), (54.3,), (53.1,), (53.4,)]
    prompts = [name.partition("prompt=")[2] for name in rows]
    assert tuple(prompt or "mask" for prompt in prompts) == PROMPTS


def test_scores_that_a_later_paper_quotes_name_that_paper():
    quoted = [e for e in PUBLISHED if "quoted" in e.source]
    assert all("2505.21795" in e.source for e in quoted)
    assert {(e.benchmark, e.setting): means(e) for e in quoted} == QUOTED_BY_SANSA
    assert {e.method for e in quoted} == {"DiffewS"}
    assert len(PUBLISHED) == len(quoted) + len(PAPER_TABLE_1) + 8 + len(PROMPTS)


def test_a_printed_mean_that_does_not_follow_from_its_folds_has_a_note():
    off = [
        (e.method, shots)
        for e in PUBLISHED
        for shots, (folds, mean) in e.scores.items()
        if folds and abs(np.mean(folds) - mean) > 0.0501
    ]
    assert off == [("DiffewS-n", 1)]
    noted = [e for e in PUBLISHED if e.note]
    assert [e.method for e in noted] == ["DiffewS-n"]
    assert "52.2" in noted[0].note and "51.45" in noted[0].note


# ---- runs ----


@pytest.fixture(scope="module")
def weights(weight, tmp_path_factory):
    """Four weight dirs, named as the released ones are."""
    folder = tmp_path_factory.mktemp("weights")
    for fold in range(4):
        shutil.copytree(weight, folder / f"coco_fold{fold}")
    return folder


@pytest.fixture(scope="module")
def evaluated(weights, base, coco, tmp_path_factory):
    """evaluated(fold, shots, *words): an evaluation, made once and never written to."""
    made = {}

    def call(fold, shots=1, *words):
        key = (fold, shots, *words)
        if key not in made:
            out = tmp_path_factory.mktemp("run") / f"coco20i_fold{fold}_{shots}shot"
            given = [f"base={base}", f"data={coco}", "image_size=32", "workers=0", "episodes=3"]
            given += [f"shots={shots}", f"weight={weights / f'coco_fold{fold}'}", f"out={out}"]
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                assert main(["eval", *given, *words]) == 0
            made[key] = out
        return made[key]

    return call


@pytest.fixture(scope="module")
def four_folds(evaluated):
    return [evaluated(fold) for fold in range(4)]


@pytest.fixture
def table(run):
    """table(folders, *words): what the command prints."""

    def call(folders, *words):
        outcome = run("table", f"runs={','.join(map(str, folders))}", *words)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        return outcome.out

    return call


@pytest.fixture
def refused_table(refused):
    return lambda *folders: refused("table", f"runs={','.join(map(str, folders))}")


def rows(markdown):
    """First cell -> the other cells, of the one table in the text."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1 and len({row[0] for row in cells}) == len(cells)
    return {row[0]: row[1:] for row in cells}


def by_hand(folder):
    """mIoU in percent, and its 1000 bootstrap resamples, from the lines of episodes.jsonl alone."""
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    fold = int(folder.name[len("coco20i_fold")])

    def iou(episodes):
        return sum(e["inter"][1] for e in episodes) / max(sum(e["union"][1] for e in episodes), 1)

    classes = [[e for e in lines if e["class_id"] == c] for c in range(fold, 80, 4)]
    generator, resamples = np.random.default_rng(0), np.zeros(1000)
    for episodes in filter(None, classes):  # drawn within each class
        drawn = generator.integers(len(episodes), size=(1000, len(episodes)))
        resamples += [iou([episodes[i] for i in row]) for row in drawn]
    return 100 * sum(map(iou, classes)) / 20, 100 * resamples / 20


def cell(value, samples):
    return f"{value:.1f} [{np.percentile(samples, 2.5):.1f}, {np.percentile(samples, 97.5):.1f}]"


@pytest.fixture
def paper_run(tmp_path):
    """paper_run(fold, shots, **changes): a run of the published list at 512 px, never computed."""

    def call(fold, shots=1, name="coco", **changes):
        shown = load_benchmark("coco20i", "", fold=fold, shots=shots, splits="builtin", episodes=40)
        random, records = np.random.default_rng(fold), []
        for index, episode in enumerate(shown.episodes):
            class_id, query, supports = episode.names()
            inter = random.integers(100, 1000, 2)
            union = inter + random.integers(0, 1000, 2)
            record = {"index": index, "class_id": class_id, "query": query, "supports": supports}
            records.append(record | {"inter": inter.tolist(), "union": union.tolist()})
        out = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}" / f"coco20i_fold{fold}"
        out.mkdir(parents=True)
        (out / "episodes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        about = {"benchmark": "coco20i", "fold": fold, "shots": shots, "image_size": 512}
        about |= {"config": {"weight": f"weight/{name}_fold{fold}"}, "threshold": 0.25}
        result = summarize(records, shown.class_names) | about | changes
        (out / "result.json").write_text(json.dumps(result))
        return out

    return call


# ---- our scores ----


@pytest.mark.parametrize("measured", [True, False])
def test_folds_mean_and_intervals_are_those_of_the_episodes(request, table, paper_run, measured):
    """Of real runs on another list, and of runs that compare with the published rows."""
    made = request.getfixturevalue("four_folds") if measured else map(paper_run, range(4))
    four_folds = list(made)
    hand = [by_hand(folder) for folder in four_folds]
    mean = np.mean([miou for miou, _ in hand])
    samples = np.mean([samples for _, samples in hand], axis=0)
    assert all(miou > 0 for miou, _ in hand) and any(np.ptp(samples) > 0 for _, samples in hand)
    text = table(four_folds)
    found = rows(text)
    assert found["method"] == [*(f"1-shot F{fold}" for fold in range(4)), "1-shot mean", "source"]
    ours = [*(cell(*one) for one in hand), cell(mean, samples)]
    assert found["coco (ours)"] == [*ours, "measured here"]
    if measured:
        assert not any("minus" in name for name in found)
        assert "no difference to the published rows" in text
        return

    theirs = [47.7, 56.4, 51.9, 48.7, 51.2]
    ours = [*(miou for miou, _ in hand), mean]
    differences = [f"{a - b:+.1f}" for a, b in zip(ours, theirs, strict=True)]
    assert found["coco minus DiffewS, strict"] == [*differences, "difference"]
    to_in_context = [*[""] * 4, f"{mean - 71.3:+.1f}", "difference"]
    assert found["coco minus DiffewS, in-context"] == to_in_context
    assert found["coco minus DiffewS-n, strict"][4] == f"{mean - 52.2:+.1f}"
    assert not any(name.startswith("coco minus HSNet") for name in found)


def test_quoted_rows_are_marked_with_their_source(table, four_folds):
    text = table(four_folds)
    found = rows(text)
    source = "DiffewS paper (arXiv 2410.02369), table 2"
    assert found["HSNet, strict"] == ["37.2", "44.1", "42.4", "41.3", "41.2", source]
    source = "DiffewS paper (arXiv 2410.02369), table 1"
    assert found["SegGPT, in-context"] == [*[""] * 4, "56.1", source]
    assert found["DiffewS-n, strict"][4] == "52.2" and "51.45" in text
    for note in ("3 episodes a fold", "image size 32", "95 % bootstrap", "quoted"):
        assert note in text
    assert [name for name in found if name.endswith("(ours)")] == ["coco (ours)"]


def test_shots_stand_side_by_side_and_a_missing_fold_leaves_the_mean_empty(table, evaluated):
    found = rows(table([evaluated(0), evaluated(2), evaluated(0, 5)]))
    shots = [[*(f"{n}-shot F{fold}" for fold in range(4)), f"{n}-shot mean"] for n in (1, 5)]
    assert found["method"] == [*shots[0], *shots[1], "source"]
    ours = found["coco (ours)"]
    hand = {n: by_hand(evaluated(*n)) for n in [(0, 1), (2, 1), (0, 5)]}
    assert ours[:5] == [cell(*hand[0, 1]), "", cell(*hand[2, 1]), "", ""]
    assert ours[5:10] == [cell(*hand[0, 5]), "", "", "", ""]
    assert not any("minus" in name for name in found)
    assert found["DiffewS, strict"][4:10] == ["51.2", "52.0", "63.0", "54.5", "54.3", "56.0"]


def test_the_order_of_the_runs_changes_nothing(table, evaluated):
    assert table([evaluated(2), evaluated(0)]) == table([evaluated(0), evaluated(2)])


def test_a_setting_chooses_the_published_rows(table, evaluated):
    settings = ("strict", "in-context", "all")
    published = {s: set(rows(table([evaluated(0)], f"setting={s}"))) for s in settings}
    assert published["strict"] | published["in-context"] == published["all"]
    assert published["strict"] & published["in-context"] == {"method", "coco (ours)"}
    assert "HSNet, strict" in published["strict"]
    assert "Matcher, in-context" in published["in-context"]


def test_every_weight_dir_has_its_own_row_and_every_benchmark_its_own_table(
    table, evaluated, weights, bench, tmp_path
):
    other = shutil.copytree(weights / "coco_fold0", tmp_path / "other_fold0")
    again = evaluated(0, 1, f"weight={other}")
    lvis = evaluated(0, 1, "benchmark=lvis92i", f"data={bench}")
    text = table([evaluated(0), again, lvis])
    first, second = re.split(r"\n\n(?=### )", text)
    assert first.startswith("### coco20i\n") and second.startswith("### lvis92i\n")
    found = rows(first)
    assert found["other (ours)"] == found["coco (ours)"]
    found = rows(second)
    assert found["method"] == [*(f"1-shot F{fold}" for fold in range(10)), "1-shot mean", "source"]
    source = "quoted for DiffewS by SANSA (arXiv 2505.21795)"
    assert found["DiffewS, strict"] == [*[""] * 10, "33.9", source]
    assert found["Matcher, in-context"][10] == "33.0" and found["coco (ours)"][10] == ""


def test_rows_of_other_sizes_say_their_own(table, evaluated, weights, tmp_path):
    other = shutil.copytree(weights / "coco_fold0", tmp_path / "small_fold0")
    text = table([evaluated(0), evaluated(0, 1, f"weight={other}", "image_size=64")])
    assert "image size 64" in text and "image size 32" in text


# ---- formats ----


def test_csv_holds_the_same_cells(table, evaluated):
    folders = [evaluated(0), evaluated(2)]
    lines = list(csv.reader(io.StringIO(table(folders, "format=csv"))))
    assert {line[0] for line in lines[1:]} == {"coco20i"} and lines[0][0] == "benchmark"
    assert {line[1]: line[2:] for line in lines} == rows(table(folders))


def test_latex_holds_the_same_cells_escaped(table, evaluated, weights, tmp_path):
    other = shutil.copytree(weights / "coco_fold0", tmp_path / "my_own_fold0")
    folders = [evaluated(0, 1, f"weight={other}")]
    text = table(folders, "format=latex")
    body = text.split("\\toprule\n")[1].split("\n\\bottomrule")[0].replace("\\midrule\n", "")
    lines = [line.removesuffix(" \\\\") for line in body.splitlines()]
    assert all(line.endswith(" \\\\") for line in body.splitlines())
    cells = [
        [re.sub(r"\\([&%_#])", r"\1", c.strip()) for c in re.split(r"(?<!\\)&", line)]
        for line in lines
    ]
    assert {row[0]: row[1:] for row in cells} == rows(table(folders))
    assert "my\\_own (ours)" in body and not re.search(r"(?<!\\)[_%#]", body)
    columns = re.search(r"\\begin{tabular}{([lr]+)}", text)[1]
    assert len(columns) == len(cells[0])
    assert all(line.startswith("%") for line in text.split("\\end{tabular}\n")[1].splitlines())


def test_an_unknown_format_or_setting_is_refused(refused, evaluated):
    assert "format='markdown'" in refused("table", f"runs={evaluated(0)}", "format=markdown")
    assert "setting='loose'" in refused("table", f"runs={evaluated(0)}", "setting=loose")
    assert "runs=" in refused("table")


# ---- runs that do not go together ----


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("image_size=64", "image_size: 32 and 64"),
        ("threshold=0.3", "threshold: 0.25 and 0.3"),
        ("threshold_rule=paper", "threshold_rule: reference and paper"),
        ("dtype=bf16", "dtype: fp32 and bf16"),
        ("episodes=2", "episodes: 3 and 2"),
    ],
)
def test_runs_of_other_settings_have_rows_of_their_own(refused, table, evaluated, word, says):
    folders = [evaluated(0), evaluated(1, 1, word)]
    key, one, other = re.match(r"(.*): (.*) and (.*)", says).groups()
    found = rows(table(folders))
    first, second = (found[f"coco, {key}={value} (ours)"] for value in (one, other))
    assert first[0] and not first[1] and second[1] and not second[0]
    # one name for both is refused
    runs = f"runs={folders[0]},{folders[1]}"
    message = refused("table", runs, "names=mine,mine")
    assert says in message and all(str(folder) in message for folder in folders)


def test_runs_are_named(refused, table, paper_run):
    runs = [paper_run(0), paper_run(1), paper_run(0, threshold=0.3)]
    found = rows(table(runs, "names=plain,plain,higher"))
    assert [bool(cell) for cell in found["plain (ours)"][:5]] == [True, True, False, False, False]
    assert found["higher (ours)"][0] == found["plain (ours)"][0] and not found["higher (ours)"][1]
    for words in ("names=one", "names=a,b,c,d"):
        assert "names=" in refused("table", f"runs={','.join(map(str, runs))}", words)


def test_different_settings_of_the_shots_make_rows_too(table, evaluated):
    found = rows(table([evaluated(0), evaluated(0, 5, "image_size=64")]))
    assert {"coco, image_size=32 (ours)", "coco, image_size=64 (ours)"} <= set(found)


# ---- what compares with the papers ----


@pytest.mark.parametrize(
    "changes", [{"image_size": 1024}, {"benchmark": "pascal5i"}, {"benchmark": "lvis92i"}]
)
def test_other_sizes_and_lists_have_no_difference_to_the_papers(table, paper_run, changes):
    assert any("minus DiffewS" in name for name in rows(table([paper_run(0)])))
    text = table([paper_run(0, **changes)])
    assert "minus" not in text and "no difference to the published rows" in text


def test_weights_that_saw_the_novel_classes_are_marked(table, paper_run):
    text = table([paper_run(0), paper_run(1, seen_classes=["dog"] * 20)])
    found = rows(text)
    assert "coco (ours)" not in found and "coco (ours, SAW NOVEL CLASSES)" in found
    assert "fold 1, 1-shot: the weights were trained on 20 of the 20 novel classes" in text
    assert "coco minus DiffewS, strict" not in found and "coco minus DiffewS, in-context" in found


def test_names_from_data_are_shown_as_text(table, paper_run):
    for style in ("md", "csv", "latex"):
        words = [f"format={style}", "names=red\x1b[31m|\u202e"]
        text = table([paper_run(0)], *words)
        assert "\x1b" not in text and "\u202e" not in text and "x1b[31m" in text


def test_the_published_list_and_another_one_are_not_averaged(table, evaluated, coco, tmp_path):
    shown = load_benchmark("coco20i", tmp_path, fold=0, episodes=3)
    donor = coco / "COCO2014"
    image = next((donor / "val2014").iterdir())
    for episode in shown.episodes:  # any picture will do under the published names
        for sample in (episode.query, *episode.supports):
            mask = (donor / "annotations" / "val2014" / image.name).with_suffix(".png")
            targets = shown.benchmark.files(sample)
            for source, target in zip((image, mask), targets, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    published = evaluated(0, 1, f"data={tmp_path}", "splits=builtin")
    found = rows(table([published, evaluated(1)]))
    assert {"coco, list=published (ours)", "coco, list=not the published one (ours)"} <= set(found)


@pytest.mark.parametrize("how", ["drawn_shots", "episodes_file"])
def test_lists_that_were_made_differently_are_not_averaged(
    run, table, evaluated, coco, tmp_path, how
):
    word = "drawn_shots=3"
    if how == "episodes_file":
        file = tmp_path / "list.json"
        words = [f"data={coco}", "fold=1", "shots=1", "episodes=50", f"save={file}"]
        assert run("episodes", *words).code == 0
        content = json.loads(file.read_text())
        drawn = load_benchmark("coco20i", coco, fold=1, episodes_file=file).episodes
        drawn[30:33].save(file)
        assert json.loads(file.read_text()) != content
        word = f"episodes_file={file}"
    found = rows(table([evaluated(0), evaluated(1, 1, word)]))
    assert sum(name.startswith("coco, list=not the published one") for name in found) == 2


def test_the_same_run_twice_is_refused(refused_table, evaluated):
    copy = evaluated(0, 1, "batch=2")
    message = refused_table(evaluated(0), copy)
    assert str(copy) in message and str(evaluated(0)) in message
    assert str(evaluated(0)) in refused_table(evaluated(0), evaluated(0))


@pytest.fixture
def copied_run(evaluated, tmp_path):
    return shutil.copytree(evaluated(0), tmp_path / "copy" / "coco20i_fold0_1shot")


def test_an_unfinished_run_is_refused(refused_table, copied_run):
    (copied_run / "result.json").unlink()
    assert str(copied_run) in refused_table(copied_run)
    shutil.rmtree(copied_run)
    assert str(copied_run) in refused_table(copied_run)


@pytest.mark.parametrize("kept", [0, 2])
def test_a_run_that_lost_episodes_is_refused(refused_table, copied_run, kept):
    file = copied_run / "episodes.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:kept]))
    assert str(copied_run) in refused_table(copied_run)
    file.unlink()
    assert str(copied_run) in refused_table(copied_run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda result: result.pop("miou"),
        lambda result: result.pop("config"),
        lambda result: result.update(config=None),
        lambda result: result.update(class_ids=None),
        lambda result: result.update(benchmark="mine"),
        lambda result: result.update(episodes="six"),
    ],
)
def test_a_damaged_result_is_refused(refused_table, copied_run, change, damage):
    change(copied_run / "result.json", damage)
    assert str(copied_run) in refused_table(copied_run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[1].update(inter=[-1, 0]),
        lambda lines: lines[1].update(inter=[1.0, 0]),
        lambda lines: lines[1].update(inter=[True, 0]),
        lambda lines: lines[1].update(inter=[10**30, 0], union=[10**30, 0]),
        lambda lines: lines[1].update(inter=[5, 5], union=[5, 4]),
        lambda lines: lines[1].update(union=[32 * 32 + 1, 32 * 32 + 1]),
        lambda lines: lines[1].update(class_id=1),
        lambda lines: lines[1].update(query=None),
        lambda lines: lines[1].update(query="another.jpg"),
        lambda lines: lines[1].update(supports=[]),
        lambda lines: lines[1].update(inter=lines[1]["union"]),
        lambda lines: lines.insert(1, lines[0]),
        lambda lines: lines.append(lines[-1]),
        lambda lines: lines.reverse(),
        lambda lines: lines.append({}),
    ],
)
def test_a_record_that_cannot_be_is_refused(refused_table, copied_run, damage):
    file = copied_run / "episodes.jsonl"
    lines = [json.loads(line) for line in file.open()]
    damage(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert str(copied_run) in refused_table(copied_run)


def test_swapped_episodes_with_new_indices_are_refused(refused_table, copied_run):
    file = copied_run / "episodes.jsonl"
    lines = [json.loads(line) for line in file.open()][::-1]
    lines = [line | {"index": index} for index, line in enumerate(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = refused_table(copied_run)
    assert str(copied_run) in message and "episodes_sha256" in message


@pytest.mark.parametrize("key", ["miou", "fb_iou", "per_class", "episodes_sha256"])
def test_figures_that_are_not_those_of_the_records_are_refused(
    refused_table, copied_run, change, key
):
    wrong = {"miou": 71.3, "fb_iou": float("nan"), "episodes_sha256": "0" * 64}

    def damage(result):
        names = dict.fromkeys(result["per_class"], 99.9)
        result[key] = wrong.get(key, names)

    change(copied_run / "result.json", damage)
    message = refused_table(copied_run)
    assert str(copied_run) in message and key in message


def test_a_truncated_result_or_record_is_refused(refused_table, copied_run):
    for name in ("episodes.jsonl", "result.json"):
        file = copied_run / name
        file.write_bytes(file.read_bytes()[:-40])
        assert str(copied_run) in refused_table(copied_run)


def test_a_run_of_the_shipped_weights_has_a_name(
    run, table, weights, base, coco, tmp_path, monkeypatch
):
    shutil.copytree(weights / "coco_fold0", tmp_path / "weight" / "tiny" / "shapes_fold0")
    monkeypatch.setattr("diffews.cli.opening.CHECKOUT", tmp_path)  # where the shipped weights lie
    words = [f"base={base}", f"data={coco}", "image_size=64", "episodes=2", "workers=0"]
    assert run("eval", *words, f"out={tmp_path / 'out'}").code == 0
    assert "shapes (ours)" in rows(table([tmp_path / "out"]))


# ---- reproduce_tables.sh ----


def script(*words, python, **options):
    environment = {**os.environ, "PYTHON": str(python), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *map(str, words)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        **options,
    )


def planned(*words, python="echo"):
    """What the script would run; echo in the place of python prints what it is given."""
    process = script(*words, python=python)
    out, err = process.communicate(timeout=60)
    calls = [line for line in err.splitlines() if line.startswith("-m diffews eval ")]
    return process.returncode, out, calls


@pytest.fixture
def folders(tmp_path):
    """Empty folders where weights and data would lie."""
    for name in [f"coco_fold{fold}" for fold in range(4)] + ["incontext"]:
        (tmp_path / "weights" / name).mkdir(parents=True)
    for name in ("COCO2014", "VOC2012", "LVIS"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path


def script_words(folders):
    return [f"weights={folders / 'weights'}", f"data={folders / 'data'}", f"out={folders / 'out'}"]


def test_the_script_runs_every_fold_and_shot_of_tables_1_and_2(folders):
    code, out, calls = planned(*script_words(folders), "episodes=7")
    assert code == 0 and "missing" not in out
    runs = []
    for call in calls:
        keys = dict(word.split("=", 1) for word in call.split()[3:])
        assert keys["episodes"] == "7" and keys["data"] == str(folders / "data")
        place = int(keys["fold"]), int(keys["shots"])
        runs.append((Path(keys["weight"]).name, keys["benchmark"], *place))
    strict = {(f"coco_fold{fold}", "coco20i", fold, shots) for fold in range(4) for shots in (1, 5)}
    plan = {"coco20i": 4, "pascal5i": 4, "lvis92i": 10}
    incontext = {
        ("incontext", name, f, n)
        for name, folds in plan.items()
        for f in range(folds)
        for n in (1, 5)
    }
    assert set(runs) == strict | incontext and len(runs) == 8 + 36
    assert len({re.search(r" out=(\S+)", call)[1] for call in calls}) == len(calls)

    tables = [line for line in out.splitlines() if line.startswith("-m diffews table ")]
    assert [re.search("setting=(.*?) ", line)[1] for line in tables] == ["strict", "in-context"]
    assert [len(line.split("runs=")[1].split(",")) for line in tables] == [8, 36]
    assert out.index("Table 2") < out.index(tables[0]) < out.index("Table 1") < out.index(tables[1])


def test_the_script_says_what_is_missing(folders):
    (folders / "weights" / "coco_fold2").rmdir()
    (folders / "data" / "LVIS").rmdir()
    code, out, calls = planned(*script_words(folders))
    assert code == 0 and len(calls) == 6 + 16
    for name in ("weights/coco_fold2", "data/LVIS"):
        assert f"missing, so left out: {folders / name}\n" in out
    shutil.rmtree(folders / "weights" / "incontext")
    code, out, calls = planned(*script_words(folders))
    assert code == 0 and len(calls) == 6 and "Table 1" not in out
    assert f"missing, so left out: {folders / 'weights' / 'incontext'}\n" in out


def test_the_script_says_that_the_pictures_are_missing(folders):
    (folders / "data" / "COCO2014").rmdir()
    code, out, calls = planned(*script_words(folders))
    assert code == 0 and not any("benchmark=coco20i" in call for call in calls)
    assert out.count(f"missing, so left out: {folders / 'data' / 'COCO2014'}\n") == 1


def test_the_script_has_nothing_to_do_without_weights(folders):
    shutil.rmtree(folders / "weights")
    code, out, calls = planned(*script_words(folders))
    assert code == 2 and not calls and out.count("missing, so left out: ") == 5


def test_the_script_goes_on_after_a_run_that_failed_and_names_it(folders, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *coco_fold1*shots=5*) exit 2 ;; esac\necho "$@"\n')
    python.chmod(0o755)
    _, out, calls = planned(*script_words(folders), python=python)
    assert len(calls) == 43
    strict = next(line for line in out.splitlines() if "setting=strict" in line)
    assert len(strict.split("runs=")[1].split(",")) == 7 and "coco20i_fold1_5shot" not in strict
    said = [line for line in out.splitlines() if not line.startswith("-m ")]
    assert any("coco20i_fold1_5shot" in line for line in said)


@pytest.mark.slow
def test_the_script_goes_on_after_an_interruption_and_refuses_another_size(
    weights, base, coco, tmp_path
):
    for fold in (0, 1):
        shutil.copytree(weights / f"coco_fold{fold}", tmp_path / "weights" / f"coco_fold{fold}")
    out = tmp_path / "out"
    words = [f"weights={tmp_path / 'weights'}", f"data={coco}", f"out={out}", f"base={base}"]
    words += ["episodes=2", "image_size=64", "workers=0"]
    process = script(*words, python=sys.executable)
    first = out / "coco_fold0" / "coco20i_fold0_1shot"
    while not (first / "result.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the script and what it runs
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (out / "coco_fold1" / "coco20i_fold1_5shot" / "result.json").exists()
    records = (first / "episodes.jsonl").read_bytes()

    process = script(*words, python=sys.executable)
    printed, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert (first / "episodes.jsonl").read_bytes() == records and len(records.splitlines()) == 2
    found = rows(printed)
    ours = found["coco (ours)"]
    assert [bool(text) for text in ours[:10]] == [True, True, False, False, False] * 2
    assert not any("minus" in name for name in found)
    for name in ("coco_fold2", "coco_fold3", "incontext"):
        assert f"missing, so left out: {tmp_path / 'weights' / name}" in printed

    words[words.index("image_size=64")] = "image_size=32"
    process = script(*words, python=sys.executable)
    printed, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "(ours)" not in printed
    assert "image_size: 64 there, 32 now" in err
