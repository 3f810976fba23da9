"""What a scene is: kinds, colours, places, relations, how a scene is drawn by lot, and what must hold in it."""

from collections.abc import Callable
from dataclasses import dataclass

from ar_t2i.data.scenes import creatures, things
from ar_t2i.data.scenes.pen import Pen

Box = tuple[int, int, int, int]

RELATIONS = ("on", "above", "below", "left of", "right of")
INVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
SPLITS = ("train", "validation", "heldout")
SINGLE_SIZES = {"small": 84, "medium": 116, "big": 148}


FOOT = 0.965
"""Height of the point that a thing stands on, as a share of its square."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of object; x and y lie in the 100 x 100 square in which `paint` draws it."""

    paint: Callable[[Pen], None]
    """Draws the object."""
    plural: str
    """What two of them are called."""
    rises: bool = False
    """Whether it can be above another object."""
    floats: bool = False
    """Whether it hangs in the air when it is alone."""
    perches: bool = False
    """Whether it can be on another object."""
    foot: float = 50
    """x of the point it stands on."""
    shadow: float = 84
    """Width of its shadow on the ground."""
    seat: tuple[float, float] | None = None
    """Where another object can stand on it; None where none can."""


KINDS: dict[str, Kind] = {
    "bird": Kind(paint=creatures.bird, plural="birds", rises=True, perches=True),
    "cat": Kind(paint=creatures.cat, plural="cats", perches=True),
    "sheep": Kind(paint=creatures.sheep, plural="sheep", perches=True, seat=(44, 24)),
    "fish": Kind(paint=creatures.fish, plural="fish", rises=True),
    "butterfly": Kind(paint=creatures.butterfly, plural="butterflies", rises=True, floats=True, perches=True),
    "rabbit": Kind(paint=creatures.rabbit, plural="rabbits", perches=True),
    "turtle": Kind(paint=creatures.turtle, plural="turtles", perches=True, seat=(44, 37)),
    "tree": Kind(paint=creatures.tree, plural="trees", seat=(50, 7)),
    "flower": Kind(paint=creatures.flower, plural="flowers"),
    "mushroom": Kind(paint=creatures.mushroom, plural="mushrooms", seat=(50, 10)),
    "apple": Kind(paint=creatures.apple, plural="apples", perches=True),
    "house": Kind(paint=things.house, plural="houses", seat=(46, 18)),
    "car": Kind(paint=things.car, plural="cars", perches=True, seat=(49, 29)),
    "boat": Kind(paint=things.boat, plural="boats"),
    "rocket": Kind(paint=things.rocket, plural="rockets", rises=True, floats=True),
    "ball": Kind(paint=things.ball, plural="balls", rises=True, perches=True, seat=(50, 9)),
    "star": Kind(paint=things.star, plural="stars", rises=True, floats=True, perches=True),
    "balloon": Kind(paint=things.balloon, plural="balloons", rises=True, floats=True),
    "umbrella": Kind(paint=things.umbrella, plural="umbrellas", rises=True),
    "flag": Kind(paint=things.flag, plural="flags", perches=True, foot=18, shadow=34),
}

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("purple", "bird"),
        ("green", "cat"),
        ("blue", "sheep"),
        ("black", "fish"),
        ("red", "butterfly"),
        ("orange", "rabbit"),
        ("pink", "turtle"),
        ("white", "tree"),
        ("brown", "flower"),
        ("yellow", "mushroom"),
        ("purple", "apple"),
        ("green", "house"),
        ("pink", "car"),
        ("brown", "boat"),
        ("yellow", "rocket"),
        ("black", "ball"),
        ("blue", "star"),
        ("white", "balloon"),
        ("red", "umbrella"),
        ("orange", "flag"),
    }
)
"""The (color, kind) pairs that "train" and "validation" never show: each kind once, each colour twice."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene: where its `size` x `size` picture lies, in pixels of the 256 x 256 picture."""

    kind: str
    color: str
    size: int
    left: int
    top: int
    mirrored: bool

    @property
    def corners(self) -> Box:
        """Left, top, right, bottom of its square; the truth's boxes are tighter."""
        return self.left, self.top, self.left + self.size, self.top + self.size


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture before it is drawn: a place and one to three things, the later ones in front.

    `layout` is "single", "several" (two or three alike), "on" or "above" (the second thing is on, or above, the
    first) or "beside" (the first is left of the second).
    """

    place: str
    layout: str
    things: tuple[Thing, ...]
    size_word: str | None
    """"small", "medium" or "big" for a single object, else None."""

    @property
    def relations(self) -> list[tuple[int, str, int]]:
        """Every relation that the layout means, in both directions: (thing, relation, other thing)."""
        if self.layout == "on":
            return [(1, "on", 0)]
        if self.layout == "above":
            return [(1, "above", 0), (0, "below", 1)]
        if self.layout == "beside":
            return [(0, "left of", 1), (1, "right of", 0)]
        return []


def relation_holds(first: Box, relation: str, second: Box) -> bool:
    """Whether `relation` holds between two boxes [x0, y0, x1, y1] of things that are seen in the picture.

    left of, right of: the centres are apart sideways by more than half the mean width, and more than up and down.
    above, below: the lower one begins where the upper one ends, and the wider one spans the other's centre.
    on: the first's foot rests on the upper half of the second, whose sides span its centre or the other way round.
    """
    if relation in ("below", "right of"):
        return relation_holds(second, INVERSE[relation], first)
    if relation not in RELATIONS:
        raise ValueError(f"relation {relation!r} is not known; use one of {', '.join(RELATIONS)}")
    across = (second[0] + second[2] - first[0] - first[2]) / 2
    down = (second[1] + second[3] - first[1] - first[3]) / 2
    if relation == "left of":
        return across > (first[2] - first[0] + second[2] - second[0]) / 4 and across > abs(down)
    within = abs(across) <= max(first[2] - first[0], second[2] - second[0]) / 2
    if relation == "above":
        return within and first[3] <= second[1] + 2
    height = second[3] - second[1]
    rests = second[1] - 3 <= first[3] <= second[1] + 0.5 * height
    return within and rests and (first[1] + first[3]) / 2 < second[1] + 0.1 * height
