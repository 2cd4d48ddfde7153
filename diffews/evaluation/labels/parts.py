"""The connected parts of a mask: their pixels as runs, and their outlines as polygons."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Point = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A connected part of one class, pixels that touch at a corner included.

    Attributes:
        label: its class: 1, 2, ...
        left, top: where its box begins in the picture, in pixels.
        mask: bool (h, w), its pixels in its box.

    """

    label: int
    left: int
    top: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Its pixels."""
        return int(np.count_nonzero(self.mask))


def find_parts(labels: np.ndarray, least_area: int = 1) -> tuple[list[Part], int]:
    """Finds the connected parts of a label map, class by class.

    Args:
        labels: uint8 or bool (H, W): 0 none, then 1, 2, ...
        least_area: pixels; smaller parts are left out.

    Returns:
        The parts, from the top row down within a class, and how many were left out.

    """
    parts, small = [], 0
    for label in np.unique(labels[labels > 0]).tolist():
        marked = (labels == label).astype(np.uint8)
        _, numbers, boxes, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)

        for number, (left, top, width, height, area) in enumerate(boxes.tolist()):
            if number == 0:  # what is not marked
                continue
            if area < least_area:
                small += 1
                continue
            box = numbers[top : top + height, left : left + width]
            parts.append(Part(int(label), left, top, box == number))
    return parts, small


def run_lengths(parts: Sequence[Part], height: int, width: int, by_column: bool) -> np.ndarray:
    """Counts pixels in turn: not marked, marked, not marked, ... of the union of some parts.

    Args:
        parts: they share no pixel.
        height, width: of the picture.
        by_column: pixels follow each other down the columns, as COCO counts, not along the rows.

    Returns:
        int64 (runs,); they fill the picture, and only the first may be 0.

    """
    line = height if by_column else width
    starts, ends = [], []
    for part in parts:
        mask = part.mask.T if by_column else part.mask
        first, offset = (part.left, part.top) if by_column else (part.top, part.left)

        # a step up begins a run, the next step down ends it
        steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        (rows, begin), (_, end) = np.nonzero(steps == 1), np.nonzero(steps == -1)
        base = (rows + first) * line + offset
        starts.append(base + begin)
        ends.append(base + end)

    # runs that go on at the start of the next line are one
    start = np.sort(np.concatenate([np.zeros(0, np.int64), *starts]))
    end = np.sort(np.concatenate([np.zeros(0, np.int64), *ends]))
    joined = start[1:] == end[:-1]
    start = start[np.concatenate([np.ones(min(1, len(start)), bool), ~joined])]
    end = end[np.concatenate([~joined, np.ones(min(1, len(end)), bool)])]
    borders = np.concatenate([[0], np.stack([start, end], 1).ravel(), [height * width]])
    lengths = np.diff(borders).astype(np.int64)
    return lengths[:-1] if len(lengths) > 1 and not lengths[-1] else lengths


def outline(part: Part) -> list[Point]:
    """Draws a part as one closed polygon, whose corners are pixels of it.

    Holes stay holes: a seam leads from the edge to each and back, along the same row. Filled with
    its border (OpenCV's fillPoly, Pillow's polygon), it is the part again.

    Returns:
        At least three points (x, y) in the picture; a part of one or two pixels repeats them.

    """
    contours, tree = cv2.findContours(
        part.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    is_hole = tree[0, :, 3] >= 0  # it lies in another
    outer = [ring[:, 0] for ring, hole in zip(contours, is_hole, strict=True) if not hole]
    holes = [ring[:, 0] for ring, hole in zip(contours, is_hole, strict=True) if hole]

    # each hole begins at its leftmost point, and holes further left come first
    holes = [np.roll(hole, -int(hole[:, 0].argmin()), axis=0) for hole in holes]
    holes.sort(key=lambda hole: int(hole[0, 0]))
    rings = [list(map(tuple, ring.tolist())) for ring in (*outer, *holes)]

    points = np.array(list(_walk(rings, _seams(rings, part.mask)))) + (part.left, part.top)
    corners = [(int(x), int(y)) for x, y in _corners(points)]
    return corners + corners[:1] * (3 - len(corners))


def _seams(rings: Sequence[Sequence[Point]], mask: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """Finds where a seam leaves for each hole: (ring, place in it) -> numbers of holes."""
    seams: dict[tuple[int, int], list[int]] = {}
    places: dict[Point, tuple[int, int]] = {}
    for number, ring in enumerate(rings):
        if number:
            # to the left, marked pixels end at the outline, or at a hole that begins further left
            x, y = ring[0]
            gaps = np.flatnonzero(~mask[y, :x])
            edge = int(gaps[-1]) + 1 if len(gaps) else 0
            seams.setdefault(places[edge, y], []).append(number)
        for place, point in enumerate(ring):
            places.setdefault(point, (number, place))
    return seams


def _walk(
    rings: Sequence[Sequence[Point]], seams: dict[tuple[int, int], list[int]]
) -> Iterator[Point]:
    """Walks around the first ring; at a seam goes around its hole, and comes back."""
    stack = [(0, 0)]  # ring and point with which to go on
    while stack:
        number, begin = stack.pop()
        ring = rings[number]
        for place in range(begin, len(ring)):
            yield ring[place]
            if waiting := seams.get((number, place)):
                stack += [(number, place), (waiting.pop(), 0)]
                break
        else:
            yield ring[0]


def _corners(points: np.ndarray) -> np.ndarray:
    """Leaves out points between two others on one line, and repeated ones; (N, 2) -> (M, 2)."""
    moved = (points != np.roll(points, 1, axis=0)).any(1)
    points = points[moved] if moved.any() else points[:1]
    if len(points) < 3:
        return points
    # steps lead to a neighbour or, as seams, along a row: their signs are their directions
    ahead = np.sign(np.roll(points, -1, axis=0) - points)
    behind = np.sign(points - np.roll(points, 1, axis=0))
    return points[(ahead != behind).any(1)]
