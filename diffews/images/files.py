"""Pictures as arrays: decoding, the reference's resize, and the value range of the VAE."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffews.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def open_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Decodes a picture file in its own mode; `upright` turns it as its EXIF orientation says.

    Benchmarks are read as stored (the reference does so); people's own photos are read upright.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is no picture that can be read; replace the file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be decoded ({error}); replace the file") from None
    return ImageOps.exif_transpose(image) if upright else image


def check_image(path: Path) -> None:
    """Raises InputError unless the file is there and begins as a picture does; decodes nothing."""
    try:
        with Image.open(path):
            return
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"{path} is no picture that can be read; replace the file") from None


def open_rgb(path: str | Path, upright: bool = False) -> Image.Image:
    """Decodes a picture file to RGB, whatever its mode (grey, CMYK, palette)."""
    return open_image(path, upright).convert("RGB")


def open_mask(path: str | Path, upright: bool = False) -> np.ndarray:
    """Decodes a mask file to an integer array (H, W); palette pictures give their indices."""
    mask = np.asarray(open_image(path, upright))
    if mask.ndim == 3 and (mask[..., :1] == mask[..., :3]).all():  # grey saved as RGB or RGBA
        mask = mask[..., 0]
    if mask.ndim != 2:
        raise InputError(f"{path} is a colour picture, not a mask; save it with one channel")
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def resize_image(image: Image.Image, size: int) -> np.ndarray:
    """Resizes an RGB picture to (size, size), aspect ratio ignored -> uint8 (3, size, size)."""
    resized = image.resize((size, size), Image.Resampling.BILINEAR)  # PIL's antialiasing is what the numbers come from
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def normalize(rgb: np.ndarray) -> np.ndarray:
    """Maps uint8 RGB to float32 in [-1, 1]."""
    return rgb.astype(np.float32) / np.float32(255) * 2 - 1


def list_images(folder: Path) -> list[Path]:
    """Returns the picture files of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def find_masks(folder: Path) -> list[Path]:
    """Returns the PNGs of a folder and of all folders in it, sorted."""
    files = sorted(path for path in folder.rglob("*.png") if path.is_file())
    if not files:
        raise InputError(f"masks={folder}: no PNG in it; leave the key out to train on drawn shapes")
    return files
