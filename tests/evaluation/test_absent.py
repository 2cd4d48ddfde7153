"""Queries without the class: negatives, the scores of presence, FS-CS, and what is refused."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
from eval_runs import lines, result
from PIL import Image

from diffews.cli.main import main
from diffews.data.negatives import are_twins, draw_negative
from diffews.data.registry import load_benchmark, open_benchmark
from diffews.evaluation.absent import auroc, correlation, false_alarms, summarize_absent
from diffews.evaluation.fs_cs import draw_questions, summarize_fs_cs

# ---- the scores ----


@pytest.fixture
def answers():
    """Presence of 300 queries with ties, and whether the class is there."""
    draws = np.random.default_rng(0)
    present = draws.random(300) < 0.4
    return np.round(draws.random(300) + 0.3 * present, 2), present


def test_auroc_is_how_often_a_positive_is_surer(answers):
    sure, present = answers
    pairs = [(a > b) + 0.5 * (a == b) for a in sure[present] for b in sure[~present]]
    assert auroc(sure, present) == pytest.approx(np.mean(pairs))


def test_false_alarms_at_a_recall_are_those_of_the_strictest_gate_that_reaches_it(answers):
    sure, present = answers
    gates = [g for g in np.unique(sure) if (sure[present] >= g).mean() >= 0.95]
    assert false_alarms(sure, present) == (sure[~present] >= max(gates)).mean()


def test_mcc_is_the_correlation_of_two_yes_and_no(answers):
    sure, present = answers
    said = sure >= 0.5
    assert correlation(said, present) == pytest.approx(np.corrcoef(said, present)[0, 1])
    assert correlation(np.ones(300, bool), present) == 0


def test_the_scores_of_three_pairs_by_hand():
    def record(class_id, presence, inter, union, truth, negative, painted, twin=False):
        return {
            "class_id": class_id, "presence": presence, "truth": truth,
            "inter": [100 - union, inter], "union": [100 - inter, union],
            "absent": {"presence": negative, "painted": painted, "twin": twin},
        }  # fmt: skip

    records = [
        record(0, 0.9, 20, 40, 30, 0.1, 50),
        record(1, 0.4, 10, 20, 15, 0.6, 30, twin=True),  # missed, and a false alarm
        record(1, 0.8, 30, 40, 35, 0.2, 10),
    ]
    scores = summarize_absent(records, [0, 1])["absent"]
    assert scores["auroc"] == pytest.approx(8 / 9)
    assert scores["exact_ratio"] == pytest.approx(4 / 6)
    assert scores["false_area"] == pytest.approx(0.3 / 3)
    assert scores["false_area_ungated"] == pytest.approx(0.9 / 3)
    assert scores["miou_ungated"] == pytest.approx(100 * (20 / 40 + 40 / 60) / 2)
    assert scores["miou_gated"] == pytest.approx(100 * (20 / 40 + 30 / 55) / 2)
    assert (scores["twins"], scores["twins_rejected"]) == (1, 0)
    assert scores["negatives_rejected"] == pytest.approx(2 / 3)


def test_twins_differ_in_the_last_word_alone():
    assert are_twins("plain red disc", "plain red star")
    assert not are_twins("plain red disc", "plain blue disc")
    assert not are_twins("dog", "cat") and not are_twins("red disc", "red disc")


# ---- negatives beside the published episodes ----


@pytest.fixture(scope="module")
def asked(golden_words, tmp_path_factory):
    """A golden evaluation with negatives, asked by the cosine."""
    out = tmp_path_factory.mktemp("asked")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        words = [*golden_words, f"out={out}", "episodes=4", "absent=true", "presence=cosine"]
        assert main(words) == 0
    return out


def test_negatives_change_no_count_and_no_mask(asked, finished):
    for with_negative, plain in zip(lines(asked), lines(finished), strict=False):
        added = {"presence", "truth", "absent"}
        assert {k: v for k, v in with_negative.items() if k not in added} == plain


def test_a_negative_asks_for_a_class_that_the_query_does_not_hold(asked, coco):
    dataset = load_benchmark("coco20i", coco, fold=0, image_size=64, episodes=4)
    for index, record in enumerate(lines(asked)):
        negative, query = record["absent"], dataset.episodes[index].query
        held = np.unique(dataset.benchmark.class_map(query)) - 1
        assert negative["class_id"] in dataset.class_ids and negative["class_id"] not in held
        names = [sample.name for sample in dataset.benchmark.images[negative["class_id"]]]
        assert len(negative["supports"]) == 1 and negative["supports"][0] in names
        assert record["truth"] == dataset[index].query_mask.sum()


def test_the_result_is_that_of_the_records(asked):
    found = result(asked)
    pairs = [(r["presence"], r["absent"]["presence"]) for r in lines(asked)]
    sure, present = np.array(pairs).ravel(), np.array([True, False] * len(pairs))
    assert found["absent"]["auroc"] == auroc(sure, present)
    assert found["absent"]["miou_ungated"] == found["miou"]
    assert found["absent_interval"]["auroc"][0] <= found["absent"]["auroc"]
    assert found["absent"]["negatives"] == 4


def test_more_episodes_go_on_and_the_first_stay(asked, golden_words, run, tmp_path):
    out = shutil.copytree(asked, tmp_path / "out")
    text = (out / "episodes.jsonl").read_bytes()
    (out / "episodes.jsonl").write_bytes(text[: text.index(b"\n", len(text) // 2) + 9])
    words = [*golden_words, f"out={out}", "episodes=5", "absent=true", "presence=cosine"]
    assert run(*words).code == 0
    assert (out / "episodes.jsonl").read_bytes()[: len(text)] == text
    assert len(lines(out)) == 5


def test_a_run_with_negatives_is_another_run(asked, golden_words, refused):
    assert "holds another run" in refused(*golden_words, f"out={asked}", "episodes=4")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"presence": 1.5}, "presence is no number"),
        ({"truth": -1}, "truth or painted"),
        ({"absent": {"presence": 0.5, "painted": 5000, "twin": False}}, "truth or painted"),
        ({"absent": {"presence": 0.5, "painted": 5, "twin": 1}}, "twin is neither"),
    ],
)
def test_a_record_that_cannot_be_is_refused(asked, refused, tmp_path, part, message):
    out = shutil.copytree(asked, tmp_path / "out")
    records = lines(out)
    records[3] |= part
    (out / "episodes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    error = refused("table", f"runs={out}")
    assert "line 4" in error and message in error


def test_without_a_head_nobody_can_be_asked(golden_words, refused, tmp_path):
    for word in ("absent=true", "protocol=fs_cs"):
        error = refused(*golden_words, f"out={tmp_path / 'o'}", word)
        assert "presence=cosine" in error and "train-presence" in error
    assert not (tmp_path / "o").exists()


def test_a_head_that_saw_a_novel_class_is_not_asked(
    golden_words, own_weight, coco, refused, tmp_path
):
    seen = open_benchmark("coco20i", coco, 0, "test").class_names
    (own_weight / "presence").mkdir()
    record = {"seen": ["no class", seen[4]], "fold": 1}
    (own_weight / "presence" / "config.json").write_text(json.dumps(record))
    words = [*golden_words, f"weight={own_weight}", f"out={tmp_path / 'o'}"]
    error = refused(*words, "absent=true")
    assert f"saw 1 of the 20 novel classes, as {seen[4]}" in error and "fold=1" in error


def test_where_absence_is_not_known_that_is_said(weight, base, refused, tmp_path, picture):
    folder = tmp_path / "data"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            picture(number).save(folder / name / f"{number}.jpg")
            mask = np.zeros((64, 64), np.uint8)
            mask[20:40, 20:40] = 255
            Image.fromarray(mask).save(folder / name / f"{number}.png")
    words = ["eval", f"weight={weight}", f"base={base}", "benchmark=folder", f"data={folder}"]
    words += ["novel=cat,dog", "image_size=64", "presence=cosine", f"out={tmp_path / 'o'}"]
    error = refused(*words, "absent=true", "workers=0")
    assert "benchmark=folder does not name every class of a picture" in error
    assert not (tmp_path / "o").exists()


def test_a_query_that_holds_all_classes_has_no_negative(coco):
    benchmark = open_benchmark("coco20i", coco, 0, "test")
    benchmark.class_ids = benchmark.class_ids[:1]
    query = benchmark.images[benchmark.class_ids[0]][0]
    assert draw_negative(benchmark, query, 1, np.random.default_rng(0)) is None


# ---- FS-CS ----


def test_questions_are_drawn_as_the_published_code_draws(coco):
    """Against numpy's global generator, call by call as the protocol says."""
    benchmark = open_benchmark("coco20i", coco, 0, "test")
    ids, images = benchmark.class_ids, benchmark.images
    for index, question in enumerate(draw_questions(benchmark, 2, 2, 12)):
        np.random.seed(index)
        own = np.random.choice(ids, 1, replace=False)[0]
        query = np.random.choice([s.name for s in images[own]], 1, replace=False)[0]
        p = np.ones(len(ids)) / 2 / (len(ids) - 1)
        p[ids.index(own)] = 1 / 2
        asked = np.random.choice(ids, 2, p=p, replace=False).tolist()
        supports = []
        for c in asked:
            found = []
            while len(found) < 2:
                name = np.random.choice([s.name for s in images[c]], 1, replace=False)[0]
                if name != query and name not in found:
                    found.append(str(name))
            supports.append(found)
        assert question.names() == [str(query), asked, supports]


