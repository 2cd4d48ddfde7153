"""Photos as people give them: upright, on white, with a mask that was drawn somewhere else."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffews.errors import InputError
from diffews.images.drawn_masks import Pick, read_mask
from diffews.images.files import open_image, to_rgb

ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
# EXIF type -> bytes of a value: BYTE, SHORT, LONG, and their signed kinds
WIDTHS = {1: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4}


def open_photo(path: str | Path) -> tuple[Image.Image, int]:
    """Decodes a photo -> RGB as people see it, and how its file is turned; see `upright_photo`."""
    return upright_photo(open_image(path), str(path))


def open_annotated(
    path: str | Path, size: tuple[int, int], where: str
) -> tuple[Image.Image, str]:
    """Decodes a photo in the view in which it was annotated.

    Args:
        path: the photo.
        size: its (width, height) as the annotations say.
        where: what says so.

    Returns:
        RGB, upright where that has the size, else as stored; and what a user should know of it.

    Raises:
        InputError: where neither has the size.

    """
    stored = open_image(path)
    upright, turned = upright_photo(stored, str(path))
    if upright.size == size:
        both = turned != 1 and stored.size == size
        return upright, ("photos that EXIF turns fit their annotations as stored, too; they are "
                         "taken upright" if both else "")
    if stored.size == size:
        stored.info.pop("exif", None)
        return upright_photo(stored, str(path))[0], (
            "photos that EXIF turns fit their annotations only as stored, and are taken so")
    raise InputError(f"{path} is {upright.width} x {upright.height}, "
                     f"{where} says {size[0]} x {size[1]}")


def upright_photo(image: Image.Image, name: str) -> tuple[Image.Image, int]:
    """Turns a photo as its EXIF orientation says, and lays what is transparent on white.

    Args:
        image: of any mode; not decoded yet, or decoded.
        name: what to call it in an error.

    Returns:
        RGB, and the orientation from 1 (stored upright) to 8.

    """
    turned = orientation_of(image)
    if image.has_transparency_data and image.mode[0] not in "IF":
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return turn(to_rgb(image, name), turned), turned


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Turns a stored picture upright; without the tag, so that it is not turned again."""
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
        image.info.pop("exif", None)
    return image


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 where there is none. Nothing else of EXIF is read."""
    image.load()
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    exif = image.info.get("exif")
    if exif is None and isinstance(text := image.info.get("Raw profile type exif"), str):
        try:
            exif = bytes.fromhex("".join(text.split("\n")[3:]))  # as ImageMagick writes it
        except ValueError:
            return 1
    return _find_orientation(exif) if isinstance(exif, bytes) else 1


def _find_orientation(exif: bytes) -> int:
    """Looks for one tag in the first directory; other entries may hold anything."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"\x2a\0": "little", b"\0\x2a": "big"}.get(exif[2:4])
    if order is None:
        return 1

    def number(start: int, length: int) -> int:
        return int.from_bytes(exif[start : start + length], order)  # type: ignore[arg-type]

    first = number(4, 4) + 2
    for entry in range(first, min(first + 12 * number(first - 2, 2), len(exif)), 12):
        if number(entry, 2) == ORIENTATION:
            kind, value = number(entry + 2, 2), exif[entry + 8 : entry + 9]
            if kind == 2 and value.isdigit():  # written as text
                found = int(value)
            else:
                found = number(entry + 8, WIDTHS.get(kind, 0))
            return found if found in TURNS else 1
    return 1


def open_photo_mask(
    path: str | Path, size: tuple[int, int], turned: int, name: str = "", pick: Pick | None = None
) -> tuple[np.ndarray, list[str]]:
    """Reads the mask file of a photo; see `photo_mask`."""
    return photo_mask(open_image(path), size, turned, name or str(path), pick)


def photo_mask(
    mask: Image.Image, size: tuple[int, int], turned: int, name: str, pick: Pick | None = None
) -> tuple[np.ndarray, list[str]]:
    """Reads the mask that belongs to a photo.

    Args:
        mask: the mask as a picture of any mode; see `read_mask`.
        size: (width, height) of the photo, upright.
        turned: the photo's orientation, as `open_photo` gives it.
        name: what to call the mask in an error.
        pick: which pixels are the object, where black and white does not say it.

    Returns:
        uint8 {0, 1} (height, width), and what was done to it that a user should know.

    Raises:
        InputError: for values that do not say what the object is, or a size that does not fit.

    """
    own_turn = orientation_of(mask)
    marked, notes = read_mask(mask, name, pick or Pick())
    picture = turn(Image.fromarray(marked), own_turn)

    # a mask that was drawn on the stored pixels is turned as its photo is
    if turned != 1 and own_turn == 1:
        stored = size[::-1] if turned >= 5 else size
        as_seen, as_stored = (_same_aspect(picture.size, shape) for shape in (size, stored))
        if as_seen and as_stored:
            notes.append("fits its photo both as stored and as turned by EXIF; "
                         "it is taken as drawn on the upright photo")
        elif as_stored:
            picture = turn(picture, turned)
            notes.append("fits its photo as stored; it is turned with it, as EXIF says")

    if picture.size != size:
        said = f"is {picture.width} x {picture.height}, its picture {size[0]} x {size[1]}"
        if not _same_aspect(picture.size, size):
            raise InputError(f"{name}: the mask {said}; give one of its size, or of its shape")
        picture = picture.resize(size, Image.Resampling.NEAREST)
        notes.append(f"{said}; it is resized")
    return np.array(picture), notes


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (width, height) are of one shape, but for the rounding of a side."""
    (width, height), (w, h) = size, other
    return round(width * h / w) == height or round(height * w / h) == width
