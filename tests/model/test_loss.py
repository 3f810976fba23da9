"""The masked loss against the full softmax with -inf, and its independence of how rows are laid out."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from ar_t2i.data.batching import IGNORED, collate
from ar_t2i.model import loss
from ar_t2i.model.build import ModelConfig, build_model, check_head
from ar_t2i.model.loss import DecoderWithLoss
from ar_t2i.sequence import sequence_ids


@pytest.fixture(scope="session")
def sequences(vocabulary):
    rng = np.random.default_rng(0)
    captions = vocabulary.encode_captions(["a red bird", "a blue house by the sea at night", "", "tree"])
    return [sequence_ids(vocabulary, caption, rng.integers(0, 4096, 32)) for caption in captions]


def models(vocabulary):
    size = {"vocab_size": vocabulary.size, "hidden_size": 32, "intermediate_size": 64}
    torch.manual_seed(0)
    yield build_model(ModelConfig(hidden_size=32, num_layers=2, intermediate_size=64, head_dim=16), vocabulary, 0)
    yield LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1))
    yield PhiForCausalLM(PhiConfig(**size, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0))  # has a bias
    yield GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary.size, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, attn_pdrop=0, embd_pdrop=0
        )
    )


def reference(model, vocabulary, batch):
    """Full-vocabulary softmax, -inf on the ids of the other modality."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    sums = {}
    for name, ids in (("image", vocabulary.image_ids), ("text", vocabulary.text_ids)):
        ids = torch.from_numpy(ids)
        chosen = torch.isin(targets, ids)
        mask = torch.full((vocabulary.size,), -torch.inf, dtype=logits.dtype)
        mask[ids] = 0
        masked = logits[chosen] + mask
        sums[name] = torch.nn.functional.cross_entropy(masked, targets[chosen], reduction="sum")
        if name == "image":
            sums["z"] = masked.logsumexp(-1).square().sum()
    return sums


def test_equals_the_full_softmax_with_its_gradients(vocabulary, sequences):
    checked = 0
    for model in models(vocabulary):
        model = model.double().eval()
        batch = collate(sequences, vocabulary.pad_id)
        ours = DecoderWithLoss(model, vocabulary)(**batch)
        theirs = reference(model, vocabulary, batch)
        for name in ("image", "text", "z"):
            assert abs(ours[name] - theirs[name]) <= 1e-6 * max(1, abs(theirs[name]))
            gradients = [
                torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
                for value in (ours[name], theirs[name])
            ]
            for mine, other in zip(*gradients, strict=True):
                torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
                checked += 1
    assert checked > 60


@pytest.mark.parametrize("at_once", [1, 4096 * 50])
def test_the_number_of_logits_at_once_changes_nothing(vocabulary, sequences, model, monkeypatch, at_once):
    batch, judge = collate(sequences, vocabulary.pad_id), DecoderWithLoss(model, vocabulary)
    found = []
    for number in (at_once, 2**30):
        monkeypatch.setattr(loss, "_IN_CACHE", number)
        model.zero_grad()
        sums = judge(**batch)
        (sums["image"] + sums["text"] + sums["z"]).backward()
        found.append([*sums.values(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_bfloat16_keeps_what_is_left_of_a_sure_guess(vocabulary, sequences, model):
    """A chance near one less one is rounded after the difference, not before."""
    model = copy.deepcopy(model)  # all tests share it
    batch, judge = collate(sequences, vocabulary.pad_id), DecoderWithLoss(model, vocabulary)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(30)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            sums = judge(**batch)
        found.append(torch.autograd.grad(sums["image"], head)[0])
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


def test_counts(vocabulary, sequences, model):
    batch = collate(sequences, vocabulary.pad_id)
    image, text = DecoderWithLoss(model, vocabulary).count_targets(batch["labels"])
    assert image == 4 * 32
    assert text == sum(
        max(0, len(sequence) - 34 - 1) for sequence in sequences
    )  # the first id has no position before it


def test_padding_and_company_change_no_loss(vocabulary, sequences, model):
    judge = DecoderWithLoss(model, vocabulary).double()
    alone = [judge(**collate([sequence], vocabulary.pad_id)) for sequence in sequences]
    together = judge(**collate(sequences, vocabulary.pad_id))
    wider = collate(sequences, vocabulary.pad_id)
    wider = {
        "input_ids": torch.nn.functional.pad(wider["input_ids"], (0, 9), value=vocabulary.pad_id),
        "labels": torch.nn.functional.pad(wider["labels"], (0, 9), value=IGNORED),
    }
    padded = judge(**wider)
    for name in ("image", "text", "z"):
        expected = sum(sums[name] for sums in alone)
        torch.testing.assert_close(together[name], expected, atol=1e-9, rtol=1e-12)
        torch.testing.assert_close(padded[name], expected, atol=1e-9, rtol=1e-12)
    judge.float()


def test_a_head_that_changes_its_logits_is_refused(vocabulary):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=vocabulary.size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32, final_logit_softcapping=0.01, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="changes its logits"):
        check_head(Gemma2ForCausalLM(config).eval())


def test_a_frozen_head_gets_no_gradient_and_what_is_below_gets_its_own(vocabulary, sequences):
    checked = 0
    for model in models(vocabulary):
        batch, head = collate(sequences, vocabulary.pad_id), model.get_output_embeddings()
        last = [parameter for name, parameter in model.named_parameters() if "norm" in name or "ln_f" in name][-1]
        gradients = []
        for trained in (True, False):
            head.requires_grad_(trained)
            model.zero_grad()
            sums = DecoderWithLoss(model.eval(), vocabulary)(**batch)
            (sums["image"] + sums["text"]).backward()
            assert (head.weight.grad is not None) == trained
            gradients.append(last.grad.clone())
            checked += 1
        assert torch.equal(*gradients)
    assert checked == 8