def test_half_the_one_way_questions_ask_for_the_querys_class():
    benchmark = open_benchmark("coco20i", "nowhere", 0, "test", splits="builtin")
    questions = draw_questions(benchmark, 1, 1, 400)
    own = [q.query in benchmark.images[q.class_ids[0]] for q in questions]
    assert 0.45 < np.mean(own) < 0.65  # some queries hold the other class, too


def test_fs_cs_counts_by_hand():
    def record(classes, present, presence, inter, union):
        return dict(classes=classes, present=present, presence=presence, inter=inter, union=union)

    records = [
        record([0, 1], [True, False], [0.9, 0.1], [10, 0], [20, 0]),
        record([0, 1], [True, True], [0.9, 0.4], [10, 0], [10, 30]),  # class 1 is missed
        record([1, 0], [True, False], [0.5, 0.7], [20, 0], [20, 20]),  # class 0 is a false alarm
    ]
    found = summarize_fs_cs(records, [0, 1])
    assert found["exact_ratio"] == pytest.approx(100 / 3)
    assert found["miou"] == pytest.approx(100 * (20 / 50 + 20 / 50) / 2)


def test_fs_cs_evaluates_goes_on_and_stands_beside_the_published_rows(
    golden_words, run, refused, tmp_path, finished
):
    out = tmp_path / "c_fold0"
    words = [*golden_words, f"out={out}", "protocol=fs_cs", "way=2", "presence=cosine"]
    outcome = run(*words, "episodes=3")
    assert outcome.code == 0 and "2-way 1-shot FS-CS, 3 episodes: exact ratio" in outcome.out
    first = (out / "episodes.jsonl").read_bytes()
    (out / "episodes.jsonl").write_bytes(first[:-7])
    assert run(*words, "episodes=4").code == 0
    assert (out / "episodes.jsonl").read_bytes().startswith(first) and len(lines(out)) == 4

    # what is present is what the query's whole map holds
    benchmark = open_benchmark("coco20i", golden_words[3].removeprefix("data="), 0, "test")
    samples = {s.name: s for of_class in benchmark.images.values() for s in of_class}
    for record in lines(out):
        held = benchmark.classes_in(samples[record["query"]])
        assert record["present"] == [c in held for c in record["classes"]]
        assert len(set(record["classes"])) == 2

    table = run("table", f"runs={out}", "names=mine").out
    assert "| EMAT | mean | 80.1 | 52.8 |" in table and "| mine (ours) | F0 |" in table
    assert "is not of protocol=fs_cs" in refused("table", f"runs={out},{finished}")
    assert "absent= has no meaning" in refused(*words, "absent=true")
    other = [*golden_words, "protocol=fs_cs", "presence=cosine", f"out={tmp_path / 'w'}"]
    assert "way=30: the fold has 20" in refused(*other, "way=30")
    assert "way=2 needs protocol=fs_cs" in refused(*golden_words, "way=2")


