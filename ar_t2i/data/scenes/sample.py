"""Scenes drawn by lot: five layouts with few sizes and little jitter, so that a small model can learn them."""

from collections.abc import Sequence

import numpy as np

from ar_t2i.data.scenes.pen import COLORS
from ar_t2i.data.scenes.places import PLACES, SIZE
from ar_t2i.data.scenes.world import FOOT, HELD_OUT, KINDS, SINGLE_SIZES, SPLITS, Scene, Thing

MARGIN = 3


class _Lot:
    """Draws by lot from one generator, and places things."""

    def __init__(self, rng: np.random.Generator, heldout: bool) -> None:
        self.rng = rng
        self.heldout = heldout

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def jitter(self, most: int) -> int:
        return int(self.rng.integers(-most, most + 1))

    def color(self, kind: str, heldout: bool, other_than: str = "") -> str:
        """Draw a colour for a kind from its held-out pairs, or from the rest."""
        return self.pick([c for c in COLORS if ((c, kind) in HELD_OUT) == heldout and c != other_than])

    def stand(self, kind: str, color: str, size: int, x: float, y: float) -> Thing:
        """Let a thing stand with its foot at (x, y)."""
        mirrored = bool(self.rng.integers(2))
        foot = 100 - KINDS[kind].foot if mirrored else KINDS[kind].foot
        return _within(kind, color, size, x - foot * size / 100, y - FOOT * size, mirrored)

    def hang(self, kind: str, color: str, size: int, x: float, y: float) -> Thing:
        """Let a thing hang with its middle at (x, y)."""
        return _within(kind, color, size, x - size / 2, y - size / 2, bool(self.rng.integers(2)))

    def put(self, kind: str, color: str, size: int, x: float, ground: float) -> Thing:
        """Place a thing around x: in the air where its kind floats, else on the ground."""
        if KINDS[kind].floats:
            return self.hang(kind, color, size, x, ground - 98)
        return _within(kind, color, size, x - size / 2, ground - FOOT * size, bool(self.rng.integers(2)))


def _within(kind: str, color: str, size: int, left: float, top: float, mirrored: bool) -> Thing:
    """Build a thing at the place asked for, moved into the picture where it would leave it."""
    most = SIZE - MARGIN - size
    x, y = (min(max(round(edge), MARGIN), most) for edge in (left, top))
    return Thing(kind=kind, color=color, size=size, left=x, top=y, mirrored=mirrored)


def _single(lot: _Lot, place: str) -> Scene:
    kind, word = lot.pick(list(KINDS)), lot.pick(list(SINGLE_SIZES))
    size = SINGLE_SIZES[word]
    middle = 122 if KINDS[kind].floats else 142
    thing = lot.hang(kind, lot.color(kind, lot.heldout), size, 128 + lot.jitter(14), middle + lot.jitter(6))
    return Scene(place=place, layout="single", things=(thing,), size_word=word)


def _several(lot: _Lot, place: str) -> Scene:
    kind, count = lot.pick(list(KINDS)), int(lot.rng.integers(2, 4))
    color, size = lot.color(kind, lot.heldout), {2: 100, 3: 72}[count]
    middles = {2: ((72, 0), (184, 0)), 3: ((47, 0), (128, 14), (209, 0))}[count]
    ground = 206 + lot.jitter(5)
    things = tuple(lot.put(kind, color, size, x + lot.jitter(5), ground + dy + lot.jitter(3)) for x, dy in middles)
    return Scene(place=place, layout="several", things=things, size_word=None)


def _colors(lot: _Lot, first: str, second: str) -> tuple[str, str]:
    """Draw the colours of two things: two of a kind differ, and a held-out scene has one held-out pair."""
    special = int(lot.rng.integers(2)) if lot.heldout else None
    color = lot.color(first, special == 0)
    return color, lot.color(second, special == 1, other_than=color if first == second else "")


def _on(lot: _Lot, place: str) -> Scene:
    below = lot.pick([kind for kind, facts in KINDS.items() if facts.seat])
    above = lot.pick([kind for kind, facts in KINDS.items() if facts.perches and kind != below])
    colors = _colors(lot, below, above)
    x, ground = 128 + lot.jitter(16), 226 + lot.jitter(6)
    support = lot.stand(below, colors[0], 116, x, ground)
    seat = KINDS[below].seat
    assert seat is not None
    seat_x = support.left + (100 - seat[0] if support.mirrored else seat[0]) * support.size / 100
    rider = lot.stand(above, colors[1], 84, seat_x, support.top + seat[1] * support.size / 100 + 3)
    return Scene(place=place, layout="on", things=(support, rider), size_word=None)


def _above(lot: _Lot, place: str) -> Scene:
    below = lot.pick([kind for kind, facts in KINDS.items() if not facts.floats])
    above = lot.pick([kind for kind, facts in KINDS.items() if facts.rises and kind != below])
    colors = _colors(lot, below, above)
    x, ground = 128 + lot.jitter(16), 232 + lot.jitter(5)
    lower = lot.put(below, colors[0], 100, x, ground)
    upper = lot.hang(above, colors[1], 84, x + lot.jitter(16), 62 + lot.jitter(5))
    return Scene(place=place, layout="above", things=(lower, upper), size_word=None)


def _beside(lot: _Lot, place: str) -> Scene:
    left, right = lot.pick(list(KINDS)), lot.pick(list(KINDS))
    colors = _colors(lot, left, right)
    ground = 208 + lot.jitter(6)
    pair = [
        lot.put(kind, color, 100, x + lot.jitter(6), ground)
        for kind, color, x in ((left, colors[0], 70), (right, colors[1], 186))
    ]
    return Scene(place=place, layout="beside", things=tuple(pair), size_word=None)


_LAYOUTS = ((_single, 0.36), (_several, 0.20), (_on, 0.16), (_above, 0.12), (_beside, 0.16))


def sample_scene(rng: np.random.Generator, split: str = "train") -> Scene:
    """Draw a scene by lot.

    Scenes of "train" and "validation" never hold a (color, kind) pair of HELD_OUT; each of "heldout" holds one.

    Raises:
        ValueError: the split is not "train", "validation" or "heldout".
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; use one of {', '.join(SPLITS)}")
    lot = _Lot(rng, split == "heldout")
    place = lot.pick(PLACES)
    ticket = rng.random()
    for layout, share in _LAYOUTS:
        if ticket < share:
            return layout(lot, place)
        ticket -= share
    return _beside(lot, place)
