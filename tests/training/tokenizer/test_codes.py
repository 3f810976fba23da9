"""Use of the codebook is counted right, and a codebook that starts dead comes alive."""

import math

import pytest
import torch
from accelerate import Accelerator

from ar_t2i.titok.quantizer import VectorQuantizer
from ar_t2i.training.tokenizer.codes import Codes, CodesConfig


def make(size=64, dim=4, l2=False, **options):
    quantizer = VectorQuantizer(size, dim, 0.25, use_l2_norm=l2)
    quantizer.embedding.weight.data = torch.full((size, dim), 100.0)  # all in one place, far from any latent
    return quantizer, Codes(quantizer, CodesConfig(**options), Accelerator(cpu=True), seed=0)


def step(quantizer, codes, latents):
    """One step over pictures of 16 latents each (N, C, 1, 16), in two micro-batches; returns the values to log."""
    counts = sum(codes.see(quantizer(part)) for part in latents.chunk(2))
    return codes.after_step({"code_counts": counts}, torch.tensor([len(latents)]))


@pytest.mark.parametrize("l2", [False, True])
def test_a_codebook_that_starts_dead_comes_alive(l2):
    torch.manual_seed(0)
    draws = [torch.randn(8, 4, 1, 16) for _ in range(30)]
    quantizer, codes = make(l2=l2, window=40)
    first = step(quantizer, codes, draws[0])
    assert first["codes_used"] == 1 and first["restarted_codes"] >= 63
    for latents in draws[1:]:
        values = step(quantizer, codes, latents)
    assert values["codes_used"] >= 60 and values["code_perplexity"] > 40 and values["restarted_codes"] <= 4
    asleep, counter = make(l2=l2, window=40, restart=False)
    for latents in draws:
        values = step(asleep, counter, latents)
    assert values["codes_used"] == 1 and "restarted_codes" not in values


def test_pull_by_hand():
    """Two entries, eight latents: one takes them all, the other none."""
    quantizer = VectorQuantizer(2, 1, 0.25)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [50.0]])
    codes = Codes(quantizer, CodesConfig(usage_decay=0.9), Accelerator(cpu=True), seed=0)
    latents = torch.linspace(-1, 1, 8).view(1, 1, 1, 8)
    counts = codes.see(quantizer(latents))
    assert counts.tolist() == [8, 0]
    assert codes.after_step({"code_counts": counts}, torch.tensor([1]))["restarted_codes"] == 1
    assert codes.usage_K.tolist() == pytest.approx([0.1, 0])
    pull = [math.exp(-10 * 2 * 0.1 / 0.1 - 1e-3), math.exp(-1e-3)]
    used, dead = quantizer.embedding.weight.flatten().tolist()
    assert used == pytest.approx(0, abs=2 * pull[0])
    chosen = (dead - 50 * (1 - pull[1])) / pull[1]
    assert min(abs(chosen - value) for value in latents.flatten().tolist()) < 1e-4


def test_entries_in_use_stay():
    torch.manual_seed(0)
    quantizer, codes = make(size=16)
    draws = torch.randn(40, 8, 4, 1, 16)
    for latents in draws:
        step(quantizer, codes, latents)
    before = quantizer.embedding.weight.clone()
    assert step(quantizer, codes, draws[0])["restarted_codes"] == 0
    assert (quantizer.embedding.weight - before).abs().max() < 1e-4


def test_figures_are_those_of_the_last_full_window():
    quantizer = VectorQuantizer(4, 1, 0.25)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    codes = Codes(quantizer, CodesConfig(window=2, restart=False), Accelerator(cpu=True), seed=0)

    def one(values):
        found = codes.see(quantizer(torch.tensor(values).view(1, 1, 1, -1)))
        values = codes.after_step({"code_counts": found}, torch.tensor([1]))
        return values["codes_used"], pytest.approx(values["code_perplexity"])

    assert one([0.0, 0.0, 0.0, 0.0]) == (1, 1.0)
    assert one([1.0, 1.0, 1.0, 1.0]) == (2, 2.0)  # the window is full
    assert one([0.0, 1.0, 2.0, 3.0]) == (2, 2.0)  # half of the next
    assert one([0.0, 1.0, 2.0, 3.0]) == (4, 4.0)


def test_state_goes_on():
    torch.manual_seed(0)
    draws = torch.randn(6, 4, 4, 1, 16)
    one, watching = make(window=6)
    for latents in draws[:3]:
        step(one, watching, latents)
    two, other = make(window=6)
    two.load_state_dict(one.state_dict())
    other.load_state_dict(watching.state_dict())
    for latents in draws[3:]:
        assert step(one, watching, latents) == step(two, other, latents)
    assert torch.equal(one.embedding.weight, two.embedding.weight)
