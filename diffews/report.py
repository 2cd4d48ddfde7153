"""Pictures of results: overlays, panels and grids."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from diffews.files import write_atomic

PREDICTION_COLOUR = (220, 50, 47)  # RGB
SUPPORT_COLOUR = (38, 100, 210)
TRUTH_COLOUR = (40, 160, 60)


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PREDICTION_COLOUR) -> np.ndarray:
    """Tints the pixels of a mask (H, W) in an RGB image (H, W, 3) uint8 and draws its outline."""
    mask = mask.astype(bool)
    painted = image.copy()
    painted[mask] = (0.5 * image[mask] + 0.5 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(painted, outlines, -1, colour, max(1, image.shape[0] // 256))
    return painted


def panel(
    supports: Sequence[tuple[np.ndarray, np.ndarray]], query: np.ndarray, prediction: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Puts supports with masks, query, prediction and truth side by side; images (S, S, 3) uint8, masks (S, S)."""
    tiles = [overlay(image, mask, SUPPORT_COLOUR) for image, mask in supports]
    tiles += [query, overlay(query, prediction), overlay(query, truth, TRUTH_COLOUR)]
    gap = np.full((query.shape[0], max(2, query.shape[1] // 32), 3), 255, np.uint8)
    return np.hstack([part for tile in tiles for part in (tile, gap)][:-1])


def save_image(path: Path, image: np.ndarray) -> None:
    """Writes RGB (H, W, 3) or grey (H, W) uint8 in the format of the name's ending, atomically."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    _, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
    write_atomic(path, encoded.tobytes())
