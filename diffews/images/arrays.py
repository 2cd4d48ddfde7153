"""Pictures and masks as people give them -> arrays as the model takes them. Without torch."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffews.errors import InputError
from diffews.images.drawn_masks import Pick
from diffews.images.files import (
    narrow_integer, normalize, open_image, resize_image)
from diffews.images.masks import binary_mask, shrink_mask
from diffews.images.photos import photo_mask, upright_photo
from diffews.images.weak import Box, Points, Prompt, Refine, Scribble, widen

if TYPE_CHECKING:
    from torch import Tensor

    ImageInput = Image.Image | np.ndarray | Tensor | str | Path
else:
    ImageInput = Any  # the tensors among them are known by what they can do


def as_list(pictures: Any, dimensions: int) -> list[Any]:
    """One picture or mask, an array or tensor of several, or a list -> list.

    dimensions: how many one has, as an array.
    """
    if hasattr(pictures, "ndim"):
        return [pictures] if pictures.ndim <= dimensions else list(pictures)
    one = isinstance(pictures, Image.Image | str | Path | Prompt)
    return [pictures] if one else list(pictures)


def as_sets(pictures: Any, dimensions: int) -> list[list[Any]]:
    """One picture, a list, or a list of lists -> list of support sets."""
    items = as_list(pictures, dimensions)
    several = items and isinstance(items[0], list | tuple)
    return [list(item) for item in items] if several else [items]


def to_array(picture: ImageInput) -> np.ndarray:
    """Returns a picture's or mask's values as they are; bfloat16, which numpy lacks, as float32."""
    if not hasattr(picture, "detach"):
        return np.asarray(picture)
    picture = picture.detach().cpu()
    return (picture.float() if picture.is_floating_point() else picture).numpy()


def prepare_image(picture: ImageInput, size: int) -> tuple[np.ndarray, tuple[int, int], int]:
    """Makes a picture into pixels.

    Args:
        picture: a file's name or a PIL image, which are turned upright by their EXIF orientation
            and laid on white; or an array or tensor (H, W, 3) or (3, H, W), uint8, uint16, or
            float in [-1, 1] or [0, 1].
        size: side to resize to, with PIL's resize, as in the reference.

    Returns:
        Pixels [3, size, size] in [-1, 1], float32, the picture's own (height, width), and how its
        file is turned (1: upright).

    """
    if isinstance(picture, str | Path):
        picture = open_image(picture)
    if isinstance(picture, Image.Image):
        rgb, turned = upright_photo(picture, getattr(picture, "filename", "") or "a picture")
        return normalize(resize_image(rgb, size)), rgb.size[::-1], turned

    array = to_array(picture)
    if array.ndim == 3 and array.shape[0] != 3 and array.shape[-1] == 3:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or array.size == 0:
        raise InputError(f"a picture of shape {array.shape}; "
                         "give (height, width, 3) or (3, height, width)")
    if array.dtype == np.uint16:
        array = narrow_integer(array, "a picture", bits=16)
    if array.dtype == np.uint8:
        return prepare_image(Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))), size)

    # floats have more levels than 8 bits keep: each channel is a picture of floats
    pixels = np.ascontiguousarray(_in_range(array))
    if array.shape[1:] != (size, size):
        bilinear = Image.Resampling.BILINEAR
        channels = [Image.fromarray(channel).resize((size, size), bilinear) for channel in pixels]
        pixels = np.stack([np.asarray(channel) for channel in channels]).clip(-1, 1)
    return pixels, array.shape[1:], 1


def _in_range(array: np.ndarray) -> np.ndarray:
    """Returns floats as float32 in [-1, 1]; those without a negative value are in [0, 1]."""
    low, high = array.min(), array.max()
    if not np.issubdtype(array.dtype, np.floating) or not (low >= -1 and high <= 1):
        raise InputError(f"a picture of {array.dtype} in [{low}, {high}]; "
                         "give uint8 or float in [-1, 1] or [0, 1]")
    array = array.astype(np.float32)
    if low < 0:
        return array
    warnings.warn("a float picture without a negative value is taken as being in [0, 1], "
                  "as diffusers has them, not in [-1, 1]; uint8 is never in doubt", stacklevel=2)
    return array * 2 - 1


def prepare_mask(
    mask: Any, shape: tuple[int, int], turned: int, pick: Pick, name: str = "support mask"
) -> np.ndarray:
    """Makes the mask of a picture into uint8 {0, 1} of its (height, width).

    Args:
        mask: a file's name or a PIL image, read as `photo_mask` reads what people drew; an array
            or tensor (H, W) of the picture's size: bool, {0, 1} or {0, 255}; or a box, points or
            a scribble, which are drawn.
        shape, turned: as `prepare_image` gives them.
        pick: what is the object of a label map or paint.
        name: what to call the mask in errors and warnings.

    """
    if isinstance(mask, Box | Points):
        return mask.draw(shape)
    if isinstance(mask, Scribble):
        return widen(prepare_mask(mask.paint, shape, turned, pick, mask.name))
    if isinstance(mask, str | Path):
        mask = open_image(mask)
    if isinstance(mask, Image.Image):
        name = getattr(mask, "filename", "") or name
        array, notes = photo_mask(mask, shape[::-1], turned, name, pick)
        for note in notes:
            warnings.warn(f"{name} {note}", stacklevel=2)
        return array

    array = to_array(mask)
    array = binary_mask(array if pick.value is None else array == pick.value, name)
    if array.shape != tuple(shape):
        raise InputError(f"{name} of size {array.shape} for an image of size {shape}")
    return array


def prepare_images(
    images: Sequence[ImageInput], size: int, own_size: bool
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Makes pictures into pixels [B, 3, size, size] in [-1, 1]; returns the masks' sizes, too."""
    prepared = [prepare_image(image, size) for image in images]
    shapes = [shape if own_size else (size, size) for _, shape, _ in prepared]
    return np.stack([pixels for pixels, _, _ in prepared]), shapes


