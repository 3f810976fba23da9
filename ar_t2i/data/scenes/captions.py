"""True captions in natural variety, with what each of them says in a form that a program can check."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ar_t2i.data.scenes.world import HELD_OUT, KINDS, Scene

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("in a meadow", "on the grass"),
    "sea": ("by the sea", "on the beach"),
    "desert": ("in the desert",),
    "snow": ("in the snow",),
    "night": ("at night",),
    "mountains": ("in the mountains",),
    "sunset": ("at sunset",),
    "underwater": ("under water",),
}
NUMBERS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class Caption:
    """A caption and what it says.

    `said` is ready for json: "objects", each {"count", "kind", "color" or None, "size" or None}; "relations" as
    [index, relation, index] over these objects; "place" or None.
    """

    text: str
    said: dict[str, Any]


def noun_phrase(count: int, kind: str, color: str | None, size: str | None = None, article: bool = True) -> str:
    """Say one to three things in English: "an orange cat", "two sheep"; without the article "orange cat"."""
    words = [word for word in (size, color, KINDS[kind].plural if count > 1 else kind) if word]
    if count > 1:
        return " ".join((NUMBERS[count], *words))
    if not article:
        return " ".join(words)
    return " ".join(("an" if words[0][0] in "aeiou" else "a", *words))


def _said_objects(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Choose which colours and sizes to say; those of two of a kind and of held-out pairs are always said."""
    groups = scene.things[:1] if scene.layout == "several" else scene.things
    count = len(scene.things) if scene.layout == "several" else 1
    twins = len(groups) == 2 and groups[0].kind == groups[1].kind
    said = []
    for thing in groups:
        spoken = rng.random() < 0.85 or twins or (thing.color, thing.kind) in HELD_OUT
        color = thing.color if spoken else None
        said.append({"count": count, "kind": thing.kind, "color": color, "size": None})
    if scene.size_word in ("small", "big") and rng.random() < 0.6:
        said[0]["size"] = scene.size_word
    return said


def _pair(first: str, relation: str, second: str, rng: np.random.Generator) -> str:
    """Say a relation in one of the ways English has for it."""
    side = relation in ("left of", "right of")
    if side:
        return f"{first} to the {relation} {second}" if rng.random() < 0.5 else f"{first} {relation} {second}"
    if relation == "on" and rng.random() < 0.15:
        return f"{second} with {first} on it"
    if relation == "below" and rng.random() < 0.3:
        return f"{first} under {second}"
    return f"{first} {relation} {second}"


def _sentence(core: str, place: str | None, count: int, rng: np.random.Generator) -> str:
    """Put a noun phrase and a place into one of the sentence forms."""
    form = rng.random()
    if form < 0.15:
        return " ".join(word for word in ("there", "are" if count > 1 else "is", core, place) if word)
    if form < 0.30:
        return " ".join(word for word in ("a picture of", core, place) if word)
    if place and form < 0.40:
        return f"{place}, {core}"
    return f"{core} {place}" if place else core


def _place_phrase(scene: Scene, rng: np.random.Generator) -> str | None:
    """Choose how to say the place, or not to say it; what floats is not said to be on the grass or the beach."""
    floating = any(KINDS[thing.kind].floats for thing in scene.things)
    options = [p for p in PLACE_PHRASES.get(scene.place, ()) if not (floating and p.startswith("on "))]
    return options[int(rng.integers(len(options)))] if options and rng.random() < 0.9 else None


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """Say a scene in one of many ways.

    The caption is true of the picture; it may leave out colours, the relation, the size and the place.
    """
    objects = _said_objects(scene, rng)
    phrases = [noun_phrase(said["count"], said["kind"], said["color"], said["size"]) for said in objects]
    place = _place_phrase(scene, rng)
    relations: list[tuple[int, str, int]] = []
    form = rng.random()
    if form < 0.15:
        objects = [objects[index] for index in rng.permutation(len(objects))]
        short = [noun_phrase(said["count"], said["kind"], said["color"], said["size"], False) for said in objects]
        text = ", ".join((*short, place) if place else short)
    elif len(phrases) == 1:
        text = _sentence(phrases[0], place, objects[0]["count"], rng)
    elif form < (0.55 if scene.layout == "beside" else 0.22):
        order = [0, 1] if rng.random() < 0.5 else [1, 0]
        objects = [objects[index] for index in order]
        text = _sentence(" and ".join(phrases[index] for index in order), place, 1, rng)
    else:
        relation = scene.relations[int(rng.integers(len(scene.relations)))]
        objects = [objects[relation[0]], objects[relation[2]]]
        relations = [(0, relation[1], 1)]
        text = _sentence(_pair(phrases[relation[0]], relation[1], phrases[relation[2]], rng), place, 1, rng)
    spoken = scene.place if place else None
    return Caption(
        text, {"objects": objects, "relations": [list(relation) for relation in relations], "place": spoken}
    )
