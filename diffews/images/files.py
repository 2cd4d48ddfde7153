"""Image and mask files: finding, decoding, and the reference's resize."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffews.errors import InputError
from diffews.runtime.files import check_regular

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Opens an image file; what goes wrong before it is closed names the file."""
    check_regular(path)
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is no picture that can be read; replace the file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.strerror:  # of the system's; the file itself may be good
            raise InputError(f"{path} cannot be opened ({error.strerror})") from None
        raise InputError(f"{path} cannot be decoded ({error}); replace the file") from None


def open_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Decodes an image file in its mode, whatever that is.

    Args:
        path: the file.
        upright: turn it as its EXIF orientation says. Benchmarks are read as stored, since the
            reference does so; people's photos are read upright.

    Raises:
        InputError: for a file that is missing, damaged or no image.

    """
    with _opened(path) as image:
        image.load()
    return ImageOps.exif_transpose(image) if upright else image


def check_image(path: Path) -> None:
    """Raises InputError unless the file is there and begins as an image does; decodes nothing."""
    with _opened(path):
        pass


def open_rgb(path: str | Path, upright: bool = False) -> Image.Image:
    """Decodes an image file to RGB, whatever its mode (grey, CMYK, palette); see `open_image`."""
    return open_image(path, upright).convert("RGB")


def open_mask(path: str | Path, upright: bool = False) -> np.ndarray:
    """Decodes a mask file to integers (H, W); a palette image gives its indices.

    Raises:
        InputError: as `open_image`, and for an image with colours.

    """
    mask = np.asarray(open_image(path, upright))
    if mask.ndim == 3 and (mask[..., :1] == mask[..., :3]).all():  # grey saved as RGB or RGBA
        mask = mask[..., 0]
    if mask.ndim != 2:
        raise InputError(f"{path} is a colour picture, not a mask; save it with one channel")
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def resize_image(image: Image.Image, size: int) -> np.ndarray:
    """Resizes an RGB image to (size, size), aspect ratio ignored -> uint8 (3, size, size)."""
    # PIL's antialiasing is what the reference's numbers come from
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def normalize(rgb: np.ndarray) -> np.ndarray:
    """Maps uint8 RGB to float32 in [-1, 1], the range of the VAE."""
    return rgb.astype(np.float32) / np.float32(255) * 2 - 1


def list_images(folder: Path) -> list[Path]:
    """Returns the image files of a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def find_masks(folder: Path) -> list[Path]:
    """Returns the PNGs of a folder and of all folders in it, sorted."""
    files = sorted(path for path in folder.rglob("*.png") if path.is_file())
    if not files:
        cure = "leave the key out to train on drawn shapes"
        raise InputError(f"masks={folder}: no PNG in it; {cure}")
    return files
