"""GenEval (arXiv 2310.11513): six tasks that an object detector can judge.

The rules are those of the benchmark's evaluation code; the prompts come from the same grammar and a seed. Where that
code asks its detector for surer objects in counting (0.9, elsewhere 0.3), here the detector's own threshold holds.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ar_t2i.evaluation.judge import Reading, SameBox, Seen
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Scores, Suite
from ar_t2i.evaluation.suites.grammar import ALL_COLORS, WORDS, Domain, Words, distinct, pick, prompt, thing

POSITIONS = ("left of", "right of", "above", "below")
OFFSET = 0.1
"""Share of both boxes' widths (heights) by which centres must be apart before any of it counts."""
DIRECTION = 0.5
"""How far of the way from centre to centre must lie in a direction for it to count: within 60 degrees of it."""


def _single_object(words: Words, rng: np.random.Generator, index: int) -> Prompt:
    return prompt(words, "single_object", index, [thing(kind) for kind in pick(rng, words.kinds)])


def _two_object(words: Words, rng: np.random.Generator, index: int) -> Prompt:
    return prompt(words, "two_object", index, [thing(kind) for kind in pick(rng, words.kinds, 2)])


def _counting(words: Words, rng: np.random.Generator, index: int) -> Prompt:
    count = int(rng.integers(2, words.most + 1))
    return prompt(words, "counting", index, [thing(kind, count=count) for kind in pick(rng, words.kinds)])


def _colors(words: Words, rng: np.random.Generator, index: int) -> Prompt:
    return prompt(words, "colors", index, [thing(pick(rng, words.colored)[0], pick(rng, ALL_COLORS)[0])])


def _position(words: Words, rng: np.random.Generator, index: int) -> Prompt:
    relation = pick(rng, POSITIONS)[0]
    return prompt(words, "position", index, [thing(kind) for kind in related_kinds(words, relation, rng)], relation)


def _color_attr(words: Words, rng: np.random.Generator, index: int) -> Prompt:
    kinds, colors = pick(rng, words.colored, 2), pick(rng, ALL_COLORS, 2)
    return prompt(words, "color_attr", index, [thing(*both) for both in zip(kinds, colors, strict=True)])


TASKS: dict[str, Callable[[Words, np.random.Generator, int], Prompt]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
"""Draws a prompt of each task by lot."""


def related_kinds(words: Words, relation: str, rng: np.random.Generator) -> list[str]:
    """Two different kinds of which the first can stand in the relation to the second."""
    if relation not in ("above", "below"):
        return pick(rng, words.kinds, 2)
    upper = pick(rng, words.raised)[0]
    lower = pick(rng, [kind for kind in words.kinds if kind != upper])[0]
    return [upper, lower] if relation == "above" else [lower, upper]


def prompts(words: Words, number: int, seed: int) -> list[Prompt]:
    """Prompts of all six tasks."""
    return [
        each
        for place, task in enumerate(TASKS.values())
        for each in distinct(functools.partial(task, words), number, seed, place)
    ]


def positions(first: SameBox, second: SameBox) -> set[str]:
    """Where the first box lies as seen from the second, of `POSITIONS`: none, one, or two on a slant."""
    offset = np.array(_centre(first)) - np.array(_centre(second))
    sizes = [abs(box[2 + axis] - box[axis]) for axis in (0, 1) for box in (first, second)]
    slack = OFFSET * np.array([sizes[0] + sizes[1], sizes[2] + sizes[3]])
    beyond = np.maximum(np.abs(offset) - slack, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    across, down = beyond / np.linalg.norm(offset)
    holds = (across < -DIRECTION, across > DIRECTION, down < -DIRECTION, down > DIRECTION)
    return {name for name, true in zip(POSITIONS, holds, strict=True) if true}


def _centre(box: SameBox) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def score(prompt: Prompt, reading: Reading) -> Scores:
    """right: of each kind the surest objects, as many as asked for, have the colour and the position asked for.

    Other kinds may be there too, and more of the kind, save in counting, where the number is exact.
    """
    assert prompt.asked is not None
    groups = prompt.asked["objects"]
    chosen = [_surest(reading, group) for group in groups]
    right = all(_fits(found, group) for found, group in zip(chosen, groups, strict=True))
    for one, relation, other in prompt.asked.get("relations", ()):
        if relation not in POSITIONS:
            raise ValueError(f"{prompt.id} asks for {relation!r}: geneval scores {', '.join(POSITIONS)}")
        right = right and all(
            relation in positions(first.box, second.box) for first in chosen[one] for second in chosen[other]
        )
    if prompt.category == "counting":
        right = right and all(
            sum(seen.kind == group["kind"] for seen in reading.objects) == group["count"] for group in groups
        )
    return {"right": float(right)}


def _surest(reading: Reading, group: Mapping) -> list[Seen]:
    found = [seen for seen in reading.objects if seen.kind == group["kind"]]
    return sorted(found, key=lambda seen: -seen.score)[: group["count"]]


def _fits(found: Sequence[Seen], group: Mapping) -> bool:
    return len(found) == group["count"] and all(group["color"] in (None, seen.color) for seen in found)


def suite(domain: Domain) -> Suite:
    """GenEval over the kinds of a domain."""
    return Suite(
        name=f"{domain}/geneval",
        about="one object, two, counting, colours, position, colours of two (GenEval, arXiv 2310.11513)",
        domain=domain,
        scored_by="detector",
        headline="right",
        prompts=functools.partial(prompts, WORDS[domain]),
        score=score,
    )
