"""Spatial relations in the manner of T2I-CompBench (arXiv 2307.06350, section 4.2, "UniDet-based metric")."""

import functools

import numpy as np

from ar_t2i.data.scenes import KINDS
from ar_t2i.evaluation.judge import Reading, SameBox, box_overlap
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Scores, Suite
from ar_t2i.evaluation.suites.geneval import related_kinds
from ar_t2i.evaluation.suites.grammar import WORDS, Domain, Words, distinct, pick, prompt, thing

RELATIONS = ("left of", "right of", "above", "below", "on")
OVERLAP = 0.1
"""IoU from which on two boxes overlap too much for a full score."""
LEAST = 0.5
"""A smaller score is none."""


def prompts(words: Words, number: int, seed: int) -> list[Prompt]:
    """Prompts of each relation; "on" is said of scenes, whose things can be on one another."""

    def draw(relation: str, rng: np.random.Generator, index: int) -> Prompt:
        kinds = _perched(rng) if relation == "on" else related_kinds(words, relation, rng)
        return prompt(words, relation, index, [thing(kind) for kind in kinds], relation)

    return [
        each
        for place, relation in enumerate(RELATIONS)
        if relation != "on" or words.domain == "scenes"
        for each in distinct(functools.partial(draw, relation), number, seed, place)
    ]


def _perched(rng: np.random.Generator) -> list[str]:
    """A kind that can be on another, and one that it can be on."""
    lower = pick(rng, [name for name, kind in KINDS.items() if kind.seat])[0]
    upper = pick(rng, [name for name, kind in KINDS.items() if kind.perches and name != lower])[0]
    return [upper, lower]


def placed(first: SameBox, relation: str, second: SameBox) -> float:
    """How well the first box stands in a relation to the second, 0 to 1.

    The centres must be apart on the relation's side, and along its axis by more than across it; boxes of an IoU of
    0.1 or more score 0.1 / IoU. "on" is judged as "above" is.
    """
    across = (second[0] + second[2] - first[0] - first[2]) / 2
    down = (second[1] + second[3] - first[1] - first[3]) / 2
    along, aside = {
        "left of": (across, down),
        "right of": (-across, down),
        "above": (down, across),
        "on": (down, across),
        "below": (-down, across),
    }[relation]
    if along <= abs(aside):
        return 0.0
    overlap = box_overlap(first, second)
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def score(prompt: Prompt, reading: Reading) -> Scores:
    """Scores of one picture, by the surest object of each kind.

    right: both are seen, and the first is on the side asked for. score: half of it is how surely both are seen, half
    how well they are `placed`; less than 0.5, as where one of them is not seen, is 0.
    """
    assert prompt.asked is not None
    if len(prompt.asked.get("relations", ())) != 1:
        raise ValueError(f"{prompt.id} does not ask for one relation, which spatial scores")
    [[one, relation, other]] = prompt.asked["relations"]
    surest = {seen.kind: seen for seen in sorted(reading.objects, key=lambda seen: seen.score)}
    first, second = (surest.get(prompt.asked["objects"][index]["kind"]) for index in (one, other))
    if first is None or second is None:
        return {"right": 0.0, "score": 0.0}
    place = placed(first.box, relation, second.box)
    whole = (first.score + second.score) / 4 + place / 2
    return {"right": float(place > 0), "score": whole if whole >= LEAST else 0.0}


def suite(domain: Domain) -> Suite:
    """Spatial relations over the kinds of a domain."""
    return Suite(
        name=f"{domain}/spatial",
        about="one thing left of, right of, above, below, on another (as T2I-CompBench, arXiv 2307.06350)",
        domain=domain,
        scored_by="detector",
        headline="score",
        prompts=functools.partial(prompts, WORDS[domain]),
        score=score,
    )
