"""Pictures as arrays: every mode that files come in, damaged files, and the reference's resize."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffews import InputError
from diffews.images.files import (
    check_image,
    list_images,
    normalize,
    open_image,
    open_mask,
    open_rgb,
    resize_image,
)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA"])
def test_every_mode_opens_as_rgb(picture, tmp_path, mode):
    original = picture(0).convert(mode)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    original.save(file)
    opened = open_rgb(file)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(original.convert("RGB")))


def test_benchmarks_are_read_as_stored(picture, tmp_path):
    file = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned by 90 degrees
    picture(0, 40, 20).save(file, exif=exif)
    assert open_rgb(file).size == (40, 20)


def test_a_palette_mask_gives_its_indices(tmp_path):
    mask = Image.fromarray(np.array([[0, 3], [80, 0]], np.uint8), "P")
    mask.putpalette([200, 10, 10] * 256)
    mask.save(tmp_path / "mask.png")
    assert open_mask(tmp_path / "mask.png").tolist() == [[0, 3], [80, 0]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_grey_mask_saved_in_colour_is_taken(square_mask, tmp_path, mode):
    Image.fromarray(square_mask()).convert(mode).save(tmp_path / "mask.png")
    assert np.array_equal(open_mask(tmp_path / "mask.png"), square_mask() * 255)


def test_a_one_bit_mask_is_0_and_1(square_mask, tmp_path):
    Image.fromarray(square_mask()).save(tmp_path / "mask.png")
    mask = open_mask(tmp_path / "mask.png")
    assert mask.dtype == np.uint8 and np.array_equal(mask, square_mask())


def test_a_colour_picture_is_no_mask(picture, tmp_path):
    picture(0).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"mask\.png .*colour"):
        open_mask(tmp_path / "mask.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg does not exist"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_picture_is_refused(picture, tmp_path, suffix, kept):
    file = tmp_path / f"a{suffix}"
    picture(0).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=rf"a\{suffix} .*replace the file"):
        open_image(file)


def test_a_text_file_and_a_folder_are_no_pictures(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    for path in (tmp_path / "a.jpg", tmp_path):
        for read in (open_image, check_image):
            with pytest.raises(InputError, match="replace the file") as error:
                read(path)
            assert str(path) in str(error.value)


def test_an_early_check_decodes_nothing(picture, tmp_path):
    file = tmp_path / "a.png"
    picture(0).save(file)
    check_image(file)
    file.write_bytes(file.read_bytes()[:-100])
    check_image(file)
    file.unlink()
    with pytest.raises(InputError, match=r"a\.png does not exist"):
        check_image(file)


def test_the_resize_averages_as_pils_bilinear_does():
    row = np.zeros((4, 4, 3), np.uint8)
    row[:, 0] = 70
    row[:, 3, 1] = 7
    resized = resize_image(Image.fromarray(row), 2)
    # halving weighs the four pixels of a side 3/7, 3/7, 1/7 and 0 for the left half, mirrored for
    # the right one
    assert resized.shape == (3, 2, 2) and resized.dtype == np.uint8
    assert resized[0].tolist() == [[30, 0], [30, 0]]
    assert resized[1].tolist() == [[30, 3], [30, 3]]


def test_the_resize_ignores_the_aspect_ratio(picture):
    assert resize_image(picture(0, 70, 20), 32).shape == (3, 32, 32)
    same = picture(0, 32, 32)
    assert np.array_equal(resize_image(same, 32), np.asarray(same).transpose(2, 0, 1))


def test_colours_are_mapped_to_minus_1_to_1():
    values = normalize(np.array([0, 51, 255], np.uint8))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [-1, -0.6, 1], atol=1e-6)


def test_a_folder_lists_its_pictures_by_name(picture, tmp_path):
    for name in ("b.JPG", "a.png", "c.webp"):
        picture(0).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder.jpg").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]


def test_a_fifo_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match=f"{path} is no file"):
            open_rgb(path)


def test_a_file_that_the_system_cannot_open_is_not_called_broken(tmp_path, picture, monkeypatch):
    picture(0).save(tmp_path / "a.png")

    def too_many(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Image, "open", too_many)
    with pytest.raises(InputError) as error:
        open_rgb(tmp_path / "a.png")
    assert "Too many open files" in str(error.value) and "replace" not in str(error.value)
