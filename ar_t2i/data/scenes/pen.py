"""A small vector pen: smooth outlined shapes in a 100 x 100 square, anti-aliased by supersampling."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Points = list[tuple[float, float]]

COLORS: dict[str, RGB] = {
    "red": (226, 54, 54),
    "orange": (246, 138, 32),
    "yellow": (252, 212, 48),
    "green": (54, 160, 74),
    "blue": (44, 108, 220),
    "purple": (134, 70, 186),
    "pink": (248, 146, 190),
    "brown": (138, 86, 50),
    "white": (252, 252, 250),
    "black": (44, 44, 52),
}

WHITE: RGB = (255, 255, 255)
DARK: RGB = (46, 38, 58)
SUPERSAMPLE = 4


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """Blend `share` (0..1) of `second` into `first`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """Ellipse about (x, y) with radii rx and ry, turned clockwise by `turn` degrees."""
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    steps = 32 + 2 * round(max(rx, ry))
    angles = [math.tau * step / steps for step in range(steps)]
    flat = [(rx * math.cos(angle), ry * math.sin(angle)) for angle in angles]
    return [(x + dx * cosine - dy * sine, y + dx * sine + dy * cosine) for dx, dy in flat]


def blob(*corners: tuple[float, float]) -> Points:
    """Closed smooth curve (Catmull-Rom) through the corners."""
    knots = np.array(corners, dtype=float)
    steps = np.linspace(0, 1, 16, endpoint=False)[:, None]
    curve = []
    for index in range(len(knots)):
        before, start, end, after = (knots[(index + offset) % len(knots)] for offset in (-1, 0, 1, 2))
        linear, square, cube = (
            end - before,
            2 * before - 5 * start + 4 * end - after,
            3 * (start - end) + after - before,
        )
        curve.append(start + 0.5 * (linear * steps + square * steps**2 + cube * steps**3))
    return [(float(x), float(y)) for x, y in np.concatenate(curve)]


def rounded(corners: Sequence[tuple[float, float]], radius: float = 4.0) -> Points:
    """Polygon with each corner rounded by a quadratic curve that starts `radius` before it."""
    curve: Points = []
    for index, corner in enumerate(corners):
        ends = []
        for other in (corners[index - 1], corners[(index + 1) % len(corners)]):
            length = math.dist(corner, other)
            share = min(radius, length / 2) / length
            ends.append((corner[0] + (other[0] - corner[0]) * share, corner[1] + (other[1] - corner[1]) * share))
        for step in range(9):
            t = step / 8
            weights = ((1 - t) ** 2, 2 * t * (1 - t), t * t)
            knots = (ends[0], corner, ends[1])
            curve.append(
                (
                    sum(weight * knot[0] for weight, knot in zip(weights, knots, strict=True)),
                    sum(weight * knot[1] for weight, knot in zip(weights, knots, strict=True)),
                )
            )
    return curve


def box(left: float, top: float, right: float, bottom: float, radius: float = 4.0) -> Points:
    """Rectangle with rounded corners."""
    return rounded(((left, top), (right, top), (right, bottom), (left, bottom)), radius)


class Pen:
    """Draws one object of `size` x `size` pixels in its main colour; shapes are given in a 100 x 100 square, y down.

    `body` is the main colour exactly, `shade` a near tone of it, `light` white that still shows on a white body, and
    `ink` the outline.
    """

    def __init__(self, color: str, size: int) -> None:
        """Start an empty picture of `size` pixels for an object of the named colour."""
        self.body = COLORS[color]
        self.shade = mix(self.body, DARK, 0.16)
        self.ink = mix(self.body, DARK, 0.66)
        self.light = WHITE
        if color == "white":
            self.light = self.shade
        if color == "black":
            self.shade = mix(self.body, WHITE, 0.16)
            self.ink = mix(self.body, (190, 196, 220), 0.58)
        self._scale = size * SUPERSAMPLE / 100
        self._line = max(1.7, size * 0.019) * SUPERSAMPLE / self._scale
        self._image = Image.new("RGBA", (size * SUPERSAMPLE, size * SUPERSAMPLE), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._image)

    def _pixels(self, points: Points) -> Points:
        return [(x * self._scale, y * self._scale) for x, y in points]

    def line(self, color: RGB, width: float, *points: tuple[float, float]) -> None:
        """Draw a line with round ends and corners and no outline."""
        pixels, thick = self._pixels(list(points)), round(width * self._scale)
        self._draw.line(pixels, fill=color, width=thick)
        radius = (thick - 1) / 2
        for x, y in pixels:
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def limb(self, color: RGB, width: float, *points: tuple[float, float]) -> None:
        """Draw a line with round ends and an outline."""
        self.line(self.ink, width + 2 * self._line, *points)
        self.line(color, width, *points)

    def shape(self, color: RGB, *shapes: Points) -> None:
        """Fill the shapes as one, with one outline around all of them."""
        for points in shapes:
            self.line(self.ink, 2 * self._line, *points, *points[:2])
        self.mark(color, *shapes)

    def mark(self, color: RGB, *shapes: Points) -> None:
        """Fill the shapes without an outline."""
        for points in shapes:
            self._draw.polygon(self._pixels(points), fill=color)

    def eye(self, x: float, y: float, radius: float) -> None:
        """Draw a friendly round eye: white, with a dark pupil that has a glint."""
        self.mark(self.ink, ellipse(x, y, radius * 1.2, radius * 1.2))
        self.mark(WHITE, ellipse(x, y, radius, radius))
        self.mark(DARK, ellipse(x + radius * 0.15, y + radius * 0.1, radius * 0.68, radius * 0.68))
        self.mark(WHITE, ellipse(x + radius * 0.32, y - radius * 0.2, radius * 0.24, radius * 0.24))

    def finish(self) -> Image.Image:
        """Return the object as an RGBA picture of `size` x `size` pixels."""
        return self._image.reduce(SUPERSAMPLE)
