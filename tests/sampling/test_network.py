"""The decoder as the sampler runs it computes what transformers computes."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from ar_t2i.sampling.network import Qwen3, Stock, network_of


def _model(**settings):
    torch.manual_seed(0)
    values = {
        "vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 40, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "initializer_range": 0.3, **settings,
    }  # fmt: skip
    model = Qwen3ForCausalLM(Qwen3Config(**values)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"num_key_value_heads": 2}, {"tie_word_embeddings": False}, {"rms_norm_eps": 1e-3}]
)
@torch.no_grad()
def test_hidden_states_and_logits_are_those_of_transformers(settings):
    model = _model(**settings)
    network = network_of(model)
    assert isinstance(network, Qwen3)
    ids = torch.randint(0, 60, (5, 12), generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([0, 3, 0, 5, 1])
    mask = (torch.arange(12) >= padding[:, None]).long()
    run, stock = network.start(5, 12), Stock(model).start(5, 12)
    for part in (slice(0, 7), slice(7, 8), slice(8, 10), slice(10, 12)):  # several at once, and one by one
        found = run.forward(ids[:, part], mask[:, : part.stop])
        expected = stock.forward(ids[:, part], mask[:, : part.stop])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for row, start in enumerate(padding.tolist()):
        whole = model(input_ids=ids[row : row + 1, start:]).logits[0, -1]
        torch.testing.assert_close(network.logits(found, slice(None))[row], whole, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            network.logits(found, torch.tensor([7, 3]))[row], whole[[7, 3]], rtol=1e-4, atol=1e-4
        )


def test_weights_are_shared_and_what_was_altered_runs_as_it_is():
    model = _model()
    network = network_of(model)
    assert network.table_KD.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda module, inputs, output: output * 2)
    assert isinstance(network_of(model), Stock)
    model = _model()
    model.model.layers[0].mlp.up_proj = type("Adapted", (nn.Linear,), {})(64, 96, bias=False)
    assert isinstance(network_of(model), Stock)
    assert isinstance(network_of(_model().train()), Stock)
    assert isinstance(network_of(_model(attention_bias=True)), Stock)
    assert isinstance(network_of(_model(use_sliding_window=True, sliding_window=4, max_window_layers=0)), Stock)
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 2.0, "original_max_position_embeddings": 20}
    assert isinstance(network_of(_model(rope_parameters=yarn)), Stock)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}])
def test_from_a_folder_and_back_to_transformers(tmp_path, settings):
    model = _model(**settings)
    model.save_pretrained(tmp_path)
    network = Qwen3.from_folder(tmp_path)
    again, ids = network.stock(), torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    assert torch.equal(again(input_ids=ids).logits, expected)
    assert again.model.norm.weight.data_ptr() == network.norm_D.data_ptr(), "without a copy"
    again.save_pretrained(tmp_path / "again")
    assert all(
        torch.equal(tensor, network.weights[name])
        for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items()
    )
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == network.weights.keys()
    half = network.to(torch.bfloat16)
    assert half.head_KD.dtype == half.cos_SE.dtype == torch.bfloat16
    assert half.start(1, 20).forward(ids, torch.ones_like(ids)).dtype == torch.bfloat16


def test_tensors_that_do_not_fit_are_named():
    model = _model()
    config, weights = model.config.to_dict(), dict(model.named_parameters())
    with pytest.raises(ValueError, match="1 unexpected tensors in the weights, the first extra"):
        Qwen3(config, weights | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="3 missing tensors in the weights, the first model.layers.0.mlp.up_proj"):
        Qwen3(config, {name: tensor for name, tensor in weights.items() if "up_proj" not in name})
    with pytest.raises(ValueError, match=r"model.norm.weight is \(3,\), expected \(64,\)"):
        Qwen3(config, weights | {"model.norm.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="no plain Qwen3"):
        Qwen3(config | {"hidden_act": "gelu"}, weights)


def test_drawing_with_the_shipped_bundle_needs_no_model_of_transformers(tmp_path):
    code = "import sys; from ar_t2i.cli import main; main(sys.argv[1:]); assert 'transformers' not in sys.modules"
    arguments = [sys.executable, "-c", code, "infer", "a red bird", "--out", str(tmp_path)]
    assert subprocess.run(arguments, capture_output=True, timeout=120).returncode == 0
    assert len(list(tmp_path.glob("*.png"))) == 1
