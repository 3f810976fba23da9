"""The quick layers against stock ones: hidden states and gradients, alone and in the loss."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from ar_t2i.model.build import add_residual_dropout
from ar_t2i.model.quick import QuickAttention, quicken
from ar_t2i.sampling.network import Stock, network_of

SIZE: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def pair(attention="eager", keys=4, **options):
    torch.manual_seed(0)
    stock = Qwen3ForCausalLM(
        Qwen3Config(**SIZE, num_attention_heads=4, num_key_value_heads=keys, head_dim=16, **options)
    )
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    stock.set_attn_implementation(attention)
    quick = copy.deepcopy(stock)
    quicken(quick)
    return stock.train(), copy.deepcopy(quick).train()


def losses_and_gradients(model, ids):
    model.zero_grad()
    loss = model(ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_equals_stock_with_its_gradients(attention, keys):
    """Up to float32, in which stock norms are computed whatever the dtype."""
    stock, quick = (model.double() for model in pair(attention, keys))
    assert any(isinstance(module, QuickAttention) for module in quick.modules())
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    checked = 0
    for ours, theirs in zip(losses_and_gradients(quick, ids), losses_and_gradients(stock, ids), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)
        checked += 1
    assert checked > 20


def test_gradients_are_those_of_the_function():
    """By finite differences of the quick layers alone, whose arithmetic is float64 throughout."""
    quick = pair("sdpa")[1].double().model.layers[0]
    angles = torch.rand(1, 3, 8, dtype=torch.float64).repeat(1, 1, 2)
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)

    def forward(x):
        return quick(x, attention_mask=None, position_embeddings=(angles.cos(), angles.sin()))

    assert torch.autograd.gradcheck(forward, (x,))


def test_bfloat16_is_as_near_as_stock():
    """To float32, under autocast."""
    stock, quick = pair()
    ids = torch.randint(0, 50, (8, 20), generator=torch.Generator().manual_seed(1))
    exact = losses_and_gradients(stock, ids)
    errors = []
    for model in (stock, quick):
        with torch.autocast("cpu", torch.bfloat16):
            found = losses_and_gradients(model, ids)
        errors.append(sum(float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)))
    assert errors[1] < 1.2 * errors[0]


def test_other_models_stay_as_they_are_and_hooks_are_heard():
    llama = LlamaForCausalLM(LlamaConfig(**SIZE, num_attention_heads=4))
    quicken(llama)
    assert not [module for module in llama.modules() if type(module).__module__.startswith("ar_t2i")]
    quick = pair()[1]
    ids = torch.arange(5)[None]
    before = quick(ids).logits
    add_residual_dropout(quick, 0.5)
    assert not torch.equal(quick(ids).logits, before) and torch.equal(quick.eval()(ids).logits, before)
    biased = pair(attention_bias=True)
    torch.testing.assert_close(biased[0](ids).logits, biased[1](ids).logits)


def test_the_checkpoint_is_stock_and_the_sampler_knows_it(tmp_path):
    stock, quick = pair()
    quick.save_pretrained(tmp_path)
    again = Qwen3ForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(stock.parameters(), again.parameters(), strict=True))
    assert not [module for module in again.modules() if isinstance(module, QuickAttention)]
    assert not isinstance(network_of(quick.eval()), Stock)


class Adapted(nn.Module):
    """A layer with an adapter in the manner of peft, which shows the weight that it wraps."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.factor = layer, nn.Parameter(torch.tensor(0.5))

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, x):
        return self.layer(x) * self.factor


@pytest.mark.parametrize(
    "name", ["q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "gate_proj", "up_proj", "o_proj", "down_proj"]
)
def test_adapters_and_hooks_put_on_later_are_heard(name):
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    for change in ("adapter", "hook"):
        models = pair()
        for model in models:
            layer = model.model.layers[1]
            owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
            if change == "adapter":
                setattr(owner, name, Adapted(getattr(owner, name)))
            else:
                getattr(owner, name).register_forward_hook(lambda module, inputs, output: 2 * output)
        stock, quick = (losses_and_gradients(model, ids) for model in models)
        for ours, theirs in zip(quick, stock, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        assert change == "hook" or [p.grad for n, p in models[1].named_parameters() if n.endswith("factor")][0] != 0


def test_weights_in_bfloat16_and_late_biases():
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    stock, quick = (model.bfloat16() for model in pair())
    assert quick(ids).logits.dtype == torch.bfloat16
    torch.testing.assert_close(quick(ids).logits, stock(ids).logits, rtol=0.1, atol=0.1)
    stock, quick = pair()
    for model in (stock, quick):
        model.model.layers[0].self_attn.q_proj.bias = nn.Parameter(torch.ones(64))
    torch.testing.assert_close(quick(ids).logits, stock(ids).logits)


def test_a_compiler_sees_whole_layers():
    stock, quick = pair("sdpa")
    ids = torch.arange(7)[None]
    compiled = torch.compile(quick.model.layers[0], fullgraph=True, backend="eager")
    x = stock.model.embed_tokens(ids).detach()
    turn = stock.model.rotary_emb(x, torch.arange(7)[None])
    found, expected = (
        layer(x, attention_mask=None, position_embeddings=turn) for layer in (compiled, stock.model.layers[0])
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("trained", ["embed_tokens", "layers.0.self_attn.k_proj", "layers.1.mlp.up_proj", "norm"])
def test_frozen_weights_get_no_gradient_and_change_none(trained):
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    quick = pair()[1]
    whole = dict(zip(["loss", *dict(quick.named_parameters())], losses_and_gradients(quick, ids), strict=True))
    for name, parameter in quick.named_parameters():
        parameter.requires_grad_(trained in name)
    losses_and_gradients(quick, ids)
    found = {name: parameter.grad for name, parameter in quick.named_parameters() if parameter.grad is not None}
    assert found and all(trained in name and torch.equal(whole[name], gradient) for name, gradient in found.items())
