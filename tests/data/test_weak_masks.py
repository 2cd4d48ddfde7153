"""Weak support masks: what each kind is, that the draws alone decide, where they enter."""

import numpy as np
import pytest
import torch

from diffews.data.episodes import decode_sample
from diffews.data.registry import load_benchmark, open_benchmark
from diffews.data.training import PixelReader, Renderings, TrainingEpisodes
from diffews.data.weak_masks import KINDS, PROMPTS, TRAINED, draw_weakening, prompt_masks, weaken
from diffews.evaluation.groups import read_group

pytest_plugins = ("training_fixtures",)


@pytest.fixture(scope="module")
def ring():
    """An object with a hole, off the middle, uint8 (64, 64)."""
    y, x = np.mgrid[:64, :64]
    far = np.hypot(y - 30, x - 24)
    return ((far < 16) & (far > 6)).astype(np.uint8)


def draws(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weak_mask_is_a_mask_and_the_draws_alone_decide(ring, kind):
    before = ring.copy()
    weak = weaken(ring, kind, draws())
    assert weak.shape == ring.shape and weak.dtype == np.uint8 and set(np.unique(weak)) == {0, 1}
    assert np.array_equal(ring, before)
    assert np.array_equal(weak, weaken(ring, kind, draws()))
    others = [weaken(ring, kind, draws(seed)) for seed in range(1, 9)]
    assert any((other != weak).any() for other in others) == (kind not in ("mask", "box"))


def test_each_kind_is_what_its_name_says(ring):
    box = weaken(ring, "box", draws())
    rows, columns = np.nonzero(ring)
    assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) and not (ring & ~box).any()

    for seed in range(20):
        scribble, point, points = (
            weaken(ring, kind, draws(seed)) for kind in ("scribble", "point", "points")
        )
        assert not (scribble & ~ring).any() and scribble.sum() < ring.sum() / 2
        y, x = np.nonzero(point)
        assert point.sum() <= 21 and np.ptp(y) <= 4 and np.ptp(x) <= 4  # a disc of radius 2
        assert ring[round(y.mean()), round(x.mean())]
        assert points.sum() <= 63

        smaller, larger = (weaken(ring, kind, draws(seed)) for kind in ("eroded", "dilated"))
        assert not (smaller & ~ring).any() and smaller.sum() < ring.sum()
        assert not (ring & ~larger).any() and larger.sum() > ring.sum()
    assert weaken(ring, "mask", draws()) is ring


@pytest.mark.parametrize("kind", KINDS)
def test_thin_and_empty_masks(kind):
    pixel, empty = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    pixel[0, 63] = 1
    assert weaken(pixel, kind, draws())[0, 63] == 1
    assert not weaken(empty, kind, draws()).any()


def test_lengths_go_with_the_picture(ring):
    large = ring.repeat(8, 0).repeat(8, 1)
    for kind in ("scribble", "point", "dilated"):
        small_area, area = (
            np.mean([weaken(mask, kind, draws(seed)).mean() for seed in range(30)])
            for mask in (ring, large)
        )
        # a disc of few pixels is wider than its diameter says
        assert area == pytest.approx(small_area, rel=0.5), kind


def test_episodes_are_weakened_at_the_rate_that_is_asked_for_by_every_kind():
    found = [draw_weakening(0.3, draws([5, index])) for index in range(2000)]
    kinds = [weakening.keywords["kind"] for weakening in found if weakening is not None]
    assert len(kinds) == pytest.approx(600, abs=60)
    assert all(kinds.count(kind) == pytest.approx(120, abs=40) for kind in TRAINED)
    assert draw_weakening(0.0, draws()) is None and draw_weakening(1.0, draws()) is not None


# ---- in training ----


@pytest.fixture(scope="module")
def shapes_train(train_shapes):
    return open_benchmark("coco20i", train_shapes, 0, "train")


def test_training_weakens_the_supports_of_an_index_and_nothing_else(shapes_train):
    whole = TrainingEpisodes(shapes_train, 3)
    weak = TrainingEpisodes(shapes_train, 3, weak_masks=0.5)
    reader = PixelReader(shapes_train, 32, Renderings(truth=True))
    indices = list(range(12))
    plain, drawn = (episodes.batch(reader, indices, 2) for episodes in (whole, weak))
    assert plain.episodes == drawn.episodes
    for name in ("query", "target", "supports", "truth"):
        assert torch.equal(getattr(plain, name), getattr(drawn, name)), name

    changed = (plain.painted != drawn.painted).flatten(1).any(1).tolist()
    assert changed == [weak.weakening(index) is not None for index in indices]
    assert 2 < sum(changed) < 10

    # whatever stands beside it in a batch
    alone = weak.batch(reader, [indices[5]], 2)
    assert torch.equal(alone.painted[0], drawn.painted[5])
    assert torch.equal(plain.truth * 255, plain.target[:, 0])


# ---- in evaluation ----


@pytest.fixture(scope="module")
def test_set(train_shapes):
    return load_benchmark("coco20i", train_shapes, 0, shots=2, image_size=32, episodes=4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_drawn_by_the_episodes_index(test_set, prompt):
    group = read_group(test_set, [2, 0, 3, 3], prompt=prompt)
    masks = group.support_masks.unflatten(0, (4, 2)).numpy()
    for row, index in enumerate(group.indices):
        whole = test_set[index].support_masks
        assert np.array_equal(masks[row], prompt_masks(whole, prompt, index))
        assert np.array_equal(
            masks[row], read_group(test_set, [index], prompt=prompt).support_masks
        )
        assert (masks[row] == whole).all() == (prompt == "mask")
        # the first support's is the same, however many there are
        assert np.array_equal(masks[row][:1], prompt_masks(whole[:1], prompt, index))
    plain = read_group(test_set, [2, 0, 3, 3])
    assert torch.equal(group.query_masks, plain.query_masks)


def test_a_support_of_two_episodes_is_encoded_once_only_where_both_show_the_same(test_set):
    class_id, support = test_set.episodes[0].class_id, test_set.episodes[0].supports[0]
    shared = [
        (k, j)
        for k, e in enumerate(test_set.episodes)
        for j, s in enumerate(e.supports)
        if (e.class_id, s) == (class_id, support)
    ]
    assert shared[0] == (0, 0)
    group = read_group(test_set, [0, 0, 1, 1], prompt="point")
    numbers = group.distinct[4 + 8 :].unflatten(0, (4, 2)).tolist()
    assert numbers[0] == numbers[1] and numbers[2] == numbers[3]  # padding repeats
    assert len({*numbers[0], *numbers[2]}) == 4  # each prompt for itself
    whole = read_group(test_set, [0, 0, 1, 1]).distinct[4 + 8 :].tolist()
    decoded = [
        decode_sample(test_set.benchmark, s, e.class_id, 32)[1].tobytes()
        for e in (test_set.episodes[i] for i in (0, 0, 1, 1))
        for s in e.supports
    ]
    assert len(set(whole)) >= len(set(decoded))
