"""Pictures and masks as people give them -> tensors as the model takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffews.errors import InputError
from diffews.images.files import normalize, resize_image

ImageInput = Image.Image | np.ndarray | Tensor


def as_list(pictures: Any, dimensions: int) -> list[Any]:
    """One picture or mask, an array or tensor of several, or a list -> list.

    dimensions: how many one has, as an array.
    """
    if isinstance(pictures, np.ndarray | Tensor):
        return [pictures] if pictures.ndim <= dimensions else list(pictures)
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures)


def as_sets(pictures: Any, dimensions: int) -> list[list[Any]]:
    """One picture, a list, or a list of lists -> list of support sets."""
    items = as_list(pictures, dimensions)
    several = items and isinstance(items[0], list | tuple)
    return [list(item) for item in items] if several else [items]


def to_array(picture: ImageInput) -> np.ndarray:
    """Returns a picture's or mask's values as they are; bfloat16, which numpy lacks, as float32."""
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        return (picture.float() if picture.is_floating_point() else picture).numpy()
    return np.asarray(picture)


def prepare_image(picture: ImageInput, size: int) -> tuple[Tensor, tuple[int, int]]:
    """Makes a picture into pixels.

    Args:
        picture: PIL image, or array or tensor (H, W, 3) or (3, H, W), uint8 or float in [-1, 1].
        size: side to resize to; PIL's resize, as in the reference, for all but floats.

    Returns:
        Pixels [3, size, size] in [-1, 1], and the picture's own (height, width).

    """
    if isinstance(picture, Image.Image):
        resized = resize_image(picture.convert("RGB"), size)
        return torch.from_numpy(normalize(resized)), picture.size[::-1]

    array = to_array(picture)
    if array.ndim == 3 and array.shape[0] != 3 and array.shape[-1] == 3:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or array.size == 0:
        raise InputError(f"a picture of shape {array.shape}; "
                         "give (height, width, 3) or (3, height, width)")
    if array.dtype == np.uint8:
        return prepare_image(Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))), size)
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= -1 and array.max() <= 1):
        raise InputError(f"a picture of {array.dtype} in [{array.min()}, {array.max()}]; "
                         "give uint8 or float in [-1, 1]")

    # floats have more levels than PIL's resize keeps
    pixels = torch.from_numpy(array.astype(np.float32))
    if array.shape[1:] != (size, size):
        pixels = torch.nn.functional.interpolate(
            pixels[None], size=(size, size), mode="bilinear", antialias=True)[0].clamp(-1, 1)
    return pixels, array.shape[1:]


def prepare_images(
    images: Sequence[ImageInput], size: int, own_size: bool
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Makes pictures into pixels [B, 3, size, size] in [-1, 1]; returns the masks' sizes, too."""
    prepared = [prepare_image(image, size) for image in images]
    shapes = [shape if own_size else (size, size) for _, shape in prepared]
    return torch.stack([pixels for pixels, _ in prepared]), shapes
