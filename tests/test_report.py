"""Pictures of results: what is tinted, where the tiles stand, and that colours survive the file."""

import numpy as np
import pytest
from PIL import Image

from diffews.report import PREDICTION_COLOUR, SUPPORT_COLOUR, TRUTH_COLOUR, overlay, panel, save_image


@pytest.fixture
def grey():
    return np.full((64, 64, 3), 100, np.uint8)


def test_an_empty_mask_darkens_everything(grey):
    assert (overlay(grey, np.zeros((64, 64), np.uint8)) == 40).all() and (grey == 100).all()


def test_an_overlay_leaves_the_mask_and_darkens_the_rest(grey, square_mask):
    lit = overlay(grey, square_mask(), SUPPORT_COLOUR)
    assert np.array_equal(lit[20:44, 20:44], grey[20:44, 20:44])
    assert np.array_equal(lit[:15], (grey[:15] * 0.4).astype(np.uint8))
    assert lit[16, 16].tolist() == list(SUPPORT_COLOUR)  # the outline


def test_a_panel_shows_supports_query_prediction_and_truth(grey, square_mask):
    mask, corner = square_mask(), np.eye(64, dtype=np.uint8)
    picture = panel([(grey, mask), (grey, mask)], grey, mask, corner)
    assert picture.shape == (64, 5 * 64 + 4 * 2, 3)
    tiles = [picture[:, 66 * i : 66 * i + 64] for i in range(5)]
    support = overlay(grey, mask, SUPPORT_COLOUR)
    answers = [overlay(grey, mask, PREDICTION_COLOUR), overlay(grey, corner, TRUTH_COLOUR)]
    want = [support, support, grey, *answers]
    for tile, expected in zip(tiles, want, strict=True):
        assert np.array_equal(tile, expected)
    assert (picture[:, 64:66] == 255).all()


def test_colours_survive_the_file(grey, square_mask, tmp_path):
    painted = overlay(grey, square_mask())
    save_image(tmp_path / "new" / "a.png", painted)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), painted)
    mask = square_mask().astype(np.uint8) * 255
    save_image(tmp_path / "mask.png", mask)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), mask)
