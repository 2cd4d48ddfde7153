"""Counts of pixels, and the protocol's scores from them."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt

from diffews.evaluation.metrics import (
    Scores,
    bootstrap_samples,
    boundary_counts,
    intersection_and_union,
    interval,
    iou_percent,
)

PREDICTION = np.array([[1, 1, 0], [0, 0, 1]])
TRUTH = np.array([[1, 0, 0], [1, 0, 1]])


def test_counts_by_hand():
    assert intersection_and_union(PREDICTION, TRUTH) == ([2, 2], [4, 4])


def test_ignored_pixels_are_left_out_of_both_counts():
    ignore = np.array([[0, 1, 0], [0, 0, 1]])  # one pixel that is wrong, one that is right
    assert intersection_and_union(PREDICTION, TRUTH, ignore) == ([2, 1], [3, 2])


def test_counts_are_plain_integers():
    inter, union = intersection_and_union(PREDICTION.astype(bool), TRUTH.astype(np.uint8))
    assert all(type(count) is int for count in inter + union)


def test_counts_against_a_count_by_pixel():
    generator = np.random.default_rng(0)
    for _ in range(20):
        prediction, truth, ignore = generator.integers(0, 2, (3, 9, 7))
        inter, union = [0, 0], [0, 0]
        for p, t, skip in zip(prediction.flat, truth.flat, ignore.flat, strict=True):
            for side in (0, 1):
                inter[side] += not skip and p == t == side
                union[side] += not skip and side in (p, t)
        assert intersection_and_union(prediction, truth, ignore) == (inter, union)


# ---- boundaries ----


def test_boundary_counts_by_hand(square_mask):
    mask = square_mask(16, 16)  # 8 x 8; the diagonal is 22.6, so that d is 1 below a share of 0.066
    ring, wider = 8 * 8 - 6 * 6, 8 * 8 - 4 * 4
    assert boundary_counts(mask, mask) == (ring, ring)
    assert boundary_counts(mask, mask, share=2 / 22.6) == (wider, wider)
    moved = np.roll(mask, 1, axis=1)  # the rings share the middle of the upper and the lower row
    assert boundary_counts(moved, mask) == (14, 2 * ring - 14)


@pytest.mark.parametrize(
    ("shape", "share"), [((9, 7), 0.02), ((64, 64), 0.02), ((48, 64), 0.05), ((33, 64), 0.1)]
)
def test_boundary_counts_against_the_distance_to_the_background(shape, share):
    generator = np.random.default_rng(0)
    distance = max(1, round(share * (shape[0] ** 2 + shape[1] ** 2) ** 0.5))
    for seed in range(10):
        coarse = (
            generator.random((3, -(-shape[0] // 8), -(-shape[1] // 8))) < (0.3, 0.6, 0.9)[seed % 3]
        )
        prediction, truth, ignore = coarse.repeat(8, 1).repeat(8, 2)[:, : shape[0], : shape[1]]
        near = [
            mask
            & (distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1] <= distance)
            & ~ignore
            for mask in (prediction, truth)
        ]
        want = (np.sum(near[0] & near[1]), np.sum(near[0] | near[1]))
        assert boundary_counts(prediction, truth, ignore, share) == want


def test_the_images_edge_is_a_contour():
    whole = np.ones((10, 12), np.uint8)
    assert boundary_counts(whole, whole) == (120 - 8 * 10, 120 - 8 * 10)
    corner = np.zeros((10, 12), np.uint8)
    corner[:4, :4] = 1
    assert boundary_counts(corner, corner) == (16 - 4, 16 - 4)


def test_empty_masks_have_no_boundary(square_mask):
    mask = square_mask(16, 16)
    assert boundary_counts(mask * 0, mask * 0) == (0, 0)
    assert boundary_counts(mask * 0, mask) == boundary_counts(mask, mask * 0) == (0, 28)


def test_ignored_pixels_are_no_part_of_a_boundary(square_mask):
    mask, ignore = square_mask(16, 16), np.zeros((16, 16), np.uint8)
    ignore[:, :8] = 1  # half of the ring, and no contour of its own
    assert boundary_counts(mask, mask, ignore) == (14, 14)


def test_boundary_counts_are_plain_integers_of_any_type_of_mask(square_mask):
    counts = boundary_counts(square_mask(16, 16), square_mask(16, 16).astype(np.uint8) * 255)
    assert counts == (28, 28) and all(type(count) is int for count in counts)


def test_two_empty_masks_have_iou_0():
    assert iou_percent(np.array([10, 0, 0, 7]), np.array([20, 60, 0, 7])).tolist() == [
        50,
        0,
        0,
        100,
    ]


# ---- the protocol's scores ----


def test_iou_is_that_of_the_sums_over_a_classs_episodes():
    scores = Scores([3, 7])
    scores.add(3, [0, 10], [0, 20])
    scores.add(3, [0, 0], [0, 60])
    scores.add(7, [0, 30], [0, 40])
    assert scores.per_class() == {3: 12.5, 7: 75.0}  # 10 / 80, and not the mean of 50 and 0
    assert scores.miou() == 43.75


def test_a_class_that_was_never_drawn_counts_as_0():
    scores = Scores([3, 7])
    scores.add(7, [0, 30], [0, 40])
    assert scores.per_class() == {3: 0.0, 7: 75.0}
    assert (scores.miou(), scores.running_miou()) == (37.5, 75.0)


def test_a_class_without_a_single_pixel_is_0_and_not_an_error():
    scores = Scores([3])
    scores.add(3, [16, 0], [16, 0])
    assert (scores.miou(), scores.fb_iou()) == (0.0, 50.0)


def test_fb_iou_is_that_of_the_sums_over_all_classes():
    scores = Scores([3, 7])
    scores.add(3, [80, 10], [90, 20])
    scores.add(7, [20, 30], [110, 60])
    assert scores.fb_iou() == pytest.approx((100 * 100 / 200 + 100 * 40 / 80) / 2)


@pytest.mark.parametrize(
    ("name", "fold"), [("eval_coco_fold0_1shot", 0), ("eval_coco_fold3_5shot", 3)]
)
def test_the_references_counts_give_the_references_scores(expected, name, fold):
    golden = expected(name).json
    scores = Scores(range(fold, 80, 4))
    for episode in golden["episodes"]:
        inter, union = ([int(n) for n in episode[part]] for part in ("inter", "union"))
        scores.add(episode["class_id"], inter, union)
    assert scores.miou() == pytest.approx(golden["miou"], abs=1e-4)
    assert scores.fb_iou() == pytest.approx(golden["fb_iou"], abs=1e-4)


def test_equal_episodes_leave_no_doubt():
    low, high = interval(bootstrap_samples([5] * 10, [5], np.full(10, 30), np.full(10, 40)))
    assert low == high == 75.0


def test_the_interval_of_two_opposite_episodes_spans_all():
    samples = bootstrap_samples([5, 5], [5], np.array([0, 10]), np.array([10, 10]))
    assert interval(samples) == (0.0, 100.0)


def test_the_interval_holds_the_miou_and_shrinks_with_episodes():
    generator = np.random.default_rng(1)
    widths = []
    for count in (50, 800):
        classes = [1, 2] * (count // 2)
        union = generator.integers(50, 100, count)
        inter = (union * generator.random(count)).astype(int)
        scores = Scores([1, 2])
        for class_id, i, u in zip(classes, inter, union, strict=True):
            scores.add(class_id, [0, i], [0, u])
        low, high = interval(bootstrap_samples(classes, [1, 2], inter, union))
        assert low < scores.miou() < high
        again = interval(bootstrap_samples(classes, [1, 2], inter, union))
        assert (low, high) == again  # the seed is fixed
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
