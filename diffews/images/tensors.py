"""Pictures and masks as people give them -> tensors as the model takes them."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffews.errors import InputError
from diffews.images.files import normalize, resize_image

ImageInput = Image.Image | np.ndarray | Tensor


def to_pixels(rgb: Tensor) -> Tensor:
    """Maps uint8 RGB to float32 in [-1, 1], as `diffews.images.files.normalize` does for arrays."""
    return rgb.float() / 255 * 2 - 1


def from_pixels(pixels: Tensor) -> Tensor:
    """Undoes `to_pixels`: [-1, 1] -> whole numbers in 0..255, float32."""
    return ((pixels.float() + 1) * 127.5).round()


def resize_scores(scores: Tensor, shape: tuple[int, int]) -> Tensor:
    """Mean over RGB at another size: [3, H, W] -> [h, w]; bilinear, before the mean as for the decoded picture."""
    if shape != tuple(scores.shape[1:]):
        scores = torch.nn.functional.interpolate(scores[None], size=shape, mode="bilinear")[0]
    return scores.mean(0)


def as_list(pictures: Any, dimensions: int) -> list[Any]:
    """One picture or mask, an array or tensor of several, or a list -> list; one has `dimensions` dimensions."""
    if isinstance(pictures, np.ndarray | Tensor):
        return [pictures] if pictures.ndim <= dimensions else list(pictures)
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures)


def as_sets(pictures: Any, dimensions: int) -> list[list[Any]]:
    """One picture, a list, or a list of lists -> list of support sets."""
    items = as_list(pictures, dimensions)
    return [list(item) for item in items] if items and isinstance(items[0], list | tuple) else [items]


def to_array(picture: ImageInput) -> np.ndarray:
    """Returns a picture's or a mask's values as they are; bfloat16, which numpy lacks, as float32."""
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        return (picture.float() if picture.is_floating_point() else picture).numpy()  # numpy has no bfloat16
    return np.asarray(picture)


def prepare_image(picture: ImageInput, size: int) -> tuple[Tensor, tuple[int, int]]:
    """Returns pixels [3, size, size] in [-1, 1] and the picture's own (height, width)."""
    if isinstance(picture, Image.Image):
        return torch.from_numpy(normalize(resize_image(picture.convert("RGB"), size))), picture.size[::-1]
    array = to_array(picture)
    if array.ndim == 3 and array.shape[0] != 3 and array.shape[-1] == 3:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or array.size == 0:
        raise InputError(f"a picture of shape {array.shape}; give (height, width, 3) or (3, height, width)")
    if array.dtype == np.uint8:
        return prepare_image(Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))), size)
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= -1 and array.max() <= 1):
        raise InputError(
            f"a picture of {array.dtype} in [{array.min()}, {array.max()}]; give uint8 or float in [-1, 1]"
        )
    pixels = torch.from_numpy(array.astype(np.float32))
    if array.shape[1:] != (size, size):
        resized = torch.nn.functional.interpolate(pixels[None], size=(size, size), mode="bilinear", antialias=True)
        pixels = resized[0].clamp(-1, 1)
    return pixels, array.shape[1:]
