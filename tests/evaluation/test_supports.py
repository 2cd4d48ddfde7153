"""`diffews segment box= point= scribble=` and the pipeline's own words for them."""

import numpy as np
import pytest
from PIL import Image

from diffews.errors import InputError
from diffews.images.weak import WEAK, Box, Points


@pytest.fixture
def files(picture, tmp_path):
    """Two supports, a query and a scribble on the first support, as files."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees: 60 x 80
    picture(1, 80, 60).save(tmp_path / "turned.jpg", exif=exif)
    picture(2, 80, 60).save(tmp_path / "support.png")
    picture(3, 50, 40).save(tmp_path / "query.png")
    scribble = np.zeros((60, 80), np.uint8)
    scribble[30, 20:60] = 255
    Image.fromarray(scribble).save(tmp_path / "scribble.png")
    return tmp_path


@pytest.fixture
def words(weight, base, files):
    words = f"segment weight={weight} base={base} image_size=64 threads=1 out={files / 'out'}"
    return [*words.split(), f"support={files / 'support.png'}", f"query={files / 'query.png'}"]


def mask_of(files):
    with Image.open(files / "out" / "query_mask.png") as mask:
        return np.asarray(mask)


def test_a_filled_box_is_the_mask_of_that_box(run, words, files):
    box = np.zeros((60, 80), np.uint8)
    box[10:41, 20:61] = 255
    Image.fromarray(box).save(files / "mask.png")
    assert run(*words, f"mask={files / 'mask.png'}").code == 0
    wanted = mask_of(files)
    assert run(*words, "box=20,10,61,41", "weak=fill").code == 0
    assert np.array_equal(mask_of(files), wanted)
    assert run(*words, "box=20,10,50,41", "weak=fill").code == 0
    assert not np.array_equal(mask_of(files), wanted)


@pytest.mark.parametrize("weak", WEAK)
@pytest.mark.parametrize("key", ["box", "point", "scribble"])
def test_the_command_says_what_the_pipeline_says(run, words, files, pipe, key, weak):
    values = {"box": "20,10,61,41", "point": "30,20,50,30", "scribble": files / "scribble.png"}
    assert run(*words, f"{key}={values[key]}", f"weak={weak}").code == 0

    support, query = (Image.open(files / name) for name in ("support.png", "query.png"))
    given = {
        "box": {"boxes": (20, 10, 61, 41)},
        "point": {"points": [(30, 20), (50, 30)]},
        "scribble": {"scribbles": Image.open(files / "scribble.png")},
    }
    bank = pipe.encode_support(support, weak=weak, **given[key])
    assert np.array_equal(mask_of(files) > 0, pipe(query, bank).masks[0])


def test_a_support_shown_to_itself_is_segmented_with_what_was_found(pipe, picture):
    support, box = picture(2), Box((10, 10, 50, 50))
    drawn = box.draw((64, 64))
    found = pipe(support, pipe.encode_support(support, drawn)).masks[0]
    wanted = pipe.encode_support(support, found & (drawn > 0))
    bank = pipe.encode_support(support, boxes=box.corners, weak="self")
    query = picture(3)
    assert 0 < (found & (drawn > 0)).sum() < drawn.sum()
    assert np.array_equal(pipe(query, bank).scores[0], pipe(query, wanted).scores[0])


def test_boxes_are_in_pixels_of_the_upright_picture(run, words, files):
    more = [f"support={files / 'turned.jpg'},{files / 'support.png'}"]
    assert run(*words, *more, "box=0,0,60,80;0,0,80,60").code == 0
    message = run(*words, *more, "box=0,0,80,60;0,0,80,60").err
    assert "box=" in message and "60 x 80" in message


def test_several_supports_of_several_kinds(pipe, picture, square_mask):
    images, query = [picture(1), picture(2)], picture(3)
    marks = [square_mask(), Points(((30, 30),))]
    alone = [pipe.encode_support(image, mark) for image, mark in zip(images, marks, strict=True)]
    both = pipe.encode_support(images, marks)
    joined = alone[0].concatenate(alone[1])
    assert np.abs(pipe(query, both).scores[0] - pipe(query, joined).scores[0]).max() < 0.02
    with pytest.raises(InputError, match="masks and boxes"):
        pipe.encode_support(images, marks, boxes=[(0, 0, 5, 5)] * 2)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["box=0,0,81,60"], ["box= 0,0,81,60", "80 x 60"]),
        (["box=5,5,5,9"], ["box= 5,5,5,9", "empty"]),
        (["box=5,5,9"], ["box= 5,5,9", "x0,y0,x1,y1"]),
        (["box=a,b,c,d"], ["box=a,b,c,d"]),
        (["box=0,0,9,9;0,0,9,9"], ["1 support", "2 masks"]),
        (["box=0,0,9,9", "point=3,3"], ["box=", "point="]),
        (["box=0,0,9,9", "mask={mask}"], ["mask=", "box="]),
        (["point=80,3"], ["point= 80,3", "80 x 60"]),
        (["point=3,3,4"], ["point= 4", "x,y"]),
        (["box=1,1,2,2", "image_size=16"], ["box=", "image_size=16"]),
        (["scribble={query}"], ["query.png"]),
        (["scribble=none.png"], ["none.png"]),
        (["mask={mask}", "weak=self"], ["weak=self", "box="]),
        (["point=3,3", "weak=cut"], ["weak='cut'", "grabcut"]),
    ],
)
def test_what_cannot_be_is_refused(refused, words, files, more, parts):
    place = {"mask": files / "scribble.png", "query": files / "query.png"}
    message = refused(*words, *[word.format(**place) for word in more])
    assert all(part in message for part in parts), message
    assert not (files / "out").exists()
