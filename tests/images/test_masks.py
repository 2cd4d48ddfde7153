"""Masks on both sides of the model: resized, checked, painted; how predictions are thresholded."""

import numpy as np
import pytest
import torch

from diffews import InputError
from diffews.images.masks import (
    binary_mask,
    check_threshold,
    quantize,
    resize_mask,
    scores_and_limit,
)
from diffews.images.paint import render_masks


def test_a_mask_is_resized_with_torchs_choice_of_pixels():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    rows, columns = (
        [0, 1],
        [0, 2],
    )  # floor(i * 3 / 2), floor(i * 4 / 2): the pixel at the left edge, not at the centre
    assert resize_mask(mask, 2).tolist() == mask[np.ix_(rows, columns)].tolist()
    rows, columns = [0, 0, 1, 1, 2], [0, 0, 1, 2, 3]  # floor(i * 3 / 5), floor(i * 4 / 5)
    assert resize_mask(mask, 5).tolist() == mask[np.ix_(rows, columns)].tolist()


def test_a_mask_of_any_length_is_resized_as_torch_resizes_it():
    for length in (*range(1, 70), 333, 480, 640, 1079, 4032):
        places = torch.arange(length)[None].float()
        for size in (8, 60, 64, 333, 512):
            want = torch.nn.functional.interpolate(places[None], size=size, mode="nearest")
            assert np.array_equal(resize_mask(places.numpy(), size)[0], want[0, 0]), (length, size)


def test_a_resized_mask_keeps_its_values_and_type():
    mask = (np.random.default_rng(0).random((33, 70)) > 0.5).astype(np.uint8) * 7
    resized = resize_mask(mask[:, ::-1], 16)  # a view that is not contiguous
    assert resized.dtype == np.uint8 and set(np.unique(resized)) == {0, 7}
    assert np.array_equal(resize_mask(mask[:32, :32], 32), mask[:32, :32])


@pytest.mark.parametrize(
    ("dtype", "one"), [(bool, 1), (np.uint8, 1), (np.uint8, 255), (np.float32, 1), (int, 255)]
)
def test_bool_and_0_1_and_0_255_are_the_same_mask(dtype, one):
    binary = binary_mask(np.array([[0, one], [one, 0]]).astype(dtype))
    assert binary.dtype == np.uint8 and binary.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(("value", "want"), [(0, 0), (1, 1), (255, 1)])
def test_a_mask_of_one_value_is_taken(value, want):
    assert binary_mask(np.full((2, 2), value)).tolist() == [[want, want]] * 2


@pytest.mark.parametrize("values", [(0, 2), (0, 1, 255), (1, 255), (0, 0.5), (-1, 1), (0, np.nan)])
def test_other_values_are_refused_and_shown(values):
    with pytest.raises(
        InputError, match=r"my mask holds the values .*give bool, \{0, 1\} or \{0, 255\}"
    ):
        binary_mask(np.array([values]), "my mask")


def test_many_values_are_cut_short():
    with pytest.raises(InputError, match=r"values 0, 1, 2, 3, 4, \.\.\.;"):
        binary_mask(np.arange(9).reshape(3, 3))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 1), (4, 4, 3)])
def test_a_mask_has_one_channel(shape):
    with pytest.raises(InputError, match="one channel"):
        binary_mask(np.zeros(shape))


def test_the_vae_sees_white_foreground_on_black():
    painted = render_masks(torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8))
    assert painted.shape == (1, 3, 2, 2) and painted.dtype == torch.float32
    for channel in painted[0]:
        assert channel.tolist() == [[-1, 1], [1, -1]]


def test_decoded_colours_are_clipped_and_truncated_not_rounded():
    decoded = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.999, 1.0, 2.0])
    assert quantize(decoded).tolist() == [
        0,
        0,
        63,
        127,
        254,
        255,
        255,
    ]  # 63.75, 127.5 and 254.87 are cut
    assert quantize(decoded).dtype == torch.uint8


RGB = torch.tensor(  # one picture of 1 x 4 pixels: its largest channel is 0.9, its largest mean 0.6
    [[[[0.9, 0.6, 0.2, 0.0]], [[0.3, 0.6, 0.2, 0.0]], [[0.0, 0.6, 0.2, 0.0]]]]
)


@pytest.mark.parametrize(
    ("rule", "threshold", "limit", "foreground"),
    [
        ("reference", 0.25, 0.225, [True, True, False, False]),  # 0.25 * 0.9, above 0.2
        ("paper", 0.25, 0.15, [True, True, True, False]),  # 0.25 * 0.6, below 0.2
        ("absolute", 0.5, 0.5, [False, True, False, False]),
    ],
)
def test_each_threshold_rule_by_hand(rule, threshold, limit, foreground):
    scores, limits = scores_and_limit(RGB, threshold, rule)
    torch.testing.assert_close(scores, torch.tensor([[[0.4, 0.6, 0.2, 0.0]]]))
    torch.testing.assert_close(limits, torch.tensor([limit]))
    assert (scores > limits[:, None, None])[0, 0].tolist() == foreground


@pytest.mark.parametrize("rule", ["reference", "paper", "absolute"])
def test_the_limit_is_that_of_each_picture_alone(rule):
    pictures = torch.cat([RGB, RGB / 2])
    _, together = scores_and_limit(pictures, 0.25, rule)
    alone = [scores_and_limit(picture[None], 0.25, rule)[1] for picture in pictures]
    assert torch.equal(together, torch.cat(alone))


def test_a_black_prediction_is_all_background():
    for rule in ("reference", "paper", "absolute"):
        scores, limits = scores_and_limit(torch.zeros(1, 3, 2, 2), 0.25, rule)
        assert not (scores > limits[:, None, None]).any()


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(InputError, match="threshold="):
        check_threshold(threshold, "reference")


def test_an_unknown_threshold_rule_is_refused():
    with pytest.raises(InputError, match="'relative' is not one of reference, paper, absolute"):
        check_threshold(0.25, "relative")
