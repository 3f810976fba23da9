"""How the living kinds are drawn: each function fills a 100 x 100 square, facing right, standing at y = 97."""

from ar_t2i.data.scenes.pen import DARK, RGB, WHITE, Pen, blob, ellipse, rounded

BEAK: RGB = (250, 166, 40)
ROSE: RGB = (240, 140, 150)
FACE: RGB = (92, 80, 92)
SKIN: RGB = (190, 204, 112)
BARK: RGB = (128, 86, 58)
LEAF: RGB = (96, 178, 84)
CREAM: RGB = (255, 240, 214)


def bird(pen: Pen) -> None:
    """Draw a plump bird on two thin legs."""
    for x in (43, 56):
        pen.limb(BEAK, 3, (x, 78), (x, 94), (x + 6, 94.5))
    pen.shape(BEAK, rounded(((82, 27), (97, 36), (82, 44)), 3))
    tail = rounded(((30, 52), (4, 36), (4, 60), (26, 72)), 5)
    pen.shape(pen.body, tail, ellipse(47, 58, 30, 25), ellipse(66, 33, 22, 22))
    pen.shape(pen.shade, blob((58, 52), (42, 47), (20, 54), (34, 70), (52, 68)))
    pen.eye(73, 29, 6.5)


def cat(pen: Pen) -> None:
    """Draw a sitting cat that looks at us, its tail curled up."""
    pen.limb(pen.body, 9, (66, 90), (74, 90.5), (81, 88), (86, 83), (88.5, 76), (88.5, 69), (86, 63), (82, 60))
    pen.shape(pen.body, blob((50, 48), (70, 60), (75, 82), (70, 95), (50, 96), (30, 95), (25, 82), (30, 60)))
    ears = [rounded(((25, 34), (24, 5), (46, 18)), 3), rounded(((75, 34), (76, 5), (54, 18)), 3)]
    pen.shape(pen.body, *ears, ellipse(50, 35, 29, 24))
    pen.mark(ROSE, rounded(((29, 20), (28.5, 12), (37, 17)), 2), rounded(((71, 20), (71.5, 12), (63, 17)), 2))
    pen.line(pen.ink, 2, (42, 95), (42, 82))
    pen.line(pen.ink, 2, (58, 95), (58, 82))
    pen.eye(38, 33, 6)
    pen.eye(62, 33, 6)
    pen.mark(ROSE, rounded(((46, 42), (54, 42), (50, 47)), 2))
    pen.line(pen.ink, 1.6, (44, 50), (47, 51), (50, 48), (53, 51), (56, 50))


def sheep(pen: Pen) -> None:
    """Draw a woolly sheep with a dark face and legs."""
    for x in (28, 40, 58, 70):
        pen.limb(FACE, 6, (x, 76), (x, 93))
    wool = [(24, 56, 17), (34, 38, 18), (54, 36, 18), (68, 50, 17), (64, 66, 17), (44, 70, 18), (28, 68, 16)]
    pen.shape(pen.body, *(ellipse(x, y, radius, radius) for x, y, radius in wool), ellipse(46, 54, 24, 20))
    pen.shape(FACE, ellipse(67, 42, 9, 5, 35))
    pen.shape(FACE, ellipse(81, 46, 14, 17, -12))
    pen.shape(pen.body, ellipse(73, 31, 8, 7), ellipse(82, 29, 8, 7))
    pen.eye(84, 42, 5)


def fish(pen: Pen) -> None:
    """Draw a round fish with a fan tail."""
    pen.shape(pen.shade, blob((40, 44), (46, 26), (62, 25), (68, 42)), blob((46, 80), (50, 96), (62, 94), (64, 80)))
    tail = blob((30, 62), (16, 48), (4, 34), (10, 62), (4, 90), (16, 76))
    pen.shape(pen.body, tail, blob((24, 62), (38, 42), (62, 37), (84, 46), (96, 63), (84, 80), (62, 87), (38, 82)))
    pen.line(pen.ink, 2, (66, 48), (62, 55), (61, 62), (62, 69), (66, 76))
    pen.shape(pen.shade, blob((54, 62), (40, 56), (40, 74)))
    pen.eye(79, 55, 6.5)
    pen.line(pen.ink, 2, (86, 72), (82, 73), (79, 71))


def butterfly(pen: Pen) -> None:
    """Draw a butterfly from above, its four wings open."""
    for side in (-1, 1):
        pen.line(DARK, 2.4, (50 + side, 26), (50 + side * 7, 14), (50 + side * 14, 9))
        pen.mark(DARK, ellipse(50 + side * 14, 9, 2.6, 2.6))
        upper = blob((50, 48), (50 + side * 14, 26), (50 + side * 38, 16), (50 + side * 45, 34), (50 + side * 28, 54))
        lower = blob((50, 52), (50 + side * 24, 52), (50 + side * 38, 68), (50 + side * 30, 88), (50 + side * 12, 78))
        pen.shape(pen.body, lower, upper)
        pen.mark(pen.light, ellipse(50 + side * 32, 32, 7, 7), ellipse(50 + side * 25, 71, 5.5, 5.5))
    pen.shape(FACE, ellipse(50, 54, 5, 26))
    pen.shape(FACE, ellipse(50, 27, 7, 7))