def prepare_supports(
    images: Any, masks: Any, size: int, pick: Pick, refine: Refine
) -> tuple[np.ndarray, np.ndarray, int]:
    """Makes support sets into pixels [B*S, 3, size, size], masks [B*S, size, size], and S.

    The S shots of a set are neighbours.

    Args:
        images, masks: one, a list (the shots of one set), or a list of lists (several sets); each
            as `prepare_image` and `prepare_mask` take it.
        size: side to resize to.
        pick: what is the object of label maps or paint.
        refine: what makes a better mask of a box, points or a scribble; see `refiner`.

    Raises:
        InputError: for lists that do not pair, and masks that mark nothing at this size.

    """
    image_sets, mask_sets = as_sets(images, 3), as_sets(masks, 2)

    # the sets must pair, and hold the same number of shots
    shots = len(image_sets[0])
    if shots == 0:
        raise InputError("no support image; give at least one")
    if [len(s) for s in image_sets] != [len(s) for s in mask_sets]:
        counts = [sum(len(s) for s in sets) for sets in (image_sets, mask_sets)]
        raise InputError(f"{counts[0]} support images do not pair with {counts[1]} masks; "
                         "give one mask an image")
    if any(len(s) != shots for s in image_sets):
        raise InputError("support sets of one bank need the same number of shots")

    pixels, marks = [], []
    for image, mask in zip(sum(image_sets, []), sum(mask_sets, []), strict=True):
        prepared, shape, turned = prepare_image(image, size)
        array = prepare_mask(mask, shape, turned, pick)
        is_weak = isinstance(mask, Prompt)
        mark = shrink_mask(array, size, mask.name if is_weak else "a support mask")
        marks.append(refine(prepared, mark, mask) if is_weak else mark)
        pixels.append(prepared)
    return np.stack(pixels), np.stack(marks), shots
