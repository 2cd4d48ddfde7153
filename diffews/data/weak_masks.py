"""Weak masks: what a hasty user gives in place of a support's whole mask.

`train weak_masks=` shows them to the network, so that it expects them; `eval prompt=` asks with
them. Lengths go with the picture, in 64ths of its longer side: at 64 pixels they are pixels. A
weak mask depends on the mask and on the draws alone.
"""

import functools
from collections.abc import Callable

import numpy as np

from diffews.images.weak import draw_box, draw_points, draw_stroke, unit

PROMPTS = ("mask", "box", "scribble", "point")  # of `eval prompt=`
TRAINED = ("box", "scribble", "points", "eroded", "dilated")  # of `train weak_masks=`, as often
PROMPT_SEED = 0
STROKE_POINTS, MOST_POINTS = 4, 3

Weaken = Callable[[np.ndarray], np.ndarray]  # mask (H, W) -> mask (H, W)


def draw_weakening(share: float, draws: np.random.Generator) -> Weaken | None:
    """Draws how an episode's support masks are weakened; None: they stay whole.

    share: of the episodes with weak masks, in [0, 1].
    """
    if draws.random() >= share:
        return None
    kind = TRAINED[draws.integers(len(TRAINED))]
    return functools.partial(weaken, kind=kind, draws=draws)


def prompt_masks(masks: np.ndarray, prompt: str, index: int) -> np.ndarray:
    """What episode `index` of an evaluation shows for its supports' masks.

    Args:
        masks: uint8 (S, H, W) of {0, 1}.
        prompt: one of PROMPTS.
        index: the episode's place in its list. Later supports change nothing about the first.

    Returns:
        Masks of the same shape and values.

    """
    draws = np.random.default_rng([PROMPT_SEED, index])
    return np.stack([weaken(mask, prompt, draws) for mask in masks])


def weaken(mask: np.ndarray, kind: str, draws: np.random.Generator) -> np.ndarray:
    """Makes a weak mask of a whole one.

    Args:
        mask: uint8 (H, W) of {0, 1}.
        kind: one of PROMPTS or TRAINED.
        draws: where points lie, how far an edge moves.

    Returns:
        uint8 (H, W) of {0, 1}, which is empty only where `mask` is.

    """
    if not mask.any():
        return mask
    weak = KINDS[kind](mask, draws)
    return weak if weak.any() else mask  # of a thin object erosion leaves nothing


def _whole(mask: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return mask


def _box(mask: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """The smallest box around the object, filled."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return draw_box(mask.shape, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def _scribble(mask: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """A stroke through a few points of the object, which stays inside it."""
    return draw_stroke(mask.shape, _points_inside(mask, STROKE_POINTS, draws)) * mask


def _points(mask: np.ndarray, draws: np.random.Generator, most: int = MOST_POINTS) -> np.ndarray:
    """One or more clicks: discs around points of the object, whose edge nobody knows."""
    count = int(draws.integers(1, most + 1))
    return draw_points(mask.shape, _points_inside(mask, count, draws).tolist())


def _moved_edge(mask: np.ndarray, draws: np.random.Generator, outwards: bool) -> np.ndarray:
    """The object with its edge moved by one or two lengths."""
    import cv2

    length = int(draws.integers(1, 3)) * unit(mask.shape)
    square = np.ones((2 * length + 1, 2 * length + 1), np.uint8)
    return cv2.dilate(mask, square) if outwards else cv2.erode(mask, square)


def _points_inside(mask: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """Draws points (x, y) of the object, off its edge where there is room: (count, 2)."""
    import cv2

    square = np.ones((2 * unit(mask.shape) + 1,) * 2, np.uint8)
    inner = cv2.erode(mask, square)
    places = np.argwhere(inner if inner.any() else mask)[:, ::-1]
    return places[draws.integers(len(places), size=count)]


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "mask": _whole,
    "box": _box,
    "scribble": _scribble,
    "point": functools.partial(_points, most=1),
    "points": _points,
    "eroded": functools.partial(_moved_edge, outwards=False),
    "dilated": functools.partial(_moved_edge, outwards=True),
}
