"""How the made kinds are drawn: each function fills a 100 x 100 square, facing right, standing at y = 97."""

import math

from ar_t2i.data.scenes.creatures import BARK, CREAM, ROSE
from ar_t2i.data.scenes.pen import RGB, WHITE, Pen, blob, box, ellipse, rounded

GLASS: RGB = (190, 228, 246)
LAMP: RGB = (255, 226, 120)
SLATE: RGB = (96, 100, 128)
TYRE: RGB = (62, 60, 74)
METAL: RGB = (206, 210, 220)
WOOD: RGB = (168, 118, 74)
STEPS = [step / 16 for step in range(17)]


def house(pen: Pen) -> None:
    """Draw a house: the walls have the colour; the roof is slate."""
    pen.shape(SLATE, box(64, 8, 76, 30, 2))
    pen.shape(pen.body, box(12, 32, 88, 97, 3))
    pen.shape(SLATE, rounded(((27, 14), (73, 14), (96, 37), (4, 37)), 5))
    pen.shape(WOOD, rounded(((42, 97), (42, 66), (50, 60), (58, 66), (58, 97)), 4))
    pen.mark(LAMP, ellipse(54, 81, 1.8, 1.8))
    for x in (20, 65):
        pen.shape(LAMP, box(x, 51, x + 15, 67, 2))
        pen.line(pen.ink, 2, (x + 7.5, 51), (x + 7.5, 67))
        pen.line(pen.ink, 2, (x, 59), (x + 15, 59))


def car(pen: Pen) -> None:
    """Draw a small round car with two windows."""
    cabin = blob((18, 54), (26, 34), (40, 26), (58, 26), (72, 36), (80, 54), (50, 60))
    pen.shape(pen.body, cabin, rounded(((3, 54), (30, 46), (80, 49), (97, 58), (97, 82), (3, 82)), 9))
    pen.shape(GLASS, rounded(((27, 50), (31, 37), (45, 34), (45, 50)), 4))
    pen.shape(GLASS, rounded(((52, 50), (52, 34), (63, 37), (72, 50)), 4))
    pen.line(pen.ink, 2, (48.5, 54), (48.5, 80))
    pen.line(pen.ink, 2.4, (54, 60), (60, 60))
    pen.shape(LAMP, ellipse(92, 63, 4.5, 5))
    for x in (25, 75):
        pen.shape(TYRE, ellipse(x, 82, 14, 14))
        pen.mark(METAL, ellipse(x, 82, 6.5, 6.5))


def boat(pen: Pen) -> None:
    """Draw a sailing boat: hull and big sail have the colour."""
    pen.limb(WOOD, 3.4, (46, 8), (46, 74))
    pen.shape(pen.body, blob((51, 14), (70, 34), (86, 62), (68, 66), (51, 65), (52, 40)))
    pen.shape(CREAM, blob((41, 22), (26, 44), (14, 63), (28, 66), (41, 65), (40, 44)))
    pen.shape(pen.body, rounded(((4, 72), (97, 72), (82, 97), (20, 97)), 7))
    pen.line(pen.light, 3, (12, 79), (88, 79))


def rocket(pen: Pen) -> None:
    """Draw a rocket that flies up, its flame on."""
    pen.shape((250, 150, 40), blob((38, 80), (62, 80), (58, 92), (50, 98), (42, 92)))
    pen.mark((255, 224, 96), blob((44, 80), (56, 80), (54, 88), (50, 92), (46, 88)))
    pen.shape(SLATE, rounded(((36, 52), (14, 74), (16, 88), (38, 78)), 4))
    pen.shape(SLATE, rounded(((64, 52), (86, 74), (84, 88), (62, 78)), 4))
    pen.shape(pen.body, blob((50, 3), (64, 18), (71, 42), (69, 66), (62, 82), (38, 82), (31, 66), (29, 42), (36, 18)))
    pen.line(pen.ink, 2, (34, 72), (50, 74), (66, 72))
    pen.shape(METAL, ellipse(50, 42, 13, 13))
    pen.mark((120, 196, 236), ellipse(50, 42, 9, 9))
    pen.mark(WHITE, ellipse(46.5, 38.5, 2.6, 2.6))


