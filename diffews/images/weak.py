"""Weak supports: where the object is, roughly, in place of its mask.

A box, points or a scribble are drawn as a mask of the picture's size. Lengths go with the picture,
in 64ths of its longer side; weights that were trained with `weak_masks=` saw them drawn by the
same functions. What is drawn may then be made better: see WEAK.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffews.errors import InputError

# how a mask is made of a box, points or a scribble: as drawn; by the colours in it (OpenCV's
# GrabCut); by what the model finds in the support when it is shown itself; or, auto, in the way
# that was best for each on shapes (docs/training.md)
WEAK = ("auto", "fill", "grabcut", "self")
DEFAULT_WEAK = "auto"
BEST = {"Box": "self", "Points": "grabcut", "Scribble": "grabcut"}
ROUNDS = 5  # of GrabCut
NEAR_COLOUR, COLOUR_STEP = 20.0, 5.0  # distances in CIELAB


def unit(shape: tuple[int, ...]) -> int:
    """The length that goes with a picture of (height, width), in pixels; at least 1."""
    return max(1, round(max(shape) / 64))


def draw_box(shape: tuple[int, ...], box: Sequence[int]) -> np.ndarray:
    """Fills a box (x0, y0, x1, y1), whose last column is x1 - 1 -> uint8 {0, 1} (H, W)."""
    drawn = np.zeros(shape, np.uint8)
    drawn[box[1] : box[3], box[0] : box[2]] = 1
    return drawn


def draw_points(shape: tuple[int, ...], points: Sequence[Sequence[int]]) -> np.ndarray:
    """Draws discs around points (x, y), of two units' radius -> uint8 {0, 1} (H, W)."""
    import cv2  # on demand: `diffews --help` draws nothing

    drawn = np.zeros(shape, np.uint8)
    for x, y in points:
        cv2.circle(drawn, (int(x), int(y)), 2 * unit(shape), 1, -1)
    return drawn


def draw_stroke(shape: tuple[int, ...], corners: np.ndarray) -> np.ndarray:
    """Draws a line through corners int (N, 2) of (x, y), three units wide -> uint8 (H, W)."""
    import cv2

    drawn = np.zeros(shape, np.uint8)
    cv2.polylines(drawn, [corners.astype(np.int32)[:, None]], False, 1, 3 * unit(shape))
    return drawn


def widen(paint: np.ndarray) -> np.ndarray:
    """Widens what is thinner than a drawn stroke, and leaves the rest: uint8 {0, 1} (H, W)."""
    import cv2

    square = np.ones((3 * unit(paint.shape) | 1,) * 2, np.uint8)  # odd: it has a middle
    thin = paint - cv2.morphologyEx(paint, cv2.MORPH_OPEN, square)
    return paint | cv2.dilate(thin, square)


# ---- what a user gives ----


@dataclass(frozen=True)
class Box:
    """The object lies in a box.

    corners: (x0, y0, x1, y1) in pixels of the upright picture, (0, 0, width, height) is all of it.
    """

    corners: tuple[float, ...]
    name: str = "boxes="

    def draw(self, shape: tuple[int, int]) -> np.ndarray:
        """Fills the box in a picture of (height, width) -> uint8 {0, 1}.

        Raises:
            InputError: for a box that is empty or not inside the picture.

        """
        said = f"{self.name} {_show(self.corners)}"
        if len(self.corners) != 4:
            raise InputError(f"{said} is no box; give x0,y0,x1,y1 in pixels of the support")
        x0, y0, x1, y1 = self.corners
        if x0 >= x1 or y0 >= y1:
            raise InputError(f"{said} is empty; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        height, width = shape
        if not (x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height):
            raise InputError(f"{said} is not inside its support of {width} x {height} pixels")
        return draw_box(shape, [int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))])


