"""Baselines: hand-made masks, supports of another novel class, and the table of the command."""

import json

import cv2
import numpy as np
import pytest

from diffews import load_pipeline
from diffews.cli.settings import BaselinesConfig
from diffews.data.episodes import Episode, EpisodeDataset, EpisodeList, Sample
from diffews.data.registry import load_benchmark, open_benchmark
from diffews.evaluation.baselines import swap_supports, swapped_support, without_model
from diffews.evaluation.metrics import intersection_and_union

pytest_plugins = ("training_fixtures",)

# Class maps of 8 x 8 pixels, a value (class + 1) for each row.
# Novel in fold 0: the classes 0, 4, 8; seen: 1, 2.
ROWS = {
    "query": [1, 1, 5, 5, 0, 0, 2, 2],  # classes 0, 4 and 1, two rows each
    "alone": [0, 1, 1, 1, 1, 0, 2, 2],  # the only novel class is 0
    "first": [1, 0, 0, 0, 0, 0, 0, 1],
    "second": [0, 0, 0, 5, 5, 5, 0, 0],
    "third": [5, 5, 0, 0, 0, 0, 3, 3],
}
LISTS = {"0": ["query", "alone", "first"], "4": ["query", "second", "third"], "8": []}


def name(stem):
    return f"val2014/{stem}.jpg"


@pytest.fixture
def hand_made(tmp_path):
    """hand_made(episodes): a data set of (class, query, supports) on the maps above."""
    folder = tmp_path / "COCO2014"
    for place in ("val2014", "annotations/val2014", "splits/val"):
        (folder / place).mkdir(parents=True)
    for stem, rows in ROWS.items():
        cv2.imwrite(str(folder / "val2014" / f"{stem}.jpg"), np.full((8, 8, 3), 128, np.uint8))
        class_map = np.repeat(np.array(rows, np.uint8)[:, None], 8, axis=1)
        cv2.imwrite(str(folder / "annotations" / "val2014" / f"{stem}.png"), class_map)
    lists = {class_id: [name(stem) for stem in stems] for class_id, stems in LISTS.items()}
    (folder / "splits" / "val" / "fold0.json").write_text(json.dumps(lists))
    benchmark = open_benchmark("coco20i", tmp_path, 0, "test")

    def make(*episodes):
        drawn = [
            Episode(class_id, Sample(name(query)), tuple(Sample(name(stem)) for stem in supports))
            for class_id, query, supports in episodes
        ]
        return EpisodeDataset(benchmark, EpisodeList(drawn), image_size=8)

    return make


def in_percent(scores):
    return {name: (counted.running_miou(), counted.fb_iou()) for name, counted in scores.items()}


def test_the_scores_of_one_episode_are_those_computed_by_hand(hand_made):
    got = in_percent(without_model(hand_made((0, "query", ["first", "alone"]))))
    # truth: 2 of 8 rows. All: 2 / 8 foreground, 0 / 6 background.
    assert got["all foreground"] == pytest.approx((25, 12.5))
    # the first support's rows 0 and 7: 1 / 3 foreground, 5 / 7 background
    assert got["copy the support's mask"] == pytest.approx((100 / 3, 50 * (1 / 3 + 5 / 7)))
    # six rows hold an object, of a novel or a seen class: 2 / 6 foreground, 2 / 6 background
    assert got["oracle: every object"] == pytest.approx((100 / 3, 100 / 3))


def test_scores_add_up_over_classes_and_episodes(hand_made):
    dataset = hand_made((0, "query", ["first"]), (0, "alone", ["first"]), (4, "second", ["third"]))
    scores = without_model(dataset)
    assert {counted.episodes for counted in scores.values()} == {3}
    got = in_percent(scores)
    # class 0: (2 + 4) / 16, class 4: 3 / 8; background never found
    assert got["all foreground"] == pytest.approx((100 * (6 / 16 + 3 / 8) / 2, 50 * 9 / 24))
    # class 0: rows {0, 7} on {0, 1}, then on {1, 2, 3, 4}: (1 + 0) / (3 + 6)
    # class 4: rows {0, 1} on {3, 4, 5}: 0 / 5
    assert got["copy the support's mask"][0] == pytest.approx(100 * (1 / 9 + 0 / 5) / 2)
    # class 0: (2 + 4) / (6 + 6), class 4: 3 / 3; background (2 + 2 + 5) / (6 + 4 + 5)
    assert got["oracle: every object"] == pytest.approx(
        (100 * (6 / 12 + 3 / 3) / 2, 50 * (9 / 12 * 12 / 15 + 9 / 15))
    )