def rabbit(pen: Pen) -> None:
    """Draw a sitting rabbit that looks at us, with long ears."""
    pen.shape(pen.body, ellipse(38, 22, 9, 19, -8), ellipse(62, 22, 9, 19, 8))
    pen.mark(ROSE, ellipse(38, 22, 4, 12, -8), ellipse(62, 22, 4, 12, 8))
    pen.shape(WHITE, ellipse(76, 84, 9, 9))
    pen.shape(pen.body, blob((50, 56), (70, 68), (74, 86), (66, 96), (34, 96), (26, 86), (30, 68)))
    pen.shape(pen.body, ellipse(37, 92, 12, 6), ellipse(63, 92, 12, 6))
    pen.shape(pen.body, ellipse(50, 50, 26, 22))
    pen.eye(39, 47, 6)
    pen.eye(61, 47, 6)
    pen.mark(ROSE, ellipse(50, 56, 4, 3))
    pen.line(pen.ink, 1.6, (44, 63), (47, 64), (50, 60), (53, 64), (56, 63))


def turtle(pen: Pen) -> None:
    """Draw a walking turtle: the shell has the colour."""
    pen.shape(SKIN, rounded(((10, 72), (2, 82), (16, 82)), 3))
    pen.shape(SKIN, rounded(((18, 74), (36, 74), (34, 97), (20, 97)), 6))
    pen.shape(SKIN, rounded(((56, 74), (74, 74), (73, 97), (59, 97)), 6))
    pen.shape(SKIN, blob((66, 80), (76, 62), (78, 48), (90, 44), (97, 54), (93, 66), (82, 82)))
    pen.shape(pen.body, blob((8, 78), (12, 54), (28, 37), (44, 33), (60, 37), (76, 54), (80, 78), (44, 83)))
    pen.shape(pen.shade, rounded(((36, 46), (52, 46), (59, 58), (52, 70), (36, 70), (29, 58)), 4))
    pen.eye(88, 53, 4.6)


def tree(pen: Pen) -> None:
    """Draw a leafy tree: the crown has the colour."""
    pen.shape(BARK, rounded(((42, 56), (58, 56), (60, 90), (66, 97), (34, 97), (40, 90)), 3))
    crown = [(50, 24, 21), (30, 36, 20), (70, 36, 20), (26, 54, 17), (74, 54, 17), (50, 52, 22)]
    pen.shape(pen.body, *(ellipse(x, y, radius, radius) for x, y, radius in crown))
    for x, y in ((38, 26), (60, 40), (32, 52), (66, 62)):
        pen.line(pen.shade, 3, (x - 5, y), (x - 2, y + 3), (x + 2, y + 3), (x + 5, y))


def flower(pen: Pen) -> None:
    """Draw a flower with six petals on a green stem."""
    pen.limb(LEAF, 4, (50, 50), (50, 95))
    pen.shape(LEAF, blob((50, 90), (36, 86), (24, 72), (42, 74)))
    pen.shape(LEAF, blob((50, 84), (64, 80), (76, 66), (58, 68)))
    petals = [(50, 17), (68, 27), (68, 47), (50, 57), (32, 47), (32, 27)]
    pen.shape(pen.body, *(ellipse(x, y, 13, 13) for x, y in petals), ellipse(50, 37, 18, 18))
    pen.shape((222, 142, 50), ellipse(50, 37, 11, 11))
    pen.mark(DARK, ellipse(46, 35, 1.8, 1.8), ellipse(54, 35, 1.8, 1.8))
    pen.line(DARK, 1.6, (46, 40), (48, 42), (52, 42), (54, 40))


def mushroom(pen: Pen) -> None:
    """Draw a mushroom: the cap has the colour, with light spots."""
    pen.shape(CREAM, blob((38, 52), (62, 52), (62, 76), (68, 94), (50, 97), (32, 94), (38, 76)))
    pen.shape(
        pen.body, blob((4, 52), (12, 26), (32, 9), (50, 6), (68, 9), (88, 26), (96, 52), (78, 61), (50, 63), (22, 61))
    )
    pen.mark(pen.light, ellipse(50, 24, 10, 9), ellipse(24, 38, 7, 8), ellipse(76, 38, 7, 8), ellipse(50, 49, 6, 5))
    pen.mark(DARK, ellipse(44, 74, 2.2, 2.8), ellipse(56, 74, 2.2, 2.8))
    pen.line(DARK, 1.6, (47, 80), (49, 82), (51, 82), (53, 80))


def apple(pen: Pen) -> None:
    """Draw an apple with a stalk and one leaf."""
    pen.limb(BARK, 4, (50, 30), (51, 16), (56, 6))
    pen.shape(LEAF, blob((53, 20), (62, 8), (80, 6), (72, 20)))
    skin = blob(
        (50, 28),
        (66, 21),
        (86, 28),
        (93, 52),
        (82, 82),
        (64, 96),
        (50, 92),
        (36, 96),
        (18, 82),
        (7, 52),
        (14, 28),
        (34, 21),
    )
    pen.shape(pen.body, skin)
    pen.mark(pen.light, ellipse(26, 44, 5, 10, 22))
