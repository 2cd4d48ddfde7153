"""Photos and masks as people save them: wide modes, EXIF, palettes, transparency, paint."""

import struct

import numpy as np
import pytest
from PIL import Image

from diffews import InputError
from diffews.images.drawn_masks import Pick, read_mask
from diffews.images.files import open_rgb
from diffews.images.photos import open_photo, photo_mask

# ---- pictures ----


def exif_of(*entries, order="<", magic=42):
    """An EXIF block of (tag, type, count, four bytes of value) entries."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", magic, 8)
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + body + b"\0" * 4


TURNED = (0x112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_and_floats_are_scaled_to_the_same_picture_as_8_bits(picture, tmp_path, suffix):
    grey = np.asarray(picture(0).convert("L"))
    file = tmp_path / f"wide.{suffix}"
    Image.fromarray(grey.astype(np.uint16) * 257).save(file)
    assert np.array_equal(np.asarray(open_rgb(file))[..., 1], grey)
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "float.tif"))[..., 1], grey)


@pytest.mark.parametrize(
    "values, shown",
    [
        (np.full((4, 4), 7, np.uint16), "[7, 7]"),  # 8 bits saved as 16: it would turn black
        (np.full((4, 4), 70_000, np.int32), "70000"),
        (np.array([[0, 255]], np.float32), "[0, 255]"),
        (np.array([[0, np.nan]], np.float32), "nan"),
    ],
)
def test_other_ranges_are_refused_and_shown(tmp_path, values, shown):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(InputError) as error:
        open_rgb(tmp_path / "a.tif")
    assert "a.tif" in str(error.value) and shown in str(error.value)


@pytest.mark.parametrize(
    "exif",
    [
        exif_of(TURNED),
        exif_of((0x112, 3, 1, struct.pack(">HH", 6, 0)), order=">"),
        exif_of((0x112, 4, 1, struct.pack("<I", 6))),
        exif_of((0x112, 2, 2, b"6\0\0\0")),
        exif_of(TURNED, (0x11A, 10, 1, struct.pack("<I", 9999))),
        exif_of(TURNED, (0x100, 11, 1, struct.pack("<f", float("nan")))),
        exif_of(TURNED, (0x8769, 2, 4, b"abc\0")),
        exif_of(TURNED, (0x11A, 5, 1, b"\0" * 4))[:36],
        b"Exif\0\0" + exif_of(TURNED),
        b"Exif\0\0XX" + exif_of(TURNED)[8:],
    ],
)
def test_a_photo_is_turned_by_its_orientation_whatever_else_exif_holds(picture, tmp_path, exif):
    stored = picture(0, 40, 20)
    stored.save(tmp_path / "a.png", exif=exif)
    image, turned = open_photo(tmp_path / "a.png")
    assert turned == 6 and image.tobytes() == stored.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_an_orientation_that_is_none_turns_nothing(picture, tmp_path):
    for value in (0, 9, 600):
        exif = exif_of((0x112, 3, 1, struct.pack("<HH", value, 0)))
        picture(0, 40, 20).save(tmp_path / "a.png", exif=exif)
        assert open_photo(tmp_path / "a.png")[0].size == (40, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new(mode, (2, 1), (0,) * len(mode))
    image.putpixel((1, 0), (*(70,) * (len(mode) - 1), 255))
    image.save(tmp_path / "a.png")
    assert np.asarray(open_photo(tmp_path / "a.png")[0])[0].tolist() == [[255] * 3, [70] * 3]


# ---- masks ----

OBJECT = np.zeros((24, 32), bool)
OBJECT[6:16, 8:20] = True
WHITE = Image.fromarray(OBJECT.astype(np.uint8) * 255)


def palette(indices, *colours):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([part for colour in colours for part in colour])
    return image


def merged(*bands):
    bands = [Image.new("L", WHITE.size, b) if isinstance(b, int) else b for b in bands]
    return Image.merge({2: "LA", 4: "RGBA"}[len(bands)], bands)


BLACK, PAPER, RED = (0, 0, 0), (255, 255, 255), (200, 0, 0)
MASKS = {
    "white": WHITE,
    "one bit": WHITE.convert("1"),
    "rgb": WHITE.convert("RGB"),
    "palette": palette(OBJECT, BLACK, PAPER),
    "palette, white first": palette(~OBJECT, PAPER, BLACK),
    "palette, red first": palette(~OBJECT, RED, BLACK),
    "quantized": WHITE.convert("RGB").quantize(2),
    "palette of classes": palette(OBJECT, BLACK, (128, 0, 0), (0, 128, 0)),
    "classes, white first": palette(OBJECT, PAPER, BLACK, RED),
    "cut out of white": merged(255, 255, 255, WHITE),
    "cut out of black": merged(0, 0, 0, WHITE),
    "paint on nothing": merged(WHITE, 0, 0, WHITE),
    "grey and alpha": merged(WHITE, 255),
    "white and alpha": merged(255, WHITE),
    "16 bits of 1": Image.fromarray(OBJECT.astype(np.uint16)),
    "float of 1": Image.fromarray(OBJECT.astype(np.float32)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_of_any_form_is_the_same_mask(mask):
    found, notes = read_mask(mask, "m", Pick())
    assert found.dtype == np.uint8 and np.array_equal(found, OBJECT) and not notes


SOFT = {
    "16 bits": Image.fromarray(OBJECT.astype(np.uint16) * 65535),
    "not quite white": Image.fromarray(OBJECT.astype(np.uint8) * 250),
    "anti-aliased": Image.fromarray(OBJECT.repeat(3, 0).repeat(3, 1)).convert("L").resize(
        WHITE.size, Image.Resampling.BICUBIC),
}  # fmt: skip


@pytest.mark.parametrize("mask", SOFT.values(), ids=SOFT)
def test_greys_are_cut_at_half_of_their_maximum_with_a_line(mask):
    found, notes = read_mask(mask, "m", Pick())
    assert np.array_equal(found, OBJECT) and len(notes) == 1 and "above" in notes[0]


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_jpeg_of_a_mask_is_a_mask(tmp_path, quality):
    big = Image.fromarray(OBJECT.astype(np.uint8) * 255).resize((352, 264), 0)
    big.save(tmp_path / "m.jpg", quality=quality)
    found, notes = read_mask(Image.open(tmp_path / "m.jpg"), "m", Pick())
    assert np.array_equal(found, np.asarray(big) > 0) and len(notes) == 1


CLASSES = OBJECT.astype(np.uint8)
CLASSES[18:, 20:] = 2


@pytest.mark.parametrize(
    "mask, key",
    [
        (Image.fromarray(CLASSES), "mask_value"),
        (Image.fromarray(CLASSES * 127), "mask_value"),
        (Image.fromarray(np.where(OBJECT, 1, np.where(CLASSES, 255, 0)).astype(np.uint8)),
         "mask_value"),
        (Image.fromarray(CLASSES.astype(np.uint16)), "mask_value"),
        (palette(CLASSES, BLACK, PAPER, RED), "mask_value"),
        (Image.fromarray(OBJECT.astype(np.float32) * 7), "mask_value"),
        (merged(WHITE, WHITE.rotate(90)), "mask_value"),
        (Image.merge("RGB", [WHITE, *[Image.new("L", WHITE.size)] * 2]), "mask_colour"),
    ],
)  # fmt: skip
def test_what_does_not_say_the_object_names_the_key_that_helps(mask, key):
    with pytest.raises(InputError, match=f"my mask.*{key}="):
        read_mask(mask, "my mask", Pick())


def test_label_maps_and_paint_are_picked_from():
    for mask in (Image.fromarray(CLASSES), palette(CLASSES, BLACK, PAPER, RED)):
        assert np.array_equal(read_mask(mask, "m", Pick(value=2))[0], CLASSES == 2)
    painted = palette(CLASSES, BLACK, PAPER, RED).convert("RGB")
    assert np.array_equal(read_mask(painted, "m", Pick(colour=RED))[0], CLASSES == 2)
    with pytest.raises(InputError, match="mask_value=7.* 0, 1, 2"):
        read_mask(Image.fromarray(CLASSES), "m", Pick(value=7))
    with pytest.raises(InputError, match="mask_colour=0,255,0.* 200,0,0"):
        read_mask(painted, "m", Pick(colour=(0, 255, 0)))


def test_an_object_all_around_the_edge_is_said():
    _, notes = read_mask(Image.fromarray(~OBJECT), "m", Pick())
    assert len(notes) == 1 and "edge" in notes[0]


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_mask_drawn_on_the_stored_pixels_is_turned_with_its_photo(turned):
    exif = Image.Exif()
    exif[0x112] = turned
    size = WHITE.size if turned < 5 else WHITE.size[::-1]
    found, notes = photo_mask(WHITE, size, turned, "m")
    assert found.shape == size[::-1] and bool(notes) == (turned != 1)
    if turned >= 5:
        counts = sorted([found.any(0).sum(), found.any(1).sum()])
        assert counts == [10, 12] and "as stored" in notes[0]
    else:
        assert np.array_equal(found, OBJECT)  # both fit: as people saw it


def test_a_mask_of_the_same_shape_is_resized_and_another_is_refused():
    found, notes = photo_mask(WHITE, (64, 48), 1, "m")
    assert np.array_equal(found, OBJECT.repeat(2, 0).repeat(2, 1)) and "32 x 24" in notes[0]
    with pytest.raises(InputError, match="m: the mask is 32 x 24, its picture 64 x 50"):
        photo_mask(WHITE, (64, 50), 1, "m")
