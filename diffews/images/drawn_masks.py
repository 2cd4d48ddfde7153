"""Masks as people draw and save them: which pixels are the object."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffews.errors import InputError

DARK = 64  # of 255: a palette's black may be near black
GREY = 24  # of 255: how far JPEG may draw the channels of a grey apart
NEAR = 32  # of 255: how far JPEG may draw a paint from its colour
SHOWN = 5  # values or colours that an error shows


@dataclass(frozen=True)
class Pick:
    """What is the object, where black and white does not say it.

    value: of a label map: the index of a palette, or the grey value.
    colour: of a paint: red, green, blue from 0 to 255.
    """

    value: int | None = None
    colour: tuple[int, ...] | None = None

    @classmethod
    def of(cls, value: int | None, colour: Sequence[int]) -> "Pick":
        """Makes one of mask_value= and mask_colour=; what is no colour is an InputError."""
        if colour and (len(colour) != 3 or not all(0 <= part <= 255 for part in colour)):
            raise InputError(f"mask_colour={','.join(map(str, colour))} is no colour; give red, "
                             "green and blue from 0 to 255: 255,0,0")
        if colour and value is not None:
            raise InputError("give either mask_value= or mask_colour=")
        return cls(value, tuple(colour) or None)


def read_mask(mask: Image.Image, name: str, pick: Pick) -> tuple[np.ndarray, list[str]]:
    """Finds the object in a mask picture.

    White on black in any mode; a palette of black and one colour by its colours; transparency
    where what is seen has one colour; greys (anti-aliased, JPEG, 16 bits) at half of their
    maximum; anything else as `pick` says.

    Returns:
        uint8 {0, 1} (H, W), and what was done that a user should know.

    Raises:
        InputError: for a picture that does not say what is the object; names the key that helps.

    """
    if pick.colour is not None:
        return _of_colour(mask, name, pick.colour)
    values = _one_channel(mask, name, by_index=pick.value is not None)
    if pick.value is not None:
        found = values == pick.value
        if not found.any():
            raise InputError(f"{name}: no pixel has mask_value={pick.value}; "
                             f"it holds {_show_values(np.unique(values))}")
        return found.astype(np.uint8), []

    found, notes = _object_of(values, name, mask.format == "JPEG")
    edge = np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])
    if edge.all() and not found.all():
        notes.append(f"marks all of the picture's edge ({found.mean():.0%} of it in all); "
                     "white is the object, black is not")
    return found, notes


def _one_channel(mask: Image.Image, name: str, by_index: bool) -> np.ndarray:
    """Returns the channel (H, W) that holds the mask.

    by_index: a palette's indices are asked for, whatever its colours are.
    """
    if mask.mode == "P" and (by_index or not _one_visible_colour(mask)):
        return np.asarray(mask) if by_index else _palette_values(mask)
    if mask.mode in ("1", "L", "F") or mask.mode.startswith("I"):
        return np.asarray(mask)

    # the colours, and beside them the transparency
    pixels = np.asarray(mask.convert("RGBA"))
    colours, alpha = pixels[..., :3], pixels[..., 3]
    if not by_index and _one_visible_colour(mask):
        return alpha
    if int((colours.max(2) - colours.min(2)).max()) > GREY:
        raise InputError(f"{name} is a colour picture, not a mask; say which colour is "
                         f"the object with mask_colour=R,G,B (it holds {_show_colours(colours)})")
    if alpha.min() != alpha.max() and not by_index:
        raise InputError(f"{name} holds greys and another transparency; say which grey is the "
                         "object with mask_value=N, or save one of them with one channel")
    return colours[..., 1]


def _one_visible_colour(mask: Image.Image) -> bool:
    """Whether transparency alone says what is the object: all that is seen has one colour."""
    if not mask.has_transparency_data or mask.mode[0] in "IF":
        return False
    pixels = np.asarray(mask.convert("RGBA"))
    seen = pixels[pixels[..., 3] > 0]
    return not _is_one(pixels[..., 3:].reshape(-1, 1)) and _is_one(seen[:, :3])


def _is_one(rows: np.ndarray) -> bool:
    return len(rows) > 0 and bool((rows == rows[0]).all())


def _palette_values(mask: Image.Image) -> np.ndarray:
    """A palette of black and one colour by its colours, 0 and 1; any other as its indices."""
    indices = np.asarray(mask)
    palette = np.array(mask.getpalette("RGB"), np.uint8).reshape(-1, 3)
    is_dark = palette.max(1) < DARK
    if len(np.unique(palette, axis=0)) == 2 and is_dark.any() and not is_dark.all():
        return (~is_dark)[indices]
    return indices


def _object_of(values: np.ndarray, name: str, is_jpeg: bool) -> tuple[np.ndarray, list[str]]:
    """Two values as they are; greys at half of their maximum; a label map is refused."""
    found = np.unique(values)
    if np.isin(found, (0, 1)).all() or np.isin(found, (0, 255)).all():
        return (values > 0).astype(np.uint8), []

    # small numbers, and large areas of one grey, are classes: which of them is not for us to say
    peak = float(found[-1])
    is_grey = found[0] >= 0 and (peak >= 128 or (0 < peak <= 1 and values.dtype.kind == "f"))
    if not is_grey or _is_label_map(values, found, peak, is_jpeg):
        raise InputError(
            f"{name} holds the values {_show_values(found)}; give {{0, 1}} or {{0, 255}}, "
            "or say which of them is the object with mask_value=N")
    note = f"holds greys up to {peak:g}; the object is what is above {peak / 2:g}"
    return (values > peak / 2).astype(np.uint8), [note]


def _is_label_map(values: np.ndarray, found: np.ndarray, peak: float, is_jpeg: bool) -> bool:
    """Whether greys are classes, not the edge of one object: some of them fill an area."""
    import cv2  # on demand: drawing a list of episodes needs no mask

    few = len(found) <= 16 and not is_jpeg
    between = found[(found > 0) & (found < peak)]
    if few and len(found) <= 4 and len(between) and between[0] < peak / 8:
        return True
    scaled = (values.astype(np.float32) * (255 / peak)).astype(np.float32)
    square = np.ones((5, 5), np.uint8)
    is_flat = cv2.dilate(scaled, square) - cv2.erode(scaled, square) <= (0 if few else 10)

    # JPEG blurs black and white a little, too
    low, high = (0, 255) if few else (25, 230)
    return bool((is_flat & (scaled > low) & (scaled < high)).any())


def _of_colour(
    mask: Image.Image, name: str, colour: tuple[int, ...]
) -> tuple[np.ndarray, list[str]]:
    """The pixels of one paint; a JPEG's are near it."""
    pixels = np.asarray(mask.convert("RGBA")).astype(np.int16)
    far = np.abs(pixels[..., :3] - np.array(colour, np.int16)).max(2)
    within = NEAR if mask.format == "JPEG" else 0
    found = (far <= within) & (pixels[..., 3] >= 128)
    if not found.any():
        said = ",".join(map(str, colour))
        raise InputError(f"{name}: no pixel has mask_colour={said}; "
                         f"it holds {_show_colours(pixels[..., :3])}")
    note = f"is a JPEG; the object is what is within {NEAR} of the colour"
    return found.astype(np.uint8), [note] if within else []


def _show_values(found: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in found[:SHOWN].astype(float))
    return shown + (", ..." if len(found) > SHOWN else "")


def _show_colours(colours: np.ndarray) -> str:
    counts = Counter(map(tuple, colours.reshape(-1, 3)[:1_000_000].tolist()))
    shown = [",".join(map(str, colour)) for colour, _ in counts.most_common(SHOWN)]
    return " ".join(shown) + (" ..." if len(counts) > SHOWN else "")
