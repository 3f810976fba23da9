"""MultiGen: how many of several named kinds come into one picture (TokenCompose, arXiv 2312.03626, section 4)."""

import functools
from collections.abc import Mapping

import numpy as np

from ar_t2i.evaluation.judge import Reading
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Scores, Suite
from ar_t2i.evaluation.suites.grammar import WORDS, Domain, Words, distinct, pick, prompt, thing

NAMED = 5
"""Kinds in a prompt."""


def prompts(words: Words, number: int, seed: int) -> list[Prompt]:
    """Prompts that name five different kinds each: "a photo of a dog, a tie, an oven, a cup, and a bus"."""

    def draw(rng: np.random.Generator, index: int) -> Prompt:
        return prompt(words, "five kinds", index, [thing(kind) for kind in pick(rng, words.kinds, NAMED)])

    return distinct(draw, number, seed)


def named_kinds_seen(asked: Mapping, reading: Reading) -> int:
    """How many of the kinds that are asked for are seen at least once."""
    return len({group["kind"] for group in asked["objects"]} & {seen.kind for seen in reading.objects})


def score(prompt: Prompt, reading: Reading) -> Scores:
    """mg2 to mg5: whether at least so many of the named kinds are seen."""
    assert prompt.asked is not None
    found = named_kinds_seen(prompt.asked, reading)
    return {f"mg{least}": float(found >= least) for least in range(2, NAMED + 1)}


def suite(domain: Domain) -> Suite:
    """MultiGen over the kinds of a domain."""
    return Suite(
        name=f"{domain}/multigen",
        about="at least 2, 3, 4, 5 of five named kinds are there (TokenCompose, arXiv 2312.03626)",
        domain=domain,
        scored_by="detector",
        headline="mg3",
        prompts=functools.partial(prompts, WORDS[domain]),
        score=score,
    )
