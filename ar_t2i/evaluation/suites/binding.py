"""Attribute binding: two things, each in its own colour, and the same with the colours swapped.

In the manner of ABC-6K and CC-500 of Structured Diffusion (arXiv 2212.05032, section 4): a model that knows words but
not what belongs to what draws a prompt and its swap alike.
"""

import functools

import numpy as np

from ar_t2i.evaluation.judge import Reading
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Scores, Suite
from ar_t2i.evaluation.suites.grammar import ALL_COLORS, WORDS, Domain, Words, distinct, pick, prompt, thing


def prompts(words: Words, number: int, seed: int) -> list[Prompt]:
    """Prompts in two categories; "swapped-0007" is "pair-0007" with the colours swapped."""

    def draw(rng: np.random.Generator, index: int) -> Prompt:
        kinds, colors = pick(rng, words.colored, 2), pick(rng, ALL_COLORS, 2)
        return prompt(words, "pair", index, [thing(*both) for both in zip(kinds, colors, strict=True)])

    pairs = distinct(draw, number, seed)
    return pairs + [_swapped(words, pair, index) for index, pair in enumerate(pairs)]


def _swapped(words: Words, pair: Prompt, index: int) -> Prompt:
    assert pair.asked is not None
    first, second = pair.asked["objects"]
    groups = [thing(first["kind"], second["color"]), thing(second["kind"], first["color"])]
    return prompt(words, "swapped", index, groups)


def score(prompt: Prompt, reading: Reading) -> Scores:
    """Scores of one picture.

    right: both things are seen in their own colours, and nothing leaks. leakage: one of them is seen in the other's
    colour. missing: one of them is not seen in any colour. objects: the share of the two that are seen in any colour.
    """
    assert prompt.asked is not None
    if len(prompt.asked["objects"]) != 2 or not all(group["color"] for group in prompt.asked["objects"]):
        raise ValueError(f"{prompt.id} does not ask for two things, each in a colour, which binding scores")
    first, second = prompt.asked["objects"]
    seen = {(each.kind, each.color) for each in reading.objects}
    kinds = {kind for kind, _ in seen}
    own = {(group["kind"], group["color"]) for group in (first, second)}
    leaks = bool(seen & {(first["kind"], second["color"]), (second["kind"], first["color"])})
    there = sum(group["kind"] in kinds for group in (first, second))
    return {
        "right": float(own <= seen and not leaks),
        "leakage": float(leaks),
        "missing": float(there < 2),
        "objects": there / 2,
    }


def suite(domain: Domain) -> Suite:
    """Attribute binding over the kinds of a domain."""
    return Suite(
        name=f"{domain}/binding",
        about="two things in their own colours, and swapped (as ABC-6K and CC-500, arXiv 2212.05032)",
        domain=domain,
        scored_by="detector",
        headline="right",
        prompts=functools.partial(prompts, WORDS[domain]),
        score=score,
    )
