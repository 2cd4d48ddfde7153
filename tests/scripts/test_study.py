"""The study's report: cells, verdicts and the picture from hand-made runs; nothing is trained."""

import json

import cv2
import numpy as np
import plan
import pytest
import report

from diffews.errors import InputError
from diffews.variants import GENERATIONS, INJECTIONS, INTERACTIONS, SUPERVISIONS, Variant

CLASSES, EACH = (3, 7), 21  # classes, and episodes of each; a multiple of 3


def write_run(evaluation, shares, sweep=None, query="q"):
    """Writes an evaluation.

    shares: IoU of each class in percent; a third of its episodes lies 5 above, one below.
    """

    def counts(values):
        wobble = [5 * (index // 2 % 3 - 1) for index in range(2 * EACH)]
        return [
            {"inter": [900, values[i % 2] + wobble[i]], "union": [950, 100]}
            for i in range(2 * EACH)
        ]

    swept = {name: counts(values) for name, values in (sweep or {}).items()}
    lines = []
    for index, own in enumerate(counts(shares)):
        record = {
            "index": index,
            "class_id": CLASSES[index % 2],
            "query": f"{query}{index}",
            "supports": [],
            **own,
        }
        if swept:
            record["sweep"] = {name: values[index] for name, values in swept.items()}
        lines.append(json.dumps(record) + "\n")
    evaluation.mkdir(parents=True)
    (evaluation / "episodes.jsonl").write_text("".join(lines))
    (evaluation / "result.json").write_text(
        json.dumps({"episodes": 2 * EACH, "class_ids": CLASSES})
    )
    (evaluation.parent / "cpu.json").write_text(json.dumps({"train": 3600.0, "eval": 360.0}))


def write_seeds(out, name, shares_by_seed):
    for seed, shares in enumerate(shares_by_seed):
        write_run(out / "runs" / name / f"seed{seed}" / "eval", shares)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    write_seeds(out, plan.DEFAULT, [(60, 40), (62, 40), (64, 40)])  # mIoU 50, 51, 52
    write_seeds(
        out, "kv_fusion-addition", [(30, 20), (32, 20), (34, 20)]
    )  # 25, 26, 27: clearly worse
    write_seeds(
        out, "black_foreground", [(80, 60), (82, 60), (84, 60)]
    )  # 70, 71, 72: clearly better
    write_seeds(
        out, "mask_over_image", [(60, 50), (62, 30), (64, 44)]
    )  # 55, 46, 54: cannot be told
    write_seeds(out, "qkv_fusion-concatenation", [(60, 40), (62, 40), (64, 41)])  # alike
    write_seeds(out, "noise_to_mask", [(10, 10)])  # one seed: no interval
    swept = {
        plan.DEFAULT_THRESHOLD: (80, 60),
        "relative 0.2": (70, 50),
        "absolute 0.15": (80, 62),
    }
    write_run(out / "shipped" / "thresholds" / "eval", (80, 60), swept)
    write_run(out / "shipped" / "shots5" / "eval", (70, 60))
    write_run(out / "shipped" / "shots5-sampled" / "eval", (80, 60))
    (out / "cache-x-filling").mkdir()
    (out / "cache-x-filling" / "cpu.json").write_text(json.dumps({"train": 1800.0}))
    return out


@pytest.fixture(scope="module")
def docs(out, tmp_path_factory):
    docs = tmp_path_factory.mktemp("docs")
    report.write_report(out, docs)
    return docs


def rows_of(docs):
    """Table rows of the page by their first cell; where two tables share it, the first's."""
    rows = {}
    for line in (docs / "study.md").read_text().splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line[1:-1].split("|"))
            rows.setdefault(name, cells)
    return rows


# ---- the page ----


def test_cells_are_the_mean_the_deviation_and_the_seeds(docs):
    rows = rows_of(docs)
    assert rows["**KV fusion, concatenation** (default)"][:3] == [
        "51.0 ± 1.0",
        "50.0, 51.0, 52.0",
        "0",
    ]
    assert rows["KV fusion, addition"][:2] == ["26.0 ± 1.0", "25.0, 26.0, 27.0"]
    assert rows["mask over image"][:2] == ["51.7 ± 4.9", "55.0, 46.0, 54.0"]
    assert rows["**relative 0.25** (default)"][0] == "70.0" and rows["absolute 0.15"][0] == "71.0"
    assert rows["5"] == ["65.0", "70.0", "72.2", "74.7"]


@pytest.mark.parametrize(
    ("row", "difference", "judged"),
    [
        (
            "KV fusion, addition",
            "-25.0 [-25.0, -25.0]",
            "holds",
        ),  # the same episodes: their noise cancels
        ("black foreground on image", "+20.0 [+20.0, +20.0]", "does not hold"),
        ("mask over image", "+0.7 [", "cannot be told"),
        ("QKV fusion, concatenation", "+0.2 [", "holds"),
        ("noise to mask", "-40.0", "cannot be told"),
        ("relative 0.2", "-10.0 [", "holds"),
        ("absolute 0.15", "+1.0 [", "does not hold"),
        ("relative 0.5", "-", "-"),
        ("5-shot sampled above 5-shot plain", "+5.0 [", "holds"),
    ],
)
def test_verdicts_follow_from_the_paired_difference(docs, row, difference, judged):
    *_, shown, _, verdict = rows_of(docs)[row]
    assert shown.startswith(difference) and verdict == judged


def test_missing_runs_are_shown_and_named(docs):
    rows, text = rows_of(docs), (docs / "study.md").read_text()
    assert rows["KV fusion, attention mask"] == ["-", "-, -, -", "-", "below", "-"]
    assert rows["noise to mask"][:2] == ["10.0", "10.0, -, -"]
    assert rows["1"][:2] == ["-", "-"]
    missing = " ".join(text[text.index("**Not finished:**") :].split("\n\n")[0].split())
    assert "`kv_fusion-attention_mask` (seeds 0, 1, 2)" in missing
    assert "`noise_to_mask` (seeds 1, 2)" in missing and "`shipped/shots1`" in missing
    assert "kv_fusion-addition" not in missing and "shipped/shots5`" not in missing


def test_the_summary_lists_each_claim_once_by_its_verdict(docs):
    text = (docs / "study.md").read_text()
    summary = text[text.index("## Where") : text.index("## Interaction")]
    parts = dict(
        zip(("holds", "fails", "open", "missing"), summary.split("\n\n**")[1:], strict=True)
    )
    assert "- KV fusion, addition below KV fusion, concatenation: -25.0" in parts["holds"]
    assert "- black foreground on image below white on black: +20.0" in parts["fails"]
    assert "- noise to mask below one step: -40.0" in parts["open"]
    assert "- real foreground on black below white on black\n" in parts["missing"]
    claims = [line for line in summary.splitlines() if line.startswith("- ")]
    assert len(claims) == len(set(claims)) == (10 + 1) + 3 + (3 + 2) + 9 + 4


def test_hours_are_added_up_by_kind(out):
    runs, hours = 5 * 3 + 1, report.cpu_hours(out)
    assert hours["training"] == pytest.approx(runs + 3) and hours["evaluation"] == pytest.approx(
        0.1 * (runs + 3)
    )
    assert hours["caches and pictures"] == pytest.approx(0.5)


def test_the_page_shows_the_picture(docs):
    picture = cv2.imread(str(docs / "study.png"))
    assert picture.shape[1] == 900 and (picture < 128).any()
    assert "](study.png)" in (docs / "study.md").read_text()


def test_the_report_is_the_same_bytes_again(out, docs, tmp_path):
    report.write_report(out, tmp_path)
    for name in ("study.md", "study.png"):
        assert (tmp_path / name).read_bytes() == (docs / name).read_bytes()


def test_a_report_of_nothing_says_so(tmp_path):
    report.write_report(tmp_path / "none", tmp_path)
    assert f"After {plan.STEPS} steps the default reaches -." in (tmp_path / "study.md").read_text()


def test_runs_of_other_episodes_are_refused(tmp_path):
    write_seeds(tmp_path, plan.DEFAULT, [(60, 40)])
    write_run(tmp_path / "runs" / "noise_to_mask" / "seed0" / "eval", (60, 40), query="other")
    with pytest.raises(
        InputError, match="noise_to_mask and kv_fusion-concatenation .* different episodes"
    ):
        report.write_report(tmp_path, tmp_path)


# ---- intervals and verdicts ----


def outcome(miou, samples):
    return report.Outcome(miou, np.array(samples), [])


def test_without_noise_of_episodes_the_interval_is_students():
    gaps = (1.0, 2.0, 6.0)
    first = [outcome(50 + gap, np.full(1000, 50 + gap)) for gap in gaps]
    found = report.difference(first, [outcome(50, np.full(1000, 50.0))] * 3)
    half = 4.303 * np.std(gaps, ddof=1) / 3**0.5  # 97.5 % point of t with two degrees of freedom
    assert found.mean == pytest.approx(3) and found.bounds == pytest.approx(
        (3 - half, 3 + half), abs=0.05 * half
    )


def test_one_model_has_the_interval_of_its_episodes():
    found = report.difference(
        [outcome(50, np.linspace(40, 60, 1001))], [outcome(45, np.full(1001, 45.0))]
    )
    assert found.mean == 5 and found.bounds == pytest.approx((-4.5, 14.5))


@pytest.mark.parametrize(
    ("bounds", "expected", "judged"),
    [
        ((-3, -1), "below", "holds"),
        ((1, 3), "below", "does not hold"),
        ((-1, 3), "below", "cannot be told"),
        ((1, 3), "above", "holds"),
        ((-3, -1), "above", "does not hold"),
        ((-1, 1.9), "alike", "holds"),
        ((-1, 2.1), "alike", "cannot be told"),
        ((2.1, 4), "alike", "does not hold"),
        ((-3, -1), "", "-"),
    ],
)
def test_a_verdict_needs_the_whole_interval(bounds, expected, judged):
    assert report.verdict(report.Difference(sum(bounds) / 2, bounds), expected) == judged


# ---- the list of variants ----


def test_the_variants_cover_every_word():
    words = {"interaction": INTERACTIONS, "injection": INJECTIONS, "supervision": SUPERVISIONS}
    words["generation"] = GENERATIONS
    keys = [
        {k: float(v) if k.startswith("beta") else v for k, v in own.items()}
        for own in plan.VARIANTS.values()
    ]
    variants = [Variant(**own) for own in keys]
    for name, known in words.items():
        assert {getattr(variant, name) for variant in variants} == set(known)
    assert len(set(variants)) == len(variants)
    assert variants[list(plan.VARIANTS).index(plan.DEFAULT)] == Variant()


def test_every_variant_stands_in_a_table_and_has_a_name():
    assert {name for names in plan.STUDIES.values() for name in names} == set(plan.VARIANTS)
    assert set(plan.VARIANTS) <= set(plan.LABELS)
    assert {names[0] for names in plan.STUDIES.values()} == {plan.DEFAULT}