def test_where_every_query_holds_all_classes_no_negative_is_to_be_found(
    weight, base, refused, tmp_path, picture
):
    """Three pictures, of which each holds a cat and a dog."""
    boxes = [[9, 9, 29, 9, 29, 29, 9, 29], [34, 34, 54, 34, 54, 54, 34, 54]]
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(3)]
    for image in images:
        picture(image["id"]).save(tmp_path / image["file_name"])
    annotations = [
        {"id": 2 * i + k, "image_id": i, "category_id": 1 + k, "iscrowd": 0, "area": 400,
         "bbox": [9 + 25 * k, 9 + 25 * k, 20, 20], "segmentation": [boxes[k]]}
        for i in range(3) for k in range(2)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))

    words = [f"weight={weight}", f"base={base}", "benchmark=coco_json", f"data={tmp_path}",
             f"annotations={tmp_path / 'a.json'}", f"images={tmp_path}", "image_size=64",
             f"out={tmp_path / 'o'}", "workers=0"]  # fmt: skip
    error = refused("eval", *words, "novel=cat,dog", "absent=true", "presence=cosine")
    assert "no negative is to be found" in error and "all the 2 classes" in error
    error = refused("train-presence", *words, "fold=3", "queries=2")
    assert "lacks one of the 2 training classes" in error
    assert not (tmp_path / "o" / "run.json").exists()
