"""A scene for what a prompt asks: what a model that errs nowhere would draw."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ar_t2i.data.scenes import COLORS, KINDS, PLACES, Scene, Thing
from ar_t2i.data.scenes.places import SIZE
from ar_t2i.data.scenes.world import FOOT, INVERSE, SINGLE_SIZES

MARGIN = 3
JITTER = 4
"""Pixels by which a thing may be moved either way, across and down."""
ROWS: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {
    1: (116, ((128, 142),)),
    2: (100, ((70, 160), (186, 160))),
    3: (72, ((47, 172), (128, 186), (209, 172))),
    4: (84, ((72, 76), (184, 76), (72, 182), (184, 182))),
    5: (76, ((84, 78), (172, 78), (44, 182), (128, 186), (212, 182))),
}
"""For so many things: their size and the middles of their squares, in pixels."""


def scene_for(asked: Mapping[str, Any], seed: int) -> Scene:
    """Put what is asked for, and nothing else, into a scene; the seed settles what was not said.

    Args:
        asked: as of a `Prompt` about scenes: one to five things, at most one relation, between two of them.
        seed: of the colours, the place and the small moves.

    Raises:
        ValueError: more things, or another relation, than a scene can hold.
    """
    rng = np.random.default_rng(seed)
    groups, relations = asked["objects"], asked.get("relations") or []
    things = [(group["kind"], group.get("color") or _one(rng, list(COLORS)))
              for group in groups for _ in range(group["count"])]  # fmt: skip
    place = asked.get("place") or _one(rng, list(PLACES))
    if len(things) not in ROWS:
        raise ValueError(f"{len(things)} things asked for: a scene can be drawn of 1 to {max(ROWS)}")
    if not relations:
        word = groups[0].get("size") if len(things) == 1 else None
        size, middles = ROWS[len(things)]
        size = SINGLE_SIZES[word] if word else size
        put = [_put(rng, named, size, *middle) for named, middle in zip(things, middles, strict=True)]
        named_size = word or ("medium" if len(things) == 1 else None)
        layout = "single" if len(things) == 1 else "several"
        return Scene(place=place, layout=layout, things=tuple(put), size_word=named_size)
    if len(relations) > 1 or len(things) != 2:
        raise ValueError(f"{len(relations)} relations among {len(things)} things: a scene can hold one between two")
    [[one, relation, other]] = relations
    first, second = things[one], things[other]
    if relation in ("below", "right of"):
        first, relation, second = second, INVERSE[relation], first
    if relation == "left of":
        size, middles = ROWS[2]
        pair = tuple(_put(rng, named, size, *middle) for named, middle in zip((first, second), middles, strict=True))
        return Scene(place=place, layout="beside", things=pair, size_word=None)
    if relation == "above":
        lower, upper = _put(rng, second, 100, 128, 186), _put(rng, first, 84, 128, 58)
    else:
        lower = _put(rng, second, 116, 128, 174)
        upper = _seated(first, lower)
    return Scene(place=place, layout=relation, things=(lower, upper), size_word=None)


def _one(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _put(rng: np.random.Generator, named: tuple[str, str], size: int, x: int, y: int) -> Thing:
    """A kind in a colour with its middle near (x, y), wholly in the picture."""
    dx, dy = (int(move) for move in rng.integers(-JITTER, JITTER + 1, 2))
    return _thing(named, size, x + dx - size / 2, y + dy - size / 2, bool(rng.integers(2)))


def _thing(named: tuple[str, str], size: int, left: float, top: float, mirrored: bool) -> Thing:
    most = SIZE - MARGIN - size
    x, y = (min(max(round(edge), MARGIN), most) for edge in (left, top))
    return Thing(kind=named[0], color=named[1], size=size, left=x, top=y, mirrored=mirrored)


def _seated(named: tuple[str, str], lower: Thing) -> Thing:
    """A thing that stands on the seat of another.

    Raises:
        ValueError: nothing can be on the other.
    """
    seat, size = KINDS[lower.kind].seat, 84
    if seat is None:
        raise ValueError(f"nothing can be on a {lower.kind}; ask for another relation")
    x = lower.left + (100 - seat[0] if lower.mirrored else seat[0]) * lower.size / 100
    foot = lower.top + seat[1] * lower.size / 100 + 3
    left = x - KINDS[named[0]].foot * size / 100
    return _thing(named, size, left, foot - FOOT * size, False)
