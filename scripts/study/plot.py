"""The plot of the study's report: horizontal bars in groups, with a dot for each seed."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from diffews.images.drawing import BLACK, FONT, GREY, save_image

WIDTH, ROW, HEADING, LEFT, RIGHT, FOOT = 900, 24, 40, 250, 70, 62  # pixels
FINE = 4  # drawn so many times larger, then shrunk: smooth letters and lines
DEFAULT_COLOURS = ((246, 190, 180), (200, 45, 40))  # RGB of bar and dots
COLOURS = ((190, 210, 240), (35, 90, 190))
PALE, WHITE = (225, 225, 225), (255, 255, 255)


@dataclass(frozen=True)
class Bar:
    """One variant: a value in percent for each seed that is finished."""

    label: str
    values: list[float]
    default: bool


@dataclass(frozen=True)
class Group:
    """Bars of one study, the default among them."""

    title: str
    bars: list[Bar]


class Canvas:
    """A white picture that is drawn larger than it is saved; places in pixels of the saved one."""

    def __init__(self, height: int) -> None:
        self.pixels = np.full((height * FINE, WIDTH * FINE, 3), 255, np.uint8)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int]) -> None:
        """Fills a rectangle."""
        corners = [(round(x * FINE), round(y * FINE)) for x, y in ((x0, y0), (x1, y1))]
        cv2.rectangle(self.pixels, *corners, colour, -1)

    def dot(self, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        """Fills a circle with a white rim."""
        for size, shade in ((radius + 1, WHITE), (radius, colour)):
            cv2.circle(
                self.pixels,
                (round(x * FINE), round(y * FINE)),
                round(size * FINE),
                shade,
                -1,
                cv2.LINE_AA,
            )

    def text(
        self,
        words: str,
        x: float,
        y: float,
        colour: tuple[int, int, int] = BLACK,
        align: float = 0,
        size: float = 11,
    ) -> None:
        """Writes words with their middle at height y; align: 0 starts at x, 0.5 centred, 1 ends."""
        thick = round(1.15 * FINE)
        scale = cv2.getFontScaleFromHeight(FONT, round(size * FINE * 0.9), thick)
        (width, height), _ = cv2.getTextSize(words, FONT, scale, thick)
        place = (round(x * FINE - align * width), round(y * FINE + height / 2))
        cv2.putText(self.pixels, words, place, FONT, scale, colour, thick, cv2.LINE_AA)

    def save(self, path: Path) -> None:
        """Shrinks and writes the picture."""
        save_image(
            path,
            cv2.resize(self.pixels, None, fx=1 / FINE, fy=1 / FINE, interpolation=cv2.INTER_AREA),
        )


def save_plot(path: Path, groups: list[Group], axis: str) -> None:
    """Draws each group's bars below its title, on one axis from 0 to 100 %."""
    bottom = sum(HEADING + ROW * len(group.bars) for group in groups) + 8
    canvas = Canvas(bottom + FOOT)

    def place(value: float) -> float:
        return LEFT + value / 100 * (WIDTH - LEFT - RIGHT)

    for tick in range(0, 101, 10):
        canvas.text(str(tick), place(tick), bottom + 12, GREY, align=0.5, size=10)
    canvas.text(axis, (LEFT + WIDTH - RIGHT) / 2, bottom + 30, align=0.5)
    legend = "bar: mean over seeds    dot: one seed    red, and the thin line: default"
    canvas.text(legend, (LEFT + WIDTH - RIGHT) / 2, bottom + 49, GREY, align=0.5, size=10)
    top = 0
    for group in groups:
        canvas.text(group.title, 16, top + HEADING / 2 + 3, size=12)
        top += HEADING
        end = top + ROW * len(group.bars)
        for tick in range(0, 101, 10):
            canvas.box(place(tick) - 0.5, top, place(tick) + 0.5, end, PALE if tick else GREY)
        middles = [top + ROW * (number + 0.5) for number in range(len(group.bars))]
        for bar, middle in zip(group.bars, middles, strict=True):
            fill, ink = DEFAULT_COLOURS if bar.default else COLOURS
            canvas.text(bar.label, LEFT - 10, middle, ink if bar.default else BLACK, align=1)
            if bar.values:
                mean = float(np.mean(bar.values))
                canvas.box(LEFT, middle - 8, place(mean), middle + 8, fill)
                canvas.text(
                    f"{mean:.1f}", WIDTH - 16, middle, ink if bar.default else BLACK, align=1
                )
            else:
                canvas.text("not run yet", LEFT + 8, middle, GREY)
        for bar in group.bars:
            if bar.default and bar.values:
                line = place(float(np.mean(bar.values)))
                canvas.box(line - 0.5, top, line + 0.5, end, DEFAULT_COLOURS[1])
        for bar, middle in zip(group.bars, middles, strict=True):
            for value in bar.values:
                canvas.dot(
                    place(value), middle, 3.5, (DEFAULT_COLOURS if bar.default else COLOURS)[1]
                )
        top = end
    canvas.save(path)
