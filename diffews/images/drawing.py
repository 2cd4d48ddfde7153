"""Pictures of results: overlays, panels and grids."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from diffews.images.files import open_rgb
from diffews.runtime.files import write_atomic

PREDICTION_COLOUR = (220, 50, 47)  # RGB
SUPPORT_COLOUR = (38, 100, 210)
TRUTH_COLOUR = (40, 160, 60)
LABEL_COLOURS = (PREDICTION_COLOUR, SUPPORT_COLOUR, TRUTH_COLOUR, (230, 160, 20), (150, 60, 190), (20, 170, 180))
BLACK, GREY = (25, 25, 25), (110, 110, 110)
LEAST_TILE = 192  # pixels; a figure enlarges smaller pictures by a whole factor
FONT = cv2.FONT_HERSHEY_SIMPLEX
Text = tuple[int, str, tuple[int, int, int]]  # column that it starts at, words, RGB


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PREDICTION_COLOUR) -> np.ndarray:
    """Leaves a mask's pixels (H, W) of an RGB image (H, W, 3) uint8, darkens all others, and draws the outline."""
    lit = np.where(mask.astype(bool)[..., None], image, image * 0.4)
    return _outline(np.ascontiguousarray(lit, np.uint8), mask, colour, max(1, image.shape[0] // 256))


def tint(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Fades an RGB image (H, W, 3) uint8, lays a mask (H, W) half transparent over it, and draws the outline."""
    faded = 0.3 * image + 0.7 * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    mixed = np.where(mask.astype(bool)[..., None], (faded + np.array(colour)) / 2, faded)
    return _outline(np.ascontiguousarray(mixed, np.uint8), mask, colour, max(1, image.shape[0] // 96))


def label_overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Leaves labelled pixels of an RGB image (H, W, 3) uint8, darkens all others, and outlines each label (H, W)."""
    lit = np.where(labels[..., None] > 0, image, image * 0.4).astype(np.uint8)
    for label in np.unique(labels[labels > 0]).tolist():
        colour = LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]
        lit = _outline(lit, labels == label, colour, max(1, image.shape[0] // 256))
    return lit


def _outline(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int) -> np.ndarray:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image, outlines, -1, colour, width)


def panel(
    supports: Sequence[tuple[np.ndarray, np.ndarray]], query: np.ndarray, prediction: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Puts supports with masks, query, prediction and truth side by side; images (S, S, 3) uint8, masks (S, S)."""
    tiles = [overlay(image, mask, SUPPORT_COLOUR) for image, mask in supports]
    tiles += [query, overlay(query, prediction, PREDICTION_COLOUR), overlay(query, truth, TRUTH_COLOUR)]
    gap = np.full((query.shape[0], max(2, query.shape[1] // 32), 3), 255, np.uint8)
    return np.hstack([part for tile in tiles for part in (tile, gap)][:-1])


def figure_tiles(
    supports: Sequence[tuple[np.ndarray, np.ndarray]], query: np.ndarray, prediction: np.ndarray, truth: np.ndarray
) -> list[np.ndarray]:
    """Returns what `panel` puts side by side, tinted and large enough for a figure: each (T, T, 3) uint8."""
    factor = -(-LEAST_TILE // query.shape[0])

    def tinted(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        return tint(enlarged(image), np.kron(mask.astype(np.uint8), np.ones((factor, factor), np.uint8)), colour)

    def enlarged(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)

    tiles = [tinted(image, mask, SUPPORT_COLOUR) for image, mask in supports]
    answers = [tinted(query, prediction, PREDICTION_COLOUR), tinted(query, truth, TRUTH_COLOUR)]
    return [*tiles, enlarged(query), *answers]


def figure_titles(shots: int) -> list[Text]:
    """Names the columns of `figure_tiles`, in the colours of their masks."""
    titles = [("support" if shots == 1 else f"support {i + 1}", SUPPORT_COLOUR) for i in range(shots)]
    titles += [("query", BLACK), ("prediction", PREDICTION_COLOUR), ("truth", TRUTH_COLOUR)]
    return [(column, *title) for column, title in enumerate(titles)]


def save_figure(path: Path, rows: Sequence[tuple[Sequence[Text], Sequence[np.ndarray]]], columns: int) -> None:
    """Stacks rows: a line of text, and below it tiles (T, T, 3) of one size, if there are any."""
    side = next(tiles[0].shape[0] for _, tiles in rows if tiles)
    gap, strips = side // 24, []
    for texts, tiles in rows:
        strips.append(_text_line(texts, side, gap, columns))
        if tiles:
            framed = [np.pad(tile, ((0, 0), (0, gap), (0, 0)), constant_values=255) for tile in tiles]
            strips.append(np.hstack(framed))
    save_image(path, np.pad(np.vstack(strips), ((gap, 2 * gap), (2 * gap, gap), (0, 0)), constant_values=255))


def _text_line(texts: Sequence[Text], side: int, gap: int, columns: int) -> np.ndarray:
    """Writes texts above their columns; one that does not fit in before the next shrinks."""
    height, thick = side // 6, max(1, side // 200)
    line = np.full((height, columns * (side + gap), 3), 255, np.uint8)
    ends = [*(column for column, *_ in texts[1:]), columns]
    for (column, words, colour), end in zip(texts, ends, strict=True):
        scale = cv2.getFontScaleFromHeight(FONT, height * 2 // 5, thick)
        room, need = (end - column) * (side + gap) - 3 * gap, cv2.getTextSize(words, FONT, scale, thick)[0][0]
        place, scale = (column * (side + gap), height * 4 // 5), scale * min(1, room / max(need, 1))
        cv2.putText(line, words, place, FONT, scale, colour, thick, cv2.LINE_AA)
    return line


def save_grid(files: Sequence[Path], path: Path, least_height: int = 128) -> None:
    """Stacks panels of one size in two columns; small ones are enlarged to at least `least_height` pixels."""
    panels = [np.asarray(open_rgb(file)) for file in files]
    factor = max(1, least_height // panels[0].shape[0])
    panels = [np.kron(image, np.ones((factor, factor, 1), np.uint8)) for image in panels]
    framed = [cv2.copyMakeBorder(image, 4, 4, 8, 8, cv2.BORDER_CONSTANT, value=(255,) * 3) for image in panels]
    framed += [np.full_like(framed[0], 255)] * (len(framed) % 2)
    save_image(path, np.vstack([np.hstack(framed[i : i + 2]) for i in range(0, len(framed), 2)]))


def save_image(path: Path, image: np.ndarray) -> None:
    """Writes RGB (H, W, 3) or grey (H, W) uint8 in the format of the name's ending, atomically."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    _, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
    write_atomic(path, encoded.tobytes())


class StepLog:
    """log.jsonl: one line a training step; lines after the step that a run resumes from are cut off."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines()[:step] if path.is_file() else []
        self.losses = [json.loads(line)["loss"] for line in lines]
        write_atomic(path, "".join(line + "\n" for line in lines))

    def add(self, step: int, loss: float, lr: float) -> None:
        """Appends a step."""
        self.losses.append(loss)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss, "lr": lr}) + "\n")


def save_loss_curve(
    path: Path, losses: Sequence[float], width: int = 800, height: int = 400, margin: int = 50
) -> None:
    """Draws the loss over the steps, smoothed over a fiftieth of them, on a logarithmic axis."""
    window = max(1, len(losses) // 50)
    values = np.log10(np.maximum(np.convolve(losses, np.ones(window) / window, "valid"), 1e-12))
    low, high = values.min(), max(values.max(), values.min() + 1e-6)
    x = margin + np.arange(len(values)) / max(len(values) - 1, 1) * (width - 2 * margin)
    y = height - margin - (values - low) / (high - low) * (height - 2 * margin)
    canvas = np.full((height, width, 3), 255, np.uint8)
    grey, font = (110, 110, 110), cv2.FONT_HERSHEY_SIMPLEX
    cv2.rectangle(canvas, (margin, margin), (width - margin, height - margin), grey)
    cv2.polylines(canvas, [np.stack([x, y], 1).round().astype(np.int32)], False, PREDICTION_COLOUR, 2, cv2.LINE_AA)
    labels = [(f"{10**high:.3g}", (4, margin + 5)), (f"{10**low:.3g}", (4, height - margin))]
    labels += [(f"loss over {len(losses)} steps", (margin, margin - 12))]
    for text, place in labels:
        cv2.putText(canvas, text, place, font, 0.4, grey, 1, cv2.LINE_AA)
    save_image(path, canvas)
