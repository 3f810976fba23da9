import pickle

import pytest
import torch

from ar_t2i.training.checkpoint import load_states, save_states


def test_states_come_back_as_they_were(tmp_path):
    states = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3).T}, 1: {}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1], "fused": True, "foreach": None}],
        "seen": torch.tensor([True, False]),
        "name": "caf\u00e9",
        "empty": torch.zeros(0, 4),
    }
    save_states(states, tmp_path / "states.safetensors")
    found = load_states(tmp_path / "states.safetensors")
    assert found["param_groups"] == states["param_groups"] and found["name"] == states["name"]
    assert type(found["param_groups"][0]["betas"]) is tuple and list(found["state"]) == [0, 1]
    for name in ("step", "exp_avg"):
        assert torch.equal(found["state"][0][name], states["state"][0][name])
    assert torch.equal(found["seen"], states["seen"]) and found["empty"].shape == (0, 4)


def test_an_optimizer_goes_on_as_before(tmp_path):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True) for layer in layers]

    def step(number):
        optimizers[number].zero_grad()
        layers[number](torch.ones(1, 3)).sum().backward()
        optimizers[number].step()

    step(0), step(1)
    save_states(optimizers[0].state_dict(), tmp_path / "optimizer.safetensors")
    optimizers[1] = torch.optim.AdamW(layers[1].parameters(), lr=0.3)
    optimizers[1].load_state_dict(load_states(tmp_path / "optimizer.safetensors"))
    step(0), step(1)
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_what_is_no_state_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a state of type object"):
        save_states([object()], tmp_path / "states.safetensors")
    for number, content in enumerate((b"", b"half", pickle.dumps({"a": 1}))):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is missing or damaged"):
            load_states(path)
    with pytest.raises(ValueError, match="is missing or damaged"):
        load_states(tmp_path / "none.safetensors")
