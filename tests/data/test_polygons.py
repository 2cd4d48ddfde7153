"""Run-length codes and polygons: pycocotools' own are read, all else is refused."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from diffews.data.polygons import segmentation_mask
from diffews.errors import InputError

OUT_OF_MEMORY = "V4R2]n0_4UUQPPPLgZPPPP4"  # 64 x 64: pycocotools leaves pixels as memory was


def runs_of(mask):
    pixels = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(pixels)) + 1).tolist(), len(pixels)]
    return [0] * int(pixels[0]) + np.diff(edges).tolist()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 23), (300, 200)])
def test_codes_of_every_kind_give_the_mask_that_was_encoded(share, shape):
    mask = np.asfortranarray((np.random.default_rng(0).random(shape) < share).astype(np.uint8))
    code = coco_mask.encode(mask)["counts"]
    for counts in (code, code.decode(), runs_of(mask)):
        found = segmentation_mask({"size": list(shape), "counts": counts}, *shape, "here")
        assert np.array_equal(found, mask)


@pytest.mark.parametrize(
    "counts",
    [
        OUT_OF_MEMORY,
        OUT_OF_MEMORY.encode(),
        "",
        "o",  # a number without end
        "\x00P4",
        "é",
        [-1, 4097],
        [4096, 2**32],  # 0 in 32 bits
        [2**70],
        [4095.5, 0.5],
        [True] * 4096,
        [[4096]],
        [],
        4096,
        None,
    ],
)
def test_run_lengths_that_do_not_fill_the_picture_are_refused(counts):
    with pytest.raises(InputError, match=r"^file, annotation 7: .*counts do not fill 64 x 64"):
        segmentation_mask({"size": [64, 64], "counts": counts}, 64, 64, "file, annotation 7")


@pytest.mark.parametrize("code", ["o" * 10**6, "0" * 10**6, "PPPPPP0" * 150_000])
def test_a_long_code_is_refused_without_being_decoded(code):
    with pytest.raises(InputError, match="do not fill"):
        segmentation_mask({"size": [64, 64], "counts": code}, 64, 64, "here")


def test_a_polygon_whose_outline_is_longer_than_any_picture_has_is_refused():
    zigzag = [0, 0, 9e5, 9e5] * 20
    with pytest.raises(InputError, match="here: .*outline"):
        segmentation_mask([zigzag], 64, 64, "here")
