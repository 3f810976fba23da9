"""What prompts are made of: the nouns and colours of a domain, and how things are said in English."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ar_t2i.data.scenes import COLORS, KINDS
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites.coco import COCO_CATEGORIES

Domain = Literal["scenes", "photos"]
NUMBERS = {2: "two", 3: "three", 4: "four"}
PATIENCE = 1000
"""Draws in a row that bring nothing new, after which every prompt there is has come."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a domain's prompts are made of."""

    domain: Domain
    opening: str
    """Stands before what is asked for."""
    plurals: Mapping[str, str]
    """Of every kind."""
    colored: Sequence[str]
    """Kinds that can be asked for in a colour."""
    raised: Sequence[str]
    """Kinds that can be asked for above another."""
    most: int
    """Most things of a kind that are asked for."""

    @property
    def kinds(self) -> list[str]:
        """All kinds."""
        return list(self.plurals)


WORDS: dict[Domain, Words] = {
    "scenes": Words(
        domain="scenes",
        opening="",
        plurals={name: kind.plural for name, kind in KINDS.items()},
        colored=list(KINDS),
        raised=[name for name, kind in KINDS.items() if kind.rises],
        most=3,
    ),
    "photos": Words(
        domain="photos",
        opening="a photo of ",
        plurals=COCO_CATEGORIES,
        colored=[name for name in COCO_CATEGORIES if name != "person"],
        raised=list(COCO_CATEGORIES),
        most=4,
    ),
}
"""Scenes are spoken of as their captions do, and hold what they hold; both have the ten colours of scenes."""

ALL_COLORS = tuple(COLORS)


def thing(kind: str, color: str | None = None, count: int = 1) -> dict[str, Any]:
    """A group of a prompt's `asked`."""
    return {"count": count, "kind": kind, "color": color, "size": None}


def phrase(words: Words, group: Mapping[str, Any]) -> str:
    """Say a group: "an orange cat", "two sheep"."""
    noun = words.plurals[group["kind"]] if group["count"] > 1 else group["kind"]
    said = f"{group['color']} {noun}" if group["color"] else noun
    if group["count"] > 1:
        return f"{NUMBERS[group['count']]} {said}"
    return f"{'an' if said[0] in 'aeiou' else 'a'} {said}"


def listed(phrases: Sequence[str]) -> str:
    """Say several phrases: "a", "a and b", "a, b, and c"."""
    if len(phrases) < 3:
        return " and ".join(phrases)
    return f"{', '.join(phrases[:-1])}, and {phrases[-1]}"


def prompt(
    words: Words, category: str, number: int, groups: Sequence[Mapping[str, Any]], relation: str | None = None
) -> Prompt:
    """The prompt number `number` of a category that asks for groups, or for the first in a relation to the second."""
    phrases = [phrase(words, group) for group in groups]
    said = listed(phrases) if relation is None else f"{phrases[0]} {relation} {phrases[1]}"
    return Prompt(
        id=f"{category.replace(' ', '_')}-{number:04d}",
        text=words.opening + said,
        category=category,
        asked={
            "objects": [dict(group) for group in groups],
            "relations": [[0, relation, 1]] if relation else [],
            "place": None,
        },
    )


Draw = Callable[[np.random.Generator, int], Prompt]
"""Draws the prompt of a number by lot."""


def distinct(draw: Draw, number: int, *seed: int) -> list[Prompt]:
    """Draw so many prompts, none twice until all there are have come; those of a smaller number come first.

    Raises:
        ValueError: number or seed is negative.
    """
    if number < 0 or min(seed) < 0:
        raise ValueError(f"number {number} and seed {seed[0]} must not be negative")
    rng = np.random.default_rng(seed)
    prompts: list[Prompt] = []
    texts: set[str] = set()
    misses = 0
    while len(prompts) < number:
        drawn = draw(rng, len(prompts))
        misses = misses + 1 if drawn.text in texts else 0
        if misses == PATIENCE:
            texts.clear()
        if drawn.text not in texts:
            prompts.append(drawn)
            texts.add(drawn.text)
    return prompts


def pick(rng: np.random.Generator, options: Sequence[str], count: int = 1) -> list[str]:
    """So many different options by lot."""
    return [options[int(index)] for index in rng.choice(len(options), count, replace=False)]