@dataclass(frozen=True)
class Points:
    """The object is where these points are.

    places: (x, y) of each, in pixels of the upright picture, from (0, 0).
    """

    places: tuple[tuple[float, ...], ...]
    name: str = "points="

    def draw(self, shape: tuple[int, int]) -> np.ndarray:
        """Draws the points in a picture of (height, width) -> uint8 {0, 1}.

        Raises:
            InputError: for no point, or one that is not inside the picture.

        """
        height, width = shape
        for place in self.places or [()]:
            said = f"{self.name} {_show(place)}"
            if len(place) != 2:
                raise InputError(f"{said} is no point; give x,y in pixels of the support")
            if not (0 <= place[0] < width and 0 <= place[1] < height):
                raise InputError(f"{said} is not inside its support of {width} x {height} pixels")
        return draw_points(shape, [(int(x), int(y)) for x, y in self.places])


@dataclass(frozen=True)
class Scribble:
    """The object is where somebody has scribbled.

    paint: a mask of the strokes, as anything that is taken as a mask.
    """

    paint: Any
    name: str = "a scribble"


Prompt = Box | Points | Scribble
Find = Callable[[np.ndarray, np.ndarray], np.ndarray]
Refine = Callable[[np.ndarray, np.ndarray, Prompt], np.ndarray]


def name_prompts(images: Any, masks: Any, boxes: Any, points: Any, scribbles: Any) -> Any:
    """Returns what marks the object in each support, in the form of `masks`.

    Args:
        images: one support, a list of them, or a list of lists.
        masks, boxes, points, scribbles: one of the four; the others are None. A box for each
            support; a point (x, y) or a list of points for each; a mask of strokes for each.

    Raises:
        InputError: for none or several of them, or what is no box or point.

    """
    given = {"masks": masks, "boxes": boxes, "points": points, "scribbles": scribbles}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        wrong = f"{' and '.join(named)} are given" if named else "nothing marks the object"
        raise InputError(f"{wrong}; give one of masks=, boxes=, points= and scribbles=")
    if masks is not None:
        return masks
    make = {"boxes": _box, "points": _points, "scribbles": Scribble}[named[0]]
    images = list(images) if getattr(images, "ndim", 3) > 3 else images
    return _for_each(images, given[named[0]], make, named[0])


def _for_each(images: Any, values: Any, make: Any, name: str) -> Any:
    """Makes the prompt of each support: one where there is one, else in lists like `images`."""
    if not isinstance(images, list | tuple):
        return make(values)
    if len(images) == 1 and name != "scribbles" and _depth(values) == 1:
        values = [values]  # one support in a list, and its only box or point without
    values = list(values) if hasattr(values, "__len__") else [values]
    if len(values) != len(images):
        raise InputError(f"{len(images)} supports do not pair with {len(values)} of {name}=; "
                         "give one each")
    return [_for_each(image, value, make, name)
            for image, value in zip(images, values, strict=True)]


def _box(values: Any) -> Box:
    numbers = _numbers(values, "boxes=")
    return Box(tuple(numbers.reshape(-1).tolist()))


def _points(values: Any) -> Points:
    numbers = _numbers(values, "points=")
    numbers = numbers[None] if numbers.ndim == 1 else numbers.reshape(-1, numbers.shape[-1])
    return Points(tuple(map(tuple, numbers.tolist())))


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        numbers = np.asarray(values, float)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if numbers.ndim == 0 or not np.isfinite(numbers).all():
        raise InputError(f"{name} {values!r:.60} is not made of finite numbers")
    return numbers


def _depth(values: Any) -> int:
    """How deep the lists are: 1 for a box or a point alone."""
    is_list = isinstance(values, list | tuple | np.ndarray) and len(values) > 0
    return 1 + _depth(values[0]) if is_list else 0


def read_numbers(text: str, name: str) -> list[tuple[float, ...]]:
    """Reads the numbers of each support: "1,2,3,4; 5,6,7,8" -> two tuples of four.

    Raises:
        InputError: for what is no finite number, naming the key.

    """
    supports = []
    for part in text.split(";"):
        try:
            numbers = tuple(float(word) for word in part.split(","))
        except ValueError:
            numbers = (np.nan,)
        if not np.isfinite(numbers).all():
            raise InputError(f"{name}={text}: {part.strip()!r} is not numbers with commas; "
                             "a semicolon stands between supports")
        supports.append(numbers)
    return supports