def test_swapped_supports_are_of_another_novel_class_in_the_query(hand_made):
    dataset = hand_made((0, "query", ["first"]), (0, "alone", ["first"]), (4, "query", ["second"]))
    pairs = swap_supports(dataset, shots=3)
    # `alone` has no other novel class
    assert [old for old, _ in pairs] == [dataset.episodes[0], dataset.episodes[2]]
    (_, to_4), (_, to_0) = pairs
    assert (to_4.class_id, to_0.class_id) == (4, 0)
    assert to_4.query == to_0.query == Sample(name("query"))
    assert len(to_4.supports) == len(to_0.supports) == 3
    assert set(to_4.supports) <= {Sample(name("second")), Sample(name("third"))}
    assert set(to_0.supports) <= {Sample(name("alone")), Sample(name("first"))}
    assert swap_supports(dataset, shots=3) == pairs


def test_a_list_without_a_second_novel_class_swaps_nothing(hand_made):
    assert swap_supports(hand_made((0, "alone", ["first"])), shots=1) == []


@pytest.fixture(scope="module")
def novel(few_shapes):
    return load_benchmark("coco20i", few_shapes, fold=0, shots=2, image_size=32, episodes=20)


def test_swaps_on_shapes_keep_the_query_and_change_the_class(novel):
    pairs = swap_supports(novel, shots=2)
    assert len(pairs) > 2
    for old, new in pairs:
        assert old.query == new.query and old.class_id != new.class_id
        assert new.class_id in novel.benchmark.classes_in(new.query) and new.class_id % 4 == 0
        assert new.query not in new.supports
        for support in new.supports:
            assert new.class_id in novel.benchmark.classes_in(support)


def test_a_swapped_prediction_is_scored_against_both_classes(trained, novel):
    pipeline = load_pipeline(trained)
    scores = swapped_support(pipeline, novel, BaselinesConfig(shots=2), 0.25)
    pairs = swap_supports(novel, shots=2)
    wanted = {"swapped support, original class": [], "swapped support, support's class": []}
    swapped = EpisodeDataset(novel.benchmark, EpisodeList(new for _, new in pairs), 32)
    original = EpisodeDataset(novel.benchmark, EpisodeList(old for old, _ in pairs), 32)
    for index in range(len(pairs)):
        episode = swapped[index]
        output = pipeline(
            episode.query_image,
            support_images=list(episode.support_images),
            support_masks=list(episode.support_masks),
        )
        for counts, truth in zip(
            wanted.values(), (original[index].query_mask, episode.query_mask), strict=True
        ):
            inter, union = intersection_and_union(output.masks[0], truth)
            counts.append((inter[1], union[1]))
    assert scores.keys() == wanted.keys()
    for name, counts in wanted.items():
        inter, union = np.sum(counts, axis=0)
        counted = scores[name]
        assert counted.episodes == len(pairs)
        for part, want in ((counted.inter, inter), (counted.union, union)):
            assert sum(pair[1] for pair in part.values()) == pytest.approx(want, abs=len(pairs))


def test_the_command_prints_a_table_and_writes_the_scores(run, trained, few_shapes, tmp_path):
    words = [f"weight={trained}", f"data={few_shapes}", "episodes=12"]
    evaluated = tmp_path / "run"
    assert run("eval", *words, "workers=0", f"out={evaluated}").code == 0
    outcome = run("baselines", *words, f"runs={evaluated}", f"out={tmp_path / 'table.json'}")
    assert outcome.code == 0, outcome
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in rows] == [
        "DiffewS, 1-shot",
        "all foreground",
        "copy the support's mask",
        "oracle: every object",
        "swapped support, original class",
        "swapped support, support's class",
    ]
    result = json.loads((evaluated / "result.json").read_text())
    assert [rows[0][key] for key in ("episodes", "fb_iou")] == [12, result["fb_iou"]]
    dataset = load_benchmark("coco20i", few_shapes, fold=0, image_size=32, episodes=12)
    scores = without_model(dataset)
    for row in rows[1:4]:
        counted = scores[row["name"]]
        assert row["episodes"] == 12
        assert (row["miou"], row["fb_iou"]) == (counted.miou(), counted.fb_iou())
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["episodes", "mIoU", "FB-IoU"]
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.startswith(row["name"])
        assert line.endswith(f"{row['miou']:.1f}{row['fb_iou']:8.1f}")


def test_a_run_that_is_not_there_is_refused_before_anything_is_computed(
    refused, trained, few_shapes, tmp_path
):
    words = [f"weight={trained}", f"data={few_shapes}", "episodes=10", f"runs={tmp_path / 'none'}"]
    assert str(tmp_path / "none") in refused("baselines", *words)


def test_runs_have_the_names_that_are_given(run, refused, trained, few_shapes, tmp_path):
    words = [f"weight={trained}", f"data={few_shapes}", "episodes=2"]
    evaluated = tmp_path / "run"
    assert run("eval", *words, "workers=0", f"out={evaluated}").code == 0
    words.append(f"runs={evaluated},{evaluated}")
    lines = run("baselines", *words, "names=first,second").out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["first", "second"]
    assert "names= has 1 names for 2 runs" in refused("baselines", *words, "names=first")
