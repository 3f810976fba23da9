"""OptiGen: prompts of two kinds that a language model least expects together, scored as MultiGen is.

A language model says how likely each kind is after "a picture of" another one. Frequent kinds are likely after
everything, so the matrix of all pairs is scaled to be doubly stochastic (Sinkhorn and Knopp, 1967): then every kind
comes first, and second, equally often, and what is left is which kinds avoid each other.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ar_t2i.bundles import load_bundle, shipped_bundle
from ar_t2i.evaluation.judge import Reading
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Scores, Suite
from ar_t2i.evaluation.suites.grammar import WORDS, Domain, phrase, prompt, thing
from ar_t2i.evaluation.suites.multigen import named_kinds_seen
from ar_t2i.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = 1e-8
"""How far a row or a column of a doubly stochastic matrix may be from 1."""


@torch.inference_mode()
def pair_probabilities(
    lm: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | Vocabulary",
    categories: Sequence[str],
    batch_size: int = 64,
) -> np.ndarray:
    """How likely a language model takes each category to come after each other one.

    Args:
        lm: a causal language model of transformers.
        tokenizer: its tokenizer; with a `Vocabulary` the softmax is over its text ids, as in training.
        categories: C noun phrases, for example "a bird".
        batch_size: texts at a time.

    Returns:
        (C, C) float64: in row A and column B the probability of all tokens of " B" after "a picture of A and"; 0 on
        the diagonal.

    Raises:
        ValueError: less than two categories, or one that comes twice.
    """
    if len(categories) < 2 or len(set(categories)) != len(categories):
        raise ValueError(f"categories={list(categories)}: expected at least two, each once")
    device = next(lm.parameters()).device
    places = [(row, column) for row in range(len(categories)) for column in range(len(categories)) if row != column]
    begun = _ids(tokenizer, [f"a picture of {first} and" for first in categories])
    whole = _ids(tokenizer, [f"a picture of {categories[a]} and {categories[b]}" for a, b in places])
    text_ids_K = torch.from_numpy(tokenizer.text_ids).to(device) if isinstance(tokenizer, Vocabulary) else None
    matrix = np.zeros((len(categories), len(categories)))
    for start in range(0, len(places), batch_size):
        texts = whole[start : start + batch_size]
        longest = max(map(len, texts))
        ids_BT = torch.tensor([text + [text[-1]] * (longest - len(text)) for text in texts], device=device)
        mask_BT = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=device)
        logits_BTV = lm(input_ids=ids_BT, attention_mask=mask_BT).logits
        for row, (a, b) in enumerate(places[start : start + batch_size]):
            known = _common(begun[a], texts[row])
            logits_NV = logits_BTV[row, known - 1 : len(texts[row]) - 1].double()
            chosen_N = torch.tensor(texts[row][known:], device=device)
            whole_N = (logits_NV if text_ids_K is None else logits_NV[:, text_ids_K]).logsumexp(1)
            matrix[a, b] = (logits_NV.gather(1, chosen_N[:, None]).squeeze(1) - whole_N).sum().exp().item()
    return matrix


def _ids(tokenizer: "PreTrainedTokenizerBase | Vocabulary", texts: list[str]) -> list[list[int]]:
    return tokenizer.encode_captions(texts) if isinstance(tokenizer, Vocabulary) else tokenizer(texts)["input_ids"]  # type: ignore[return-value]


def _common(begun: list[int], whole: list[int]) -> int:
    """How many ids both begin with: all of the first, save one that a tokenizer may end a text with."""
    return next(
        (place for place, pair in enumerate(zip(begun, whole, strict=False)) if pair[0] != pair[1]), len(begun)
    )


def sinkhorn(matrix: np.ndarray, most_steps: int = 100_000) -> np.ndarray:
    """Scale the rows and columns of a (C, C) matrix until each sums to 1, within 1e-8.

    Raises:
        ValueError: not a square matrix of finite numbers of at least 0, or one whose zeros leave no such scaling.
    """
    matrix = np.array(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError(f"a matrix of shape {matrix.shape}: expected a square one of finite numbers of at least 0")
    for _ in range(most_steps):
        for axis in (0, 1):
            sums = matrix.sum(axis, keepdims=True)
            if (sums == 0).any():
                raise ValueError("a row or a column of the matrix is all zeros: it cannot be made doubly stochastic")
            matrix /= sums
        if np.abs(matrix.sum(0) - 1).max() < TOLERANCE:  # the rows were scaled last
            return matrix
    off = np.abs(matrix.sum(0) - 1).max()
    raise ValueError(
        f"the matrix is not doubly stochastic after {most_steps} steps: a column is {off:.1e} off, expected "
        f"{TOLERANCE:g}; too many of its entries are zero or next to it"
    )


def least_likely_pairs(matrix: np.ndarray, n: int) -> list[tuple[int, int]]:
    """The n places (row, column) off the diagonal with the smallest entries, the smallest first.

    Raises:
        ValueError: the matrix has less than n of them.
    """
    size = len(matrix)
    places = [(row, column) for row in range(size) for column in range(size) if row != column]
    if not 0 <= n <= len(places):
        raise ValueError(f"{n} pairs asked for: expected 0 to {len(places)}, all there are of {size} categories")
    return sorted(places, key=lambda place: matrix[place])[:n]


def prompts_by(
    lm: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | Vocabulary", domain: Domain, number: int
) -> list[Prompt]:
    """The prompts of the pairs of a domain's kinds that a language model least expects."""
    words = WORDS[domain]
    names = [phrase(words, thing(kind)) for kind in words.kinds]
    pairs = least_likely_pairs(sinkhorn(pair_probabilities(lm, tokenizer, names)), number)
    return [
        prompt(words, "unlikely pair", index, [thing(words.kinds[place]) for place in pair])
        for index, pair in enumerate(pairs)
    ]


@functools.cache
def _all_prompts(domain: Domain) -> list[Prompt]:
    """Those of all pairs, by the model of captions that comes with the package."""
    bundle = load_bundle(shipped_bundle())
    count = len(WORDS[domain].kinds)
    return prompts_by(bundle.model, bundle.vocabulary, domain, count * (count - 1))


def prompts(domain: Domain, number: int, seed: int) -> list[Prompt]:
    """The pairs that the shipped bundle's decoder least expects as captions; no seed changes them.

    Raises:
        ValueError: more prompts than there are pairs.
    """
    every = _all_prompts(domain)
    if not 0 <= number <= len(every):
        raise ValueError(f"{number} prompts asked for: expected 0 to {len(every)}, all pairs of the kinds of {domain}")
    return every[:number]


def score(prompt: Prompt, reading: Reading) -> Scores:
    """mg1 and mg2: whether at least one, or both, of the named kinds are seen."""
    assert prompt.asked is not None
    found = named_kinds_seen(prompt.asked, reading)
    return {"mg1": float(found >= 1), "mg2": float(found >= 2)}


def suite(domain: Domain) -> Suite:
    """OptiGen over the kinds of a domain."""
    return Suite(
        name=f"{domain}/optigen",
        about="two kinds that a language model least expects together, at least 1, 2 of them are there (OptiGen)",
        domain=domain,
        scored_by="detector",
        headline="mg2",
        prompts=functools.partial(prompts, domain),
        score=score,
    )
