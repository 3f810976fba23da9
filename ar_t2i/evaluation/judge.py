"""What a picture is read to show, and whether that is what was asked for."""

import functools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from ar_t2i.data.scenes import COLORS, KINDS, PLACES, RELATIONS, Scene, Thing, relation_holds, truth
from ar_t2i.data.scenes.world import SINGLE_SIZES

SameBox = tuple[float, float, float, float]
SIZE_LIMITS = {"small": (0.0, 100.0), "medium": (100.0, 132.0), "big": (132.0, math.inf)}
"""Sides in pixels of the square in which an object is drawn; the limits lie halfway between 84, 116 and 148."""


@dataclass(frozen=True)
class Seen:
    """An object that was seen in a picture."""

    kind: str
    color: str | None
    """None where it is none of the known colours."""
    box: SameBox
    """x0, y0, x1, y1 in pixels."""
    score: float
    """How surely it is there, 0 to 1."""


@dataclass(frozen=True)
class Reading:
    """What a picture shows."""

    place: str | None
    """None where it is none of the known places."""
    objects: tuple[Seen, ...]
    """The surest first."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether what was asked for is there; None for what was not asked for."""

    objects: bool
    """Every object asked for is there, each in its own place, with its kind and the colour that was said."""
    count: bool
    """There are exactly as many objects of each kind as asked for."""
    relation: bool | None
    """Every relation that was said holds between objects that are asked for."""
    place: bool | None
    """The place is the one that was said."""
    size: bool | None
    """Each object has the size that was said."""
    right: bool
    """All of these hold, and nothing else is there."""


def judge(reading: Reading, asked: Mapping[str, Any]) -> Verdict:
    """Judge a picture by what its caption says.

    Args:
        reading: what the picture shows.
        asked: "objects", "relations" and "place" as in `ar_t2i.data.scenes.Caption.said`, or a truth with "said".

    Raises:
        ValueError: `asked` has not this form.
    """
    said = _said(asked)
    groups, relations, place = said["objects"], said.get("relations", []), said.get("place")
    wanted = Counter[str]()
    for group in groups:
        wanted[group["kind"]] += group["count"]
    found = Counter(seen.kind for seen in reading.objects)
    count = all(found[kind] == number for kind, number in wanted.items())
    sized = any(group.get("size") for group in groups)
    casts = list(_casts(reading.objects, groups))
    related = [cast for cast in casts if _related(cast, relations)]
    fitting = [cast for cast in related or casts if not sized or _sizes_hold(cast, groups)]
    relation = bool(related) if relations else None
    size = bool(fitting) if sized else None
    placed = reading.place == place if place is not None else None
    alone = set(found) <= set(wanted)
    right = bool(casts) and count and alone and relation is not False and size is not False and placed is not False
    return Verdict(objects=bool(casts), count=count, relation=relation, place=placed, size=size, right=right)


def same_scene(reading: Reading, known: Mapping[str, Any], overlap: float = 0.5) -> bool:
    """Whether a picture shows exactly the objects and the place of a truth (see `ar_t2i.data.scenes.truth`).

    The objects must be as many, and pair up with equal kind and colour and boxes of at least `overlap` IoU.
    """
    objects = known["objects"]
    if reading.place != known["place"] or len(reading.objects) != len(objects):
        return False
    return any(
        all(
            seen.kind == thing["kind"]
            and seen.color == thing["color"]
            and box_overlap(seen.box, thing["box"]) >= overlap
            for seen, thing in zip(order, objects, strict=True)
        )
        for order in permutations(reading.objects)
    )


def box_overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """IoU of two boxes x0, y0, x1, y1: their common area as a share of the area of both together, 0 to 1."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(across, 0.0) * max(down, 0.0)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


Cast = tuple[tuple[Seen, ...], ...]
"""For each group asked for, the seen objects that play it; no object plays in two."""


def _casts(objects: Sequence[Seen], groups: Sequence[Mapping[str, Any]]) -> Iterator[Cast]:
    """Every way to find the groups among the objects."""
    if not groups:
        yield ()
        return
    group = groups[0]
    color = group.get("color")
    fitting = [seen for seen in objects if seen.kind == group["kind"] and color in (None, seen.color)]
    for chosen in combinations(fitting, group["count"]):
        rest = [seen for seen in objects if all(seen is not other for other in chosen)]
        for others in _casts(rest, groups[1:]):
            yield (chosen, *others)


def _related(cast: Cast, relations: Sequence[Sequence[Any]]) -> bool:
    return all(
        relation_holds(first.box, relation, second.box)  # type: ignore[arg-type]
        for one, relation, other in relations
        for first in cast[one]
        for second in cast[other]
    )


def _sizes_hold(cast: Cast, groups: Sequence[Mapping[str, Any]]) -> bool:
    for seen_objects, group in zip(cast, groups, strict=True):
        least, most = SIZE_LIMITS[group["size"]] if group.get("size") else (0.0, math.inf)
        if not all(least <= drawn_size(seen) <= most for seen in seen_objects):
            return False
    return True


def drawn_size(seen: Seen) -> float:
    """Side in pixels of the square in which an object of this kind is drawn to have a box of this area."""
    return 100 * math.sqrt(max(_area(seen.box), 0.0) / _area_at_100(seen.kind))


@functools.cache
def _area_at_100(kind: str) -> float:
    thing = Thing(kind=kind, color="red", size=100, left=0, top=0, mirrored=False)
    scene = Scene(place="plain", layout="single", things=(thing,), size_word=None)
    return _area(truth(scene)["objects"][0]["box"])


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _said(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a caption says, checked."""
    said = asked.get("said", asked)
    groups = said.get("objects") if isinstance(said, Mapping) else None
    if not groups or not all(isinstance(group, Mapping) and "count" in group for group in groups):
        raise ValueError(
            'what was asked for has no "objects", each with "count" and "kind": '
            "give a caption's `said`, or a truth that has it"
        )
    for group in groups:
        _known("kind", group.get("kind"), KINDS)
        _known("color", group.get("color"), (None, *COLORS))
        _known("size", group.get("size"), (None, *SINGLE_SIZES))
        if not isinstance(group["count"], int) or group["count"] < 1:
            raise ValueError(f"count is {group['count']!r}: expected an integer of at least 1")
    for one, relation, other in said.get("relations", []):
        _known("relation", relation, RELATIONS)
        if not (0 <= one < len(groups) and 0 <= other < len(groups) and one != other):
            raise ValueError(f"relation {[one, relation, other]} is not between two of the {len(groups)} objects")
    _known("place", said.get("place"), (None, *PLACES))
    return said


def _known(what: str, name: Any, names: Collection[Any]) -> None:
    if name not in names:
        raise ValueError(f"{what} {name!r} is not known; use one of {', '.join(map(str, names))}")
