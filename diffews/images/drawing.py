"""Pictures of results: masks over images, panels, grids and figures.

Images are RGB uint8 (H, W, 3), masks (H, W) of bool or {0, 1}, colours RGB in 0..255.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from diffews.images.files import open_rgb
from diffews.runtime.files import write_atomic

Colour = tuple[int, int, int]
Text = tuple[int, str, Colour]  # the column that it starts at, words, colour
Row = tuple[Sequence[Text], Sequence[np.ndarray]]  # of a figure: a line of text, tiles below it

PREDICTION_COLOUR = (220, 50, 47)
SUPPORT_COLOUR = (38, 100, 210)
TRUTH_COLOUR = (40, 160, 60)
LABEL_COLOURS = (
    PREDICTION_COLOUR, SUPPORT_COLOUR, TRUTH_COLOUR, (230, 160, 20), (150, 60, 190), (20, 170, 180))
BLACK, GREY = (25, 25, 25), (110, 110, 110)
LEAST_TILE = 192  # pixels; a figure enlarges smaller images by a whole factor
FONT = cv2.FONT_HERSHEY_SIMPLEX


def overlay(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour] = LABEL_COLOURS
) -> np.ndarray:
    """Leaves what is labelled as it is, darkens all else, and outlines each label.

    Args:
        image: RGB uint8 (H, W, 3).
        labels: a mask, or a label map (H, W) of 0 for none, then 1, 2, ...
        colours: outlines of labels 1, 2, ...; they come again when there are more labels.

    """
    lit = np.where(labels[..., None] > 0, image, image * 0.4)
    lit = np.ascontiguousarray(lit, np.uint8)
    for label in np.unique(labels[labels > 0]).tolist():
        colour = colours[(label - 1) % len(colours)]
        _outline(lit, labels == label, colour, max(1, image.shape[0] // 256))
    return lit


def tint(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """Fades an image, lays a mask half transparent over it, and outlines the mask."""
    faded = 0.3 * image + 0.7 * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    mixed = np.where(mask.astype(bool)[..., None], (faded + np.array(colour)) / 2, faded)
    mixed = np.ascontiguousarray(mixed, np.uint8)
    _outline(mixed, mask, colour, max(1, image.shape[0] // 96))
    return mixed


def _outline(image: np.ndarray, mask: np.ndarray, colour: Colour, width: int) -> None:
    """Draws a mask's contours into the image, `width` pixels wide."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, colour, width)


def panel(
    supports: Sequence[tuple[np.ndarray, np.ndarray]], query: np.ndarray, prediction: np.ndarray,
    truth: np.ndarray
) -> np.ndarray:
    """Puts supports, query, prediction and truth side by side, masks as overlays.

    Args:
        supports: image (S, S, 3) and mask (S, S) of each shot.
        query: image (S, S, 3).
        prediction, truth: masks of the query (S, S).

    Returns:
        An image (S, W, 3).

    """
    tiles = [overlay(image, mask, [SUPPORT_COLOUR]) for image, mask in supports]
    answers = ((prediction, PREDICTION_COLOUR), (truth, TRUTH_COLOUR))
    tiles += [query, *(overlay(query, mask, [colour]) for mask, colour in answers)]
    gap = np.full((query.shape[0], max(2, query.shape[1] // 32), 3), 255, np.uint8)
    return np.hstack([part for tile in tiles for part in (tile, gap)][:-1])


def figure_tiles(
    supports: Sequence[tuple[np.ndarray, np.ndarray]], query: np.ndarray, prediction: np.ndarray,
    truth: np.ndarray
) -> list[np.ndarray]:
    """Returns what `panel` puts side by side, tinted and large enough for a figure: (T, T, 3)."""
    factor = -(-LEAST_TILE // query.shape[0])

    def enlarged(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)

    def tinted(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
        return tint(enlarged(image), mask.repeat(factor, 0).repeat(factor, 1), colour)

    return [
        *(tinted(image, mask, SUPPORT_COLOUR) for image, mask in supports), enlarged(query),
        tinted(query, prediction, PREDICTION_COLOUR), tinted(query, truth, TRUTH_COLOUR)]


def figure_titles(shots: int) -> list[Text]:
    """Names the columns of `figure_tiles`, in the colours of their masks."""
    names = ["support"] if shots == 1 else [f"support {i + 1}" for i in range(shots)]
    titles = [(name, SUPPORT_COLOUR) for name in names]
    titles += [("query", BLACK), ("prediction", PREDICTION_COLOUR), ("truth", TRUTH_COLOUR)]
    return [(column, *title) for column, title in enumerate(titles)]


def save_figure(path: Path, rows: Sequence[Row], columns: int) -> None:
    """Stacks rows of a figure: a line of text, and below it tiles (T, T, 3), if there are any.

    Args:
        path: file to write, .png or .jpg.
        rows: texts and tiles of each; all tiles have one size.
        columns: most tiles of a row.

    """
    side = next(tiles[0].shape[0] for _, tiles in rows if tiles)
    gap, strips = side // 24, []
    for texts, tiles in rows:
        strips.append(_text_line(texts, side, gap, columns))
        if tiles:
            strips.append(np.hstack([_frame(tile, 0, 0, 0, gap) for tile in tiles]))
    save_image(path, _frame(np.vstack(strips), gap, 2 * gap, 2 * gap, gap))


def _text_line(texts: Sequence[Text], side: int, gap: int, columns: int) -> np.ndarray:
    """Writes texts above their columns; one that does not fit in before the next shrinks."""
    height, thick = side // 6, max(1, side // 200)
    line = np.full((height, columns * (side + gap), 3), 255, np.uint8)
    ends = [*(column for column, *_ in texts[1:]), columns]

    for (column, words, colour), end in zip(texts, ends, strict=True):
        scale = cv2.getFontScaleFromHeight(FONT, height * 2 // 5, thick)
        room = (end - column) * (side + gap) - 3 * gap
        need = cv2.getTextSize(words, FONT, scale, thick)[0][0]
        place = (column * (side + gap), height * 4 // 5)
        scale *= min(1, room / max(need, 1))
        cv2.putText(line, words, place, FONT, scale, colour, thick, cv2.LINE_AA)
    return line


def save_grid(files: Sequence[Path], path: Path, height: int = 128) -> None:
    """Stacks panels of one size in two columns.

    Args:
        files: the panels' files.
        path: file to write.
        height: up to so many pixels, small panels are enlarged by a whole factor.

    """
    panels = [np.asarray(open_rgb(file)) for file in files]
    factor = max(1, height // panels[0].shape[0])
    framed = [_frame(image.repeat(factor, 0).repeat(factor, 1), 4, 4, 8, 8) for image in panels]
    framed += [np.full_like(framed[0], 255)] * (len(framed) % 2)
    save_image(path, np.vstack([np.hstack(framed[i : i + 2]) for i in range(0, len(framed), 2)]))


def _frame(image: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Puts a white frame around an RGB image; widths in pixels."""
    return np.pad(image, ((top, bottom), (left, right), (0, 0)), constant_values=255)


def save_image(path: Path, image: np.ndarray) -> None:
    """Writes RGB (H, W, 3) or grey (H, W) uint8 in the format of the name's ending, atomically."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    _, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
    write_atomic(path, encoded.tobytes())
