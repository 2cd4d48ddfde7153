"""Episodes are drawn up front by name, as the reference draws them, and decoded one by one."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from diffews import InputError
from diffews.data.episodes import Episode, EpisodeList, LegacyDraws, Sample
from diffews.data.registry import load_benchmark


@pytest.fixture
def golden_set(coco):
    return load_benchmark("coco20i", coco, fold=0, shots=2, image_size=32, episodes=4)


def test_a_draw_is_numpys_choice_and_advances_the_generator_the_same_way():
    sizes = np.random.default_rng(0).integers(1, 3000, 50)
    draws, oracle = LegacyDraws(7), np.random.RandomState(7)
    for size in sizes:
        items = [f"item {i}" for i in range(size)]
        assert draws.choice(items) == oracle.choice(items, 1, replace=False)[0]


def test_supports_are_drawn_until_enough_differ_from_the_query():
    names = ["a", "b", "c"]
    samples = [Sample(name) for name in names]
    draws, oracle = LegacyDraws(0), np.random.RandomState(0)
    for _ in range(30):
        found = [support.name for support in draws.supports(samples, Sample("b"), 4)]
        want = []
        while len(want) < 4:
            name = oracle.choice(names, 1, replace=False)[0]
            if name != "b":
                want.append(name)
        assert found == want


def test_a_support_may_come_twice():
    supports = LegacyDraws(0).supports([Sample("a"), Sample("b")], Sample("a"), 3)
    assert supports == (Sample("b"),) * 3


@pytest.fixture
def episode_list():
    return EpisodeList(
        Episode(i, Sample(f"q{i}"), (Sample(f"s{i}"), Sample("s"))) for i in range(3)
    )


def test_a_list_is_printed_and_hashed_as_names(episode_list):
    names = [[0, "q0", ["s0", "s"]], [1, "q1", ["s1", "s"]], [2, "q2", ["s2", "s"]]]
    assert episode_list.to_json() == json.dumps(names)
    assert episode_list.sha256 == hashlib.sha256(json.dumps(names).encode()).hexdigest()


def test_a_slice_of_a_list_is_a_list(episode_list):
    head = episode_list[:2]
    assert isinstance(head, EpisodeList) and len(head) == 2
    assert head[1] == episode_list[1] and list(head) == list(episode_list)[:2]
    assert head.sha256 != episode_list.sha256


def test_the_first_episodes_of_a_list_are_the_same_whatever_their_number(coco):
    whole = load_benchmark("coco20i", coco, fold=1)
    part = load_benchmark("coco20i", coco, fold=1, episodes=7)
    assert (len(whole), len(part)) == (1000, 7)
    assert part.episodes.to_json() == whole.episodes[:7].to_json()
    assert part.published.sha256 == whole.published.sha256 == whole.episodes.sha256


def test_drawing_does_not_touch_numpys_global_generator(coco):
    np.random.seed(3)
    want = np.random.RandomState(3).random(2)
    first = np.random.random()
    load_benchmark("coco20i", coco, fold=0)
    assert [first, np.random.random()] == list(want)


def test_more_episodes_than_published_are_refused(coco):
    with pytest.raises(InputError, match="episodes=1001: coco20i has 1000 "):
        load_benchmark("coco20i", coco, fold=0, episodes=1001)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "coco"}, "benchmark='coco' is not one of .*did you mean 'coco20i'"),
        ({"fold": 4}, "fold=4: coco20i has the folds 0 to 3"),
        ({"fold": -1}, "fold=-1"),
        ({"shots": 0}, "shots=0 must be at least 1"),
        ({"split": "tset"}, "split='tset'"),
    ],
)
def test_what_does_not_exist_is_refused(coco, arguments, says):
    with pytest.raises(InputError, match=says):
        load_benchmark(**{"name": "coco20i", "root": coco, **arguments})


def test_an_episode_is_the_same_each_time_and_in_any_order(golden_set):
    forward = [golden_set[i] for i in range(4)]
    for i in (3, 0, 3):
        again = golden_set[i]
        assert again.query_name == forward[i].query_name
        assert np.array_equal(again.query_rgb, forward[i].query_rgb)
        assert np.array_equal(again.support_masks, forward[i].support_masks)


def test_a_query_comes_at_its_own_size(golden_set, coco):
    for index, episode in enumerate(golden_set.episodes):
        picture = golden_set.decode_query(index)
        image = Image.open(coco / "COCO2014" / episode.query.name).convert("RGB")
        labels = Image.open(
            (coco / "COCO2014" / "annotations" / episode.query.name).with_suffix(".png")
        )
        assert picture.image.size == image.size and np.array_equal(picture.image, image)
        assert np.array_equal(
            picture.mask, np.asarray(labels) == episode.class_id + 1
        )  # 0 is background


def test_a_mask_of_another_size_than_its_picture_is_refused_at_any_size(own_coco):
    data = load_benchmark("coco20i", own_coco, fold=0, image_size=32, episodes=1)
    file = (own_coco / "COCO2014" / "annotations" / data.episodes[0].query.name).with_suffix(".png")
    Image.new("L", (5, 4)).save(file)
    for read in (data.decode_query, data.__getitem__):
        with pytest.raises(InputError, match=f"{file.name}: the mask is 5 x 4, its picture "):
            read(0)


def test_loader_workers_decode_the_same(golden_set):
    workers = DataLoader(
        golden_set, batch_size=None, num_workers=2, collate_fn=lambda episode: episode
    )
    for episode, want in zip(workers, (golden_set[i] for i in range(4)), strict=True):
        assert (episode.class_id, episode.query_name) == (want.class_id, want.query_name)
        assert episode.support_names == want.support_names
        for part in ("query_rgb", "query_mask", "support_rgb", "support_masks"):
            assert np.array_equal(getattr(episode, part), getattr(want, part)), part


def test_the_first_missing_folder_ends_the_search_for_files(own_coco, monkeypatch):
    data = load_benchmark("coco20i", own_coco, fold=0, episodes=4)
    asked, files = [], data.benchmark.files
    monkeypatch.setattr(data.benchmark, "files", lambda s: asked.append(s) or files(s))
    folder = own_coco / "COCO2014" / "annotations" / "val2014"
    folder.rename(own_coco / "elsewhere")
    with pytest.raises(InputError) as caught:
        data.check_files()
    assert f"{folder} does not exist;" in str(caught.value)
    assert asked == [data.episodes[0].query]


def test_missing_files_are_counted_before_anything_is_decoded(own_coco):
    data = load_benchmark("coco20i", own_coco, fold=0, episodes=4)
    data.check_files()
    (own_coco / "COCO2014" / data.episodes[0].query.name).unlink()
    (own_coco / "COCO2014" / "annotations" / data.episodes[2].query.name).with_suffix(
        ".png"
    ).unlink()
    with pytest.raises(
        InputError,
        match=rf"{data.episodes[0].query.name} does not exist \(2 of 16 files are missing\)",
    ):
        data.check_files()
