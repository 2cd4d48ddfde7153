"""Image and mask files: finding, decoding, and the reference's resize."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffews.errors import InputError, first_line
from diffews.runtime.files import check_regular

HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # read by pillow-heif
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif",
    ".tiff", ".gif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".avif",
    *HEIF_SUFFIXES)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Opens an image file; what goes wrong before it is closed names the file."""
    check_regular(path)
    try:
        with _open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        cure = "replace the file"
        if Path(path).suffix.lower() in (*HEIF_SUFFIXES, ".avif"):
            cure = "install pillow-heif (pip install 'diffews[heif]'), or replace the file"
        raise InputError(f"{path} is no picture that can be read; {cure}") from None
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path} cannot be opened ({error.strerror})") from None
        cure = "replace the file"
        raise InputError(f"{path} cannot be decoded ({first_line(error)}); {cure}") from None


def _open(path: str | Path) -> Image.Image:
    """Opens a file by its content; pillow-heif is asked only for what Pillow does not know."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        try:
            import pillow_heif
        except ImportError:
            raise UnidentifiedImageError from None
        pillow_heif.register_heif_opener()
        return Image.open(path)


def open_image(path: str | Path) -> Image.Image:
    """Decodes an image file in its mode, whatever that is, as it is stored.

    Raises:
        InputError: for a file that is missing, damaged or no image.

    """
    with _opened(path) as image:
        image.load()
    return image


def check_image(path: Path) -> None:
    """Raises InputError unless the file is there and begins as an image does; decodes nothing."""
    with _opened(path):
        pass


def open_rgb(path: str | Path) -> Image.Image:
    """Decodes an image file to RGB, whatever its mode, as benchmarks are read: see `to_rgb`."""
    return to_rgb(open_image(path), str(path))


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Converts to RGB; Pillow alone would clip what is wider than 8 bits.

    16-bit values are cut to their upper 8 bits, floats in [0, 1] are scaled.

    Raises:
        InputError: for other wide values, naming the picture by `name`.

    """
    if image.mode[0] not in "IF":  # I;16, I;16B, I and F
        return image.convert("RGB")
    values = np.asarray(image)
    narrow = narrow_float(values, name) if image.mode == "F" else narrow_integer(
        values, name, bits=16 if ";16" in image.mode or image.format == "PPM" else 32)
    return Image.fromarray(narrow).convert("RGB")


def narrow_float(values: np.ndarray, name: str) -> np.ndarray:
    """Maps floats in [0, 1] to uint8 of the same shape; other ranges are an InputError."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # nor for NaN
        raise InputError(f"{name} holds floats in [{low:g}, {high:g}]; "
                         "scale them to [0, 1], or save it with 8 bits")
    return np.rint(values * 255).astype(np.uint8)


def narrow_integer(values: np.ndarray, name: str, bits: int) -> np.ndarray:
    """Maps 16-bit values to uint8 of the same shape, their upper 8 bits.

    Raises:
        InputError: for 32-bit values, and for a picture that would turn black: 8-bit values that
            were saved with 16 bits.

    """
    low, high = int(values.min()), int(values.max())
    if bits != 16 or 0 < high < 256:
        raise InputError(f"{name} holds {bits}-bit integers in [{low}, {high}]; "
                         "save it with 8 bits, or with 16 bits from 0 to 65535")
    return (values >> 8).astype(np.uint8)


def open_mask(path: str | Path) -> np.ndarray:
    """Decodes a benchmark's mask to integers (H, W); a palette image gives its indices.

    Raises:
        InputError: as `open_image`, and for an image with colours.

    """
    mask = np.asarray(open_image(path))
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
