"""Pictures and masks as arrays: what the torch pipeline and the ONNX one both begin with."""

import numpy as np
import pytest
import torch

from diffews import InputError
from diffews.images.arrays import prepare_image, prepare_supports
from diffews.images.drawn_masks import Pick


@pytest.mark.parametrize("shape", [(50, 70), (100, 33), (300, 64)])
def test_floats_are_resized_as_torch_resizes_them(shape):
    floats = np.random.default_rng(0).uniform(-1, 1, (3, *shape)).astype(np.float32)
    pixels, own, _ = prepare_image(floats, 64)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(floats)[None], size=(64, 64), mode="bilinear", antialias=True
    )
    assert own == shape and pixels.dtype == np.float32
    assert np.abs(pixels - want[0].numpy()).max() < 1e-5


def test_pixels_lie_in_memory_in_their_own_order(picture):
    turned = np.asarray(picture(1)).astype(np.float32) / 127.5 - 1  # (H, W, 3): a view is turned
    for given in (turned, np.asarray(picture(1)), picture(1)):
        assert prepare_image(given, 64)[0].flags.c_contiguous  # rounding depends on it


def test_supports_are_prepared_in_sets_of_shots(picture, square_mask):
    images = [[picture(1), picture(2)], [picture(3), picture(4, 50, 40)]]
    masks = [[square_mask()] * 2, [square_mask(), square_mask(50, 40)]]

    def refine(*_):
        pytest.fail("a mask is not made better")

    pixels, marks, shots = prepare_supports(images, masks, 32, Pick(), refine)
    assert pixels.shape == (4, 3, 32, 32) and marks.shape == (4, 32, 32) and shots == 2
    assert np.array_equal(pixels[3], prepare_image(picture(4, 50, 40), 32)[0])
    with pytest.raises(InputError, match="same number of shots"):
        prepare_supports([images[0], images[1][:1]], [masks[0], masks[1][:1]], 32, Pick(), refine)
