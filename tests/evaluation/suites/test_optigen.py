"""Pairs that a language model least expects: a planted model gives exactly those that were planted."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ar_t2i.bundles import load_bundle, shipped_bundle
from ar_t2i.evaluation.suites.optigen import least_likely_pairs, pair_probabilities, prompts, sinkhorn

NAMES = ["a cat", "a big dog", "a kite", "an ox", "a bus"]
WORDS = ["<pad>", *dict.fromkeys("a picture of and".split() + [word for name in NAMES for word in name.split()])]


class Planted(nn.Module):
    """Says after "... FIRST and" the words of each name with chances of our own; one text at a time is looked at."""

    def __init__(self, chance):
        super().__init__()
        self.chance, self.anchor = chance, nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, attention_mask):
        logits = torch.full((*input_ids.shape, len(WORDS)), -30.0)
        for row, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
            text = [WORDS[index] for index in ids[: sum(mask)]]
            middle = text.index("and")
            first, second = (" ".join(part) for part in (text[3:middle], text[middle + 1 :]))
            value = self.chance[NAMES.index(first), NAMES.index(second)]
            for place in range(middle, len(text) - 1):
                logits[row, place, ids[place + 1]] = 0.0
                logits[row, place, 0] = 0.0 if place > middle else float(np.log(1 / value - 1))
        return SimpleNamespace(logits=logits)


def tokenizer(texts):
    return {"input_ids": [[WORDS.index(word) for word in text.split()] for text in texts]}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_probabilities_are_those_of_whole_names(batch_size):
    chance = np.random.default_rng(0).uniform(0.05, 0.9, (5, 5))
    found = pair_probabilities(Planted(chance), tokenizer, NAMES, batch_size)  # type: ignore[arg-type]
    more = np.array([len(name.split()) - 1 for name in NAMES])  # each further word has a chance of one half
    wanted = chance * 0.5 ** more[None]
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_planted_pairs_come_out():
    """Frequent names must not hide them: rows and columns are scaled by much, the planted pairs by little."""
    rng = np.random.default_rng(1)
    often = np.exp(rng.normal(0, 1.5, 5))
    chance = often[None] * np.exp(rng.normal(0, 0.05, (5, 5)))
    planted = [(0, 3), (4, 1), (2, 4)]
    for depth, place in enumerate(planted):
        chance[place] *= 0.1 * 1.6**depth
    chance *= 0.9 / chance.max()
    matrix = sinkhorn(pair_probabilities(Planted(chance), tokenizer, NAMES))  # type: ignore[arg-type]
    assert least_likely_pairs(matrix, 3) == planted
    assert all(row != column for row, column in least_likely_pairs(matrix, 20))
    with pytest.raises(ValueError, match="20"):
        least_likely_pairs(matrix, 21)


def test_the_model_of_captions_chooses_among_text_alone():
    """As one computes it by hand, one text at a time, from the logits of text ids."""
    bundle = load_bundle(shipped_bundle())
    names = ["a bird", "an umbrella", "a refrigerator"]
    found = pair_probabilities(bundle.model, bundle.vocabulary, names, 4)
    text_ids = torch.from_numpy(bundle.vocabulary.text_ids)
    checked = 0
    for row, column in permutations(range(3), 2):
        begun, ids = bundle.vocabulary.encode_captions(
            [f"a picture of {names[row]} and", f"a picture of {names[row]} and {names[column]}"]
        )
        with torch.inference_mode():
            logits = bundle.model(input_ids=torch.tensor([ids])).logits[0]
        logs = torch.full_like(logits, -torch.inf)
        logs[:, text_ids] = logits[:, text_ids].log_softmax(-1)
        wanted = sum(logs[place - 1, ids[place]] for place in range(len(begun), len(ids)))
        assert np.log(found[row, column]) == pytest.approx(float(wanted), rel=1e-4)
        checked += 1
    assert checked == 6 and (np.diagonal(found) == 0).all()


def test_sinkhorn_is_doubly_stochastic():
    rng = np.random.default_rng(2)
    for size in (3, 20, 80):
        matrix = np.exp(rng.normal(0, 3, (size, size)))
        np.fill_diagonal(matrix, 0)
        scaled = sinkhorn(matrix)
        assert np.abs(scaled.sum(0) - 1).max() < 1e-8 and np.abs(scaled.sum(1) - 1).max() < 1e-8
        assert (np.diagonal(scaled) == 0).all()
        rows, columns = rng.uniform(0.1, 9, (2, size))
        assert np.allclose(sinkhorn(rows[:, None] * matrix * columns), scaled, atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((2, 3)), "square"),
        (np.array([[1.0, -1.0], [1.0, 1.0]]), "at least 0"),
        (np.array([[1.0, np.nan], [1.0, 1.0]]), "finite"),
        (np.array([[1.0, 0.0], [1.0, 0.0]]), "zeros"),
        (np.array([[1.0, 0.0], [1.0, 1.0]]), "not doubly stochastic"),
    ],
)
def test_what_cannot_be_scaled_is_told(matrix, words):
    with pytest.raises(ValueError, match=words):
        sinkhorn(matrix, most_steps=200)


@pytest.mark.slow
def test_prompts_of_the_shipped_model():
    every = prompts("scenes", 380, 0)
    assert every[:7] == prompts("scenes", 7, 5) and len({prompt.text for prompt in every}) == 380
    with pytest.raises(ValueError, match="380"):
        prompts("scenes", 381, 0)


def test_names_that_come_twice_are_told():
    with pytest.raises(ValueError, match="once"):
        pair_probabilities(Planted(np.ones((5, 5))), tokenizer, ["a cat", "a cat"])  # type: ignore[arg-type]
