"""Boxes, points and scribbles: how they are drawn, what is made of them, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from diffews.data.weak_masks import weaken
from diffews.errors import InputError
from diffews.images.arrays import prepare_mask, prepare_supports
from diffews.images.drawn_masks import Pick
from diffews.images.weak import (
    Box,
    Points,
    Scribble,
    grabcut,
    keep_found,
    name_prompts,
    read_numbers,
    refiner,
    unit,
    widen,
)

SHAPE = 60, 80  # height, width


@pytest.fixture(scope="module")
def disc():
    """A red disc on green noise, float32 [3, 64, 64] in [-1, 1], and its mask."""
    noise = np.random.default_rng(0).integers(0, 60, (64, 64, 3))
    y, x = np.mgrid[:64, :64]
    mask = (np.hypot(y - 30, x - 34) < 14).astype(np.uint8)
    rgb = np.where(mask[..., None] == 1, (200, 30, 30), (30, 160, 40)) + noise
    return (rgb.clip(0, 255) / 127.5 - 1).astype(np.float32).transpose(2, 0, 1), mask


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


# ---- drawing ----


def test_a_box_holds_the_pixels_between_its_edges():
    drawn = Box((10, 20, 30, 25)).draw(SHAPE)
    rows, columns = np.nonzero(drawn)
    assert drawn.shape == SHAPE and drawn.sum() == 20 * 5
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 24, 10, 29)
    assert Box((0, 0, 80, 60)).draw(SHAPE).all()
    assert np.array_equal(
        Box((9.4, 19.9, 29.1, 24.2)).draw(SHAPE) | drawn, Box((9, 19, 30, 25)).draw(SHAPE)
    )


def test_points_and_strokes_go_with_the_picture():
    for times in (1, 10):
        drawn = Points(((40 * times, 30 * times),)).draw((60 * times, 80 * times))
        radius = 2 * unit(drawn.shape)
        assert drawn[30 * times, 40 * times] and drawn.sum() == pytest.approx(
            np.pi * (radius + 0.5) ** 2, rel=0.4
        )

    # a line of one pixel becomes as wide as a stroke, and what is wide stays as it is
    thin = np.zeros((600, 800), np.uint8)
    thin[300, 100:700] = 1
    wide = widen(thin)
    assert wide[:, 400].sum() == 3 * unit(thin.shape) | 1 and (wide & thin).sum() == thin.sum()
    block = Box((100, 100, 300, 300)).draw((600, 800))
    assert np.array_equal(widen(block), block)


def test_training_draws_with_the_same_functions(disc):
    _, mask = disc
    rows, columns = np.nonzero(mask)
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    box = weaken(mask, "box", np.random.default_rng(0))
    assert np.array_equal(box, Box(tuple(map(float, corners))).draw(mask.shape))

    point = weaken(mask, "point", np.random.default_rng(0))
    places = {
        (x, y)
        for y, x in np.argwhere(mask)
        if np.array_equal(Points(((x, y),)).draw(mask.shape), point)
    }
    assert len(places) == 1


# ---- what is made of it ----


def test_colours_make_a_mask_of_a_box_a_point_and_a_scribble(disc):
    pixels, mask = disc
    box = Box((18, 14, 52, 48))
    drawn = box.draw(mask.shape)
    found = grabcut(pixels, drawn, box)
    assert overlap(drawn, mask) < 0.6 < 0.95 < overlap(found, mask)
    assert np.array_equal(found, grabcut(pixels, drawn, box))  # whatever was drawn at random before

    for prompt in (Points(((34, 30),)), Scribble(None)):
        drawn = Points(((34, 30),)).draw(mask.shape)
        assert overlap(grabcut(pixels, drawn, prompt), mask) > 0.95


def test_a_box_around_all_or_without_an_object_stays_a_box():
    grey, box = np.zeros((3, 64, 64), np.float32), Box((0, 0, 64, 64))
    assert grabcut(grey, box.draw((64, 64)), box).all()
    box = Box((10, 10, 12, 11))
    assert grabcut(grey, box.draw((64, 64)), box).any()


def test_what_is_found_counts_in_a_box_and_beside_points():
    drawn, found = np.zeros((2, 8, 8), np.uint8)
    drawn[2:5, 2:5], found[4:8, 4:8] = 1, 1
    assert keep_found(found, drawn, Box(())).sum() == 1
    assert keep_found(found, drawn, Points(())).sum() == 9 + 16 - 1
    assert np.array_equal(keep_found(found * 0, drawn, Box(())), drawn)


def test_the_model_is_asked_with_the_support_itself(disc, picture):
    asked = []

    def find(pixels, drawn):
        asked.append((pixels.shape, drawn.shape))
        return np.ones(drawn.shape[1:], bool)

    masks = [Box((10, 10, 40, 40)), np.ones((64, 64), bool), Points(((5, 5),))]
    images = [picture(seed) for seed in range(3)]
    _, marks, shots = prepare_supports(images, masks, 32, Pick(), refiner("self", find))
    assert asked == [((1, 3, 32, 32), (1, 32, 32))] * 2 and shots == 3  # not for a whole mask
    assert marks[0].sum() == 15 * 15 and marks[2].all()


def test_each_kind_is_made_better_in_its_own_way(disc):
    pixels, mask = disc
    box, point = Box((18, 14, 52, 48)), Points(((34, 30),))

    def find(support, drawn):
        return np.zeros(drawn.shape[1:], bool) | (np.arange(64) < 30)

    auto = refiner("auto", find)
    for prompt, way in ((box, "self"), (point, "grabcut"), (Scribble(None), "grabcut")):
        drawn = (prompt if prompt is box else point).draw(mask.shape)
        made = auto(pixels, drawn, prompt)
        assert np.array_equal(made, refiner(way, find)(pixels, drawn, prompt))
        assert not np.array_equal(made, drawn)


# ---- how they are given ----


def test_one_for_each_support_in_whatever_lists(picture):
    image, box = picture(0), (1, 2, 3, 4)
    assert name_prompts(image, None, box, None, None) == Box(box)
    assert name_prompts([image], None, box, None, None) == [Box(box)]
    assert name_prompts([image], None, [box], None, None) == [Box(box)]
    assert name_prompts(image, None, np.array([box]), None, None) == Box(box)
    assert name_prompts(np.zeros((2, 3, 8, 8)), None, [box] * 2, None, None) == [Box(box)] * 2
    assert name_prompts([[image], [image]], None, [[box], [box]], None, None) == [[Box(box)]] * 2

    one, several = Points(((5, 6),)), Points(((5, 6), (7, 8)))
    assert name_prompts(image, None, None, (5, 6), None) == one
    assert name_prompts([image], None, None, (5, 6), None) == [one]
    assert name_prompts([image], None, None, [(5, 6)], None) == [one]
    assert name_prompts(image, None, None, [(5, 6), (7, 8)], None) == several
    both = [(5, 6), [(5, 6), (7, 8)]]
    assert name_prompts([image] * 2, None, None, both, None) == [one, several]
    assert read_numbers("1,2,3,4; 5.5,6", "box") == [(1, 2, 3, 4), (5.5, 6)]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (Box((10, 10, 81, 20)), ["10,10,81,20", "80 x 60"]),
        (Box((-1, 10, 8, 20)), ["-1,10,8,20", "80 x 60"]),
        (Box((10, 10, 10, 20)), ["10,10,10,20", "empty"]),
        (Box((10, 20, 30, 10)), ["10,20,30,10", "empty"]),
        (Box((10, 20, 30)), ["10,20,30", "x0,y0,x1,y1"]),
        (Points(((80, 10),)), ["80,10", "80 x 60"]),
        (Points(((10, -1),)), ["10,-1", "80 x 60"]),
        (Points(((10, 20), (5,))), ["5", "x,y"]),
        (Points(()), ["x,y"]),
    ],
)
def test_what_is_not_in_the_picture_is_refused(prompt, parts):
    with pytest.raises(InputError) as refusal:
        prompt.draw(SHAPE)
    assert all(part in str(refusal.value) for part in parts)


def test_a_scribble_of_another_shape_or_without_paint_is_refused(picture):
    image, as_drawn = picture(1, 80, 60), refiner("fill", None)
    scribble = Scribble(Image.new("L", (50, 50), 255), "scribble=a.png")
    with pytest.raises(InputError, match=r"scribble=a.png.*50 x 50.*80 x 60"):
        prepare_mask(scribble, SHAPE, 1, Pick())
    with pytest.raises(InputError, match=r"scribble=b.png marks no pixel"):
        empty = Scribble(np.zeros(SHAPE, bool), "scribble=b.png")
        prepare_supports(image, empty, 32, Pick(), as_drawn)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, ["masks=", "boxes=", "points=", "scribbles="]),
        ({"masks": 0, "boxes": (1, 2, 3, 4)}, ["masks", "boxes"]),
        ({"boxes": [(1, 2, 3, 4), (1, 2, 3, 4)]}, ["1 supports", "2 of boxes="]),
        ({"boxes": ["corner"]}, ["boxes=", "corner"]),
        ({"boxes": (1, 2, 3, float("nan"))}, ["boxes=", "nan"]),
        ({"points": [(1, 2, 3), (1, 2)]}, ["points="]),
    ],
)
def test_what_is_not_one_for_each_support_is_refused(picture, given, parts):
    words = dict.fromkeys(("masks", "boxes", "points", "scribbles")) | given
    with pytest.raises(InputError) as refusal:
        name_prompts([picture(0)], **words)
    assert all(part in str(refusal.value) for part in parts)
    with pytest.raises(InputError, match="grab"):
        refiner("grab", None)
