"""The background of each place: one fixed picture, drawn once and kept."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from ar_t2i.data.scenes.pen import RGB, SUPERSAMPLE, Points, blob, ellipse, mix, rounded

SIZE = 256
PLACES = ("plain", "grass", "sea", "desert", "snow", "night", "mountains", "sunset", "underwater")

CLOUD: RGB = (252, 254, 255)


class _Canvas:
    """A 256 x 256 background, drawn in pixels of the final picture."""

    def __init__(self, top: RGB, bottom: RGB, horizon: int = SIZE) -> None:
        """Start with a sky that fades from `top` to `bottom` at the horizon."""
        self.image = Image.new("RGB", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE), bottom)
        self._draw = ImageDraw.Draw(self.image)
        for y in range(horizon * SUPERSAMPLE):
            self._draw.line((0, y, SIZE * SUPERSAMPLE, y), fill=mix(top, bottom, y / (horizon * SUPERSAMPLE)))

    def fill(self, color: RGB, *shapes: Points) -> None:
        """Fill the shapes."""
        for points in shapes:
            self._draw.polygon([(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points], fill=color)

    def disc(self, color: RGB, x: float, y: float, radius: float) -> None:
        """Fill a circle."""
        self.fill(color, ellipse(x, y, radius, radius))

    def ground(self, color: RGB, level: float, swell: float, waves: float, phase: float) -> None:
        """Fill everything below a wavy line at `level`."""
        crest = [(x, level - swell * math.sin(math.tau * waves * x / SIZE + phase)) for x in range(0, SIZE + 1, 4)]
        self.fill(color, [(0, SIZE), *crest, (SIZE, SIZE)])

    def cloud(self, x: float, y: float, scale: float, color: RGB = CLOUD) -> None:
        """Fill a flat-bottomed cloud."""
        puffs = ((-19, 0, 9), (-7, -7, 13), (9, -5, 12), (20, 0, 9))
        self.fill(color, *(ellipse(x + dx * scale, y + dy * scale, r * scale, r * scale) for dx, dy, r in puffs))
        self.fill(
            color,
            rounded(
                (
                    (x - 29 * scale, y),
                    (x + 29 * scale, y),
                    (x + 29 * scale, y + 9 * scale),
                    (x - 29 * scale, y + 9 * scale),
                ),
                4 * scale,
            ),
        )


def _crescent(x: float, y: float, radius: float, bite: float, shift: float, turn: float) -> Points:
    """Circle about (x, y) less a circle of radius `bite`, `shift` away in the direction `turn` (radians)."""
    outer = math.acos((radius**2 + shift**2 - bite**2) / (2 * radius * shift))
    inner = math.acos((radius**2 - shift**2 - bite**2) / (2 * bite * shift))
    edge_x, edge_y = x + shift * math.cos(turn), y + shift * math.sin(turn)
    back = [
        (x + radius * math.cos(a), y + radius * math.sin(a))
        for a in np.linspace(turn + outer, turn + math.tau - outer, 60)
    ]
    front = [
        (edge_x + bite * math.cos(a), edge_y + bite * math.sin(a))
        for a in np.linspace(turn + math.tau - inner, turn + inner, 60)
    ]
    return back + front


def _plain(canvas: _Canvas) -> None:
    canvas.ground((244, 232, 208), 170, 0, 0, 0)


def _grass(canvas: _Canvas) -> None:
    canvas.cloud(62, 44, 1.1)
    canvas.cloud(196, 66, 0.9)
    canvas.ground((176, 222, 136), 146, 12, 1, 0.4)
    canvas.ground((146, 206, 104), 168, 8, 1, 2.8)
    for x, y in ((24, 222), (58, 240), (112, 246), (176, 238), (226, 226), (244, 248)):
        canvas.fill(
            (122, 188, 86),
            [(x - 6, y), (x - 8, y - 9), (x - 2, y - 3), (x, y - 12), (x + 3, y - 3), (x + 8, y - 9), (x + 6, y)],
        )


def _sea(canvas: _Canvas) -> None:
    canvas.disc((255, 230, 130), 212, 44, 21)
    canvas.cloud(60, 48, 1.0)
    canvas.fill((86, 180, 214), [(0, 122), (SIZE, 122), (SIZE, SIZE), (0, SIZE)])
    for x, y in ((30, 134), (98, 141), (160, 132), (226, 142), (60, 154), (190, 155)):
        canvas.fill(
            (150, 212, 232), rounded(((x - 13, y - 1.3), (x + 13, y - 1.3), (x + 13, y + 1.3), (x - 13, y + 1.3)), 1.3)
        )
    canvas.ground((226, 244, 246), 172, 4, 2, 0.5)
    canvas.ground((250, 228, 178), 177, 4, 2, 0.5)


def _desert(canvas: _Canvas) -> None:
    canvas.disc((255, 246, 200), 58, 46, 20)
    canvas.ground((240, 196, 128), 142, 16, 1, 3.6)
    canvas.ground((234, 180, 104), 170, 9, 1, 0.6)
    cactus: RGB = (112, 158, 102)
    canvas.fill(cactus, rounded(((228, 112), (240, 112), (240, 172), (228, 172)), 6))
    canvas.fill(cactus, rounded(((214, 128), (221, 128), (221, 140), (232, 140), (232, 147), (214, 147)), 3.4))
    canvas.fill(cactus, rounded(((236, 132), (246, 132), (246, 120), (253, 120), (253, 139), (236, 139)), 3.4))


def _snow(canvas: _Canvas) -> None:
    for x, y, radius in (
        (22, 30, 3.4),
        (66, 74, 3),
        (104, 24, 3),
        (150, 58, 3.4),
        (198, 22, 3),
        (236, 78, 3.4),
        (28, 112, 3),
        (214, 116, 3),
    ):
        canvas.disc((250, 253, 255), x, y, radius)
    canvas.ground((214, 230, 244), 148, 11, 1, 3.4)
    canvas.ground((236, 244, 251), 168, 7, 1, 0.2)


def _night(canvas: _Canvas) -> None:
    canvas.fill((255, 244, 196), _crescent(210, 42, 20, 16, 11, 3.65))
    for x, y, radius in (
        (26, 34, 1.7),
        (60, 82, 1.4),
        (92, 22, 1.5),
        (130, 60, 1.4),
        (160, 26, 1.7),
        (240, 94, 1.5),
        (32, 118, 1.4),
        (176, 96, 1.4),
    ):
        canvas.disc((240, 240, 220), x, y, radius)
    canvas.ground((62, 84, 124), 150, 11, 1, 0.8)
    canvas.ground((52, 72, 106), 170, 7, 1, 3.4)


def _mountains(canvas: _Canvas) -> None:
    for x, peak, half in ((196, 66, 92), (70, 46, 104)):
        canvas.fill((150, 166, 196), rounded(((x - half, 176), (x, peak), (x + half, 176)), 8))
        ratio = 30 / (176 - peak)
        foot = peak + 30
        cap = (
            (x, peak),
            (x + half * ratio, foot),
            (x + 9, foot - 7),
            (x, foot + 3),
            (x - 10, foot - 7),
            (x - half * ratio, foot),
        )
        canvas.fill((246, 250, 254), rounded(cap, 4))
    canvas.ground((164, 196, 146), 164, 6, 1, 2.6)


def _sunset(canvas: _Canvas) -> None:
    canvas.disc((255, 214, 160), 128, 152, 62)
    canvas.disc((255, 238, 190), 128, 152, 44)
    canvas.fill(
        (250, 206, 196),
        rounded(((18, 52), (88, 52), (88, 60), (18, 60)), 4),
        rounded(((168, 76), (238, 76), (238, 84), (168, 84)), 4),
    )
    canvas.ground((214, 150, 148), 156, 8, 1, 0.9)
    canvas.ground((198, 132, 138), 174, 5, 1, 3.6)


def _underwater(canvas: _Canvas) -> None:
    for left in (30, 104, 178):
        canvas.fill((146, 218, 226), [(left, 0), (left + 26, 0), (left - 6, 176), (left - 40, 176)])
    for x, y, radius in ((34, 60, 5), (44, 42, 3.4), (220, 92, 5), (212, 74, 3.4), (226, 58, 2.6)):
        canvas.disc((206, 242, 246), x, y, radius)
    for x, lean in ((12, 6), (26, -5), (234, 6), (247, -5)):
        weed = blob(
            (x - 5, 190),
            (x - 4 + lean, 160),
            (x - 5 - lean, 132),
            (x + lean, 106),
            (x + 5 - lean, 132),
            (x + 4 + lean, 160),
            (x + 5, 190),
        )
        canvas.fill((64, 158, 138), weed)
    canvas.ground((240, 222, 178), 172, 5, 1.5, 0.4)


_SKIES: dict[str, tuple[RGB, RGB]] = {
    "plain": ((253, 248, 236), (253, 248, 236)),
    "grass": ((166, 214, 246), (222, 240, 250)),
    "sea": ((176, 222, 248), (226, 242, 250)),
    "desert": ((250, 214, 156), (255, 238, 204)),
    "snow": ((162, 194, 226), (206, 224, 242)),
    "night": ((44, 52, 108), (78, 90, 152)),
    "mountains": ((176, 216, 240), (232, 242, 246)),
    "sunset": ((204, 142, 186), (255, 196, 160)),
    "underwater": ((120, 206, 222), (86, 176, 206)),
}
_PAINT = {
    "plain": _plain,
    "grass": _grass,
    "sea": _sea,
    "desert": _desert,
    "snow": _snow,
    "night": _night,
    "mountains": _mountains,
    "sunset": _sunset,
    "underwater": _underwater,
}


@functools.cache
def background(place: str) -> Image.Image:
    """Return the RGB picture of a place, 256 x 256; copy it before drawing on it."""
    canvas = _Canvas(*_SKIES[place], horizon=180)
    _PAINT[place](canvas)
    return canvas.image.reduce(SUPERSAMPLE)