def _show(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


# ---- what is made of it ----


def refiner(weak: str, find: Find) -> Refine:
    """Returns how a better mask is made of what was drawn.

    Args:
        weak: one of WEAK.
        find: asks the model: a support [1, 3, S, S] and its mask [1, S, S] -> what it finds in
            that same picture, bool [S, S].

    Returns:
        (pixels [3, S, S] in [-1, 1], drawn uint8 {0, 1} [S, S], prompt) -> mask as `drawn`, which
        is never empty.

    """
    if weak not in WEAK:
        raise InputError(f"weak={weak!r} is not one of {', '.join(WEAK)}")
    ways: dict[str, Refine] = {
        "fill": _as_drawn, "grabcut": grabcut, "self": functools.partial(_in_itself, find)}

    def best(pixels: np.ndarray, drawn: np.ndarray, prompt: Prompt) -> np.ndarray:
        return ways[BEST[type(prompt).__name__]](pixels, drawn, prompt)

    return best if weak == "auto" else ways[weak]


def keep_found(found: np.ndarray, drawn: np.ndarray, prompt: Prompt) -> np.ndarray:
    """What was found counts inside a box, or beside the points and scribbles that are known.

    Returns uint8 {0, 1} [S, S] as both are; what was drawn, where nothing is left.
    """
    kept = found & drawn if isinstance(prompt, Box) else found | drawn
    return kept if kept.any() else drawn


def grabcut(pixels: np.ndarray, drawn: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Finds the object by its colours, with OpenCV's GrabCut; see `refiner`.

    In a box, the largest part found is the object; of points and scribbles, the parts on which
    they lie.
    """
    import cv2

    if drawn.all():  # nothing is known to be background
        return drawn
    rgb = np.rint((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    if isinstance(prompt, Box):
        marks = np.where(drawn > 0, cv2.GC_PR_FGD, cv2.GC_BGD)
    else:
        alike = np.where(_looks_like(rgb, drawn), cv2.GC_PR_FGD, cv2.GC_PR_BGD)
        marks = np.where(drawn > 0, cv2.GC_FGD, alike)

    # its clusters begin at random
    cv2.setRNGSeed(0)
    marks, models = marks.astype(np.uint8), (np.zeros((1, 65)), np.zeros((1, 65)))
    if not np.isin(marks, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():
        return drawn
    cv2.grabCut(np.ascontiguousarray(rgb[..., ::-1]), marks, None, *models, ROUNDS,
                cv2.GC_INIT_WITH_MASK)
    found = keep_found(
        np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8), drawn, prompt)

    count, parts, sizes, _ = cv2.connectedComponentsWithStats(found)
    known = np.unique(parts[(drawn & found) > 0]).tolist()
    if isinstance(prompt, Box):
        known = [max(range(1, count), key=lambda part: sizes[part, cv2.CC_STAT_AREA])]
    return np.isin(parts, known).astype(np.uint8)


def _looks_like(rgb: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Which pixels of RGB uint8 [S, S, 3] have a colour near one that was drawn on, bool [S, S]."""
    import cv2

    # all colours of the picture in steps, and how far each is from those that were drawn on
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    colours, place = np.unique(np.round(lab / COLOUR_STEP), axis=0, return_inverse=True)
    place = place.reshape(drawn.shape)
    known = colours[np.unique(place[drawn > 0])]
    nearest = [np.linalg.norm(known - colour, axis=1).min() for colour in colours]
    return np.array(nearest)[place] * COLOUR_STEP < NEAR_COLOUR


def _as_drawn(pixels: np.ndarray, drawn: np.ndarray, prompt: Prompt) -> np.ndarray:
    return drawn


def _in_itself(
    find: Find, pixels: np.ndarray, drawn: np.ndarray, prompt: Prompt
) -> np.ndarray:
    return keep_found(find(pixels[None], drawn[None]).astype(np.uint8), drawn, prompt)
