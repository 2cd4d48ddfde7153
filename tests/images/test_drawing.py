"""Pictures of results: what is tinted, where the tiles stand, and that colours survive the file."""

import numpy as np
import pytest
from PIL import Image

from diffews.images.drawing import (
    BLACK,
    PREDICTION_COLOUR,
    SUPPORT_COLOUR,
    TRUTH_COLOUR,
    figure_tiles,
    figure_titles,
    overlay,
    panel,
    save_figure,
    save_image,
    tint,
)


@pytest.fixture
def grey():
    return np.full((64, 64, 3), 100, np.uint8)


def test_an_empty_mask_darkens_everything(grey):
    assert (overlay(grey, np.zeros((64, 64), np.uint8)) == 40).all() and (grey == 100).all()


def test_an_overlay_leaves_the_mask_and_darkens_the_rest(grey, square_mask):
    lit = overlay(grey, square_mask(), [SUPPORT_COLOUR])
    assert np.array_equal(lit[20:44, 20:44], grey[20:44, 20:44])
    assert np.array_equal(lit[:15], (grey[:15] * 0.4).astype(np.uint8))
    assert lit[16, 16].tolist() == list(SUPPORT_COLOUR)  # the outline


def test_each_label_of_a_map_has_an_outline_of_its_colour(grey, square_mask):
    labels = np.zeros((64, 64), np.uint8)
    labels[8:24, 8:24], labels[40:56, 40:56] = 1, 2
    lit = overlay(grey, labels, [SUPPORT_COLOUR, TRUTH_COLOUR])
    assert lit[8, 8].tolist() == list(SUPPORT_COLOUR)
    assert lit[40, 40].tolist() == list(TRUTH_COLOUR)
    assert (lit[labels == 0] == 40).all() and (lit[12:20, 12:20] == 100).all()


def test_a_panel_shows_supports_query_prediction_and_truth(grey, square_mask):
    mask, corner = square_mask(), np.eye(64, dtype=np.uint8)
    picture = panel([(grey, mask), (grey, mask)], grey, mask, corner)
    assert picture.shape == (64, 5 * 64 + 4 * 2, 3)
    tiles = [picture[:, 66 * i : 66 * i + 64] for i in range(5)]
    support = overlay(grey, mask, [SUPPORT_COLOUR])
    answers = [overlay(grey, mask, [PREDICTION_COLOUR]), overlay(grey, corner, [TRUTH_COLOUR])]
    want = [support, support, grey, *answers]
    for tile, expected in zip(tiles, want, strict=True):
        assert np.array_equal(tile, expected)
    assert (picture[:, 64:66] == 255).all()


def test_a_tint_fades_colours_and_lays_the_mask_half_transparent_over_them(square_mask):
    red = np.full((192, 192, 3), (200, 0, 0), np.uint8)  # its grey is 0.299 * 200
    tinted = tint(red, square_mask(192, 192), SUPPORT_COLOUR)
    faded = 0.3 * np.array([200, 0, 0]) + 0.7 * 60
    assert np.allclose(tinted[10, 10], faded, atol=1)
    assert np.allclose(tinted[96, 96], (faded + np.array(SUPPORT_COLOUR)) / 2, atol=1)
    assert tinted[96, 48].tolist() == list(SUPPORT_COLOUR)  # the outline
    assert (red == (200, 0, 0)).all()


@pytest.mark.parametrize(("size", "side"), [(64, 192), (100, 200), (192, 192), (256, 256)])
def test_a_figure_enlarges_small_pictures_by_a_whole_factor(square_mask, size, side):
    image, mask = np.full((size, size, 3), 100, np.uint8), square_mask(size, size)
    tiles = figure_tiles([(image, mask)] * 2, image, mask, mask)
    assert [tile.shape for tile in tiles] == [(side, side, 3)] * 5
    assert (tiles[2] == 100).all()
    names = [words for _, words, _ in figure_titles(2)]
    assert names == ["support 1", "support 2", "query", "prediction", "truth"]


def test_text_stays_above_its_columns(tmp_path):
    tile = np.full((192, 192, 3), 100, np.uint8)
    for words in ("cat", "a class with a very long name, which goes on and on and on"):
        row = ([(0, words, BLACK), (1, "", BLACK)], [tile, tile])
        save_figure(tmp_path / "a.png", [row], columns=2)
        with Image.open(tmp_path / "a.png") as image:
            line = np.asarray(image)[8:40, 16:]
        assert (line[:, :192] < 128).any() and (line[:, 192:] == 255).all()


def test_colours_survive_the_file(grey, square_mask, tmp_path):
    painted = overlay(grey, square_mask())
    save_image(tmp_path / "new" / "a.png", painted)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), painted)
    mask = square_mask().astype(np.uint8) * 255
    save_image(tmp_path / "mask.png", mask)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), mask)