def ball(pen: Pen) -> None:
    """Draw a ball with one light stripe."""
    pen.shape(pen.body, ellipse(50, 51, 46, 46))
    upper = [(50 + 45 * math.cos(angle), 51 + 45 * math.sin(angle)) for angle in (-3.05, -0.09)]
    lower = [(50 + 45 * math.cos(angle), 51 + 45 * math.sin(angle)) for angle in (0.36, 2.78)]
    across = [(upper[0][0] + (upper[1][0] - upper[0][0]) * t, upper[0][1] + 44 * t * (1 - t)) for t in STEPS]
    back = [(lower[0][0] + (lower[1][0] - lower[0][0]) * t, lower[0][1] + 48 * t * (1 - t)) for t in STEPS]
    pen.mark(pen.light, [*across, *back])
    pen.mark(pen.light, ellipse(34, 23, 7, 4.5, -32))


def star(pen: Pen) -> None:
    """Draw a smiling star with five points."""
    corners = []
    for point in range(10):
        radius, angle = (50.0, 24.5)[point % 2], math.radians(36 * point - 90)
        corners.append((50 + radius * math.cos(angle), 54 + radius * math.sin(angle)))
    pen.shape(pen.body, rounded(corners, 7))
    pen.eye(41, 49, 5)
    pen.eye(59, 49, 5)
    pen.mark(ROSE, ellipse(34, 58, 4, 2.6), ellipse(66, 58, 4, 2.6))
    pen.line(pen.ink, 2.2, (44, 60), (47, 63.5), (50, 64.5), (53, 63.5), (56, 60))


def balloon(pen: Pen) -> None:
    """Draw a balloon on a string."""
    pen.line(pen.ink, 2.2, (50, 74), (54, 80), (47, 87), (51, 97))
    pen.shape(pen.body, rounded(((50, 68), (57, 77), (43, 77)), 2))
    pen.shape(pen.body, blob((50, 4), (72, 12), (82, 34), (72, 56), (50, 72), (28, 56), (18, 34), (28, 12)))
    pen.mark(pen.light, ellipse(34, 25, 5, 10, 26))


def umbrella(pen: Pen) -> None:
    """Draw an open umbrella with a hooked handle."""
    pen.limb(BARK, 3.6, (50, 40), (50, 88), (53, 94), (59, 94), (62, 88))
    pen.limb(BARK, 3, (50, 12), (50, 6))
    canopy = [(3, 56), (8, 36), (22, 19), (50, 10), (78, 19), (92, 36), (97, 56)]
    scallops = [
        (90, 51),
        (82, 49),
        (74, 51),
        (66, 57),
        (58, 52),
        (50, 50),
        (42, 52),
        (34, 57),
        (26, 51),
        (18, 49),
        (10, 51),
    ]
    pen.shape(pen.body, rounded((*canopy, *scallops), 5))
    pen.mark(pen.shade, blob((50, 12), (61, 30), (66, 54), (50, 49), (34, 54), (39, 30)))


def flag(pen: Pen) -> None:
    """Draw a waving flag on a pole."""
    pen.shape(
        pen.body,
        blob((20, 16), (42, 10), (66, 18), (95, 12), (94, 36), (95, 58), (68, 64), (44, 56), (20, 62), (20, 40)),
    )
    pen.line(pen.shade, 3, (42, 17), (43, 34), (42, 50))
    pen.line(pen.shade, 3, (68, 24), (69, 40), (68, 57))
    pen.limb(WOOD, 5, (18, 10), (18, 95))
    pen.shape(LAMP, ellipse(18, 8, 5, 5))
