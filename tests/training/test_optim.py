import pytest
import torch
from torch import nn

from ar_t2i.training.optim import Ema, OptimConfig, lr_at, make_optimizer


def test_cosine_and_wsd():
    cosine = OptimConfig(lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    curve = [lr_at(step, 100, cosine) for step in range(100)]
    assert curve[0] == pytest.approx(0.1) and max(curve) == curve[10] == curve[9] == 1.0
    assert curve[55] == pytest.approx(0.55) and 0.1 < curve[99] < 0.102
    assert all(after < before for before, after in zip(curve[10:], curve[11:], strict=False))
    wsd = OptimConfig(lr=1.0, warmup_steps=10, schedule="wsd", decay_fraction=0.2, min_lr_ratio=0.0)
    curve = [lr_at(step, 100, wsd) for step in range(101)]
    assert set(curve[10:81]) == {1.0} and curve[90] == pytest.approx(0.5) and curve[100] == 0


def test_groups_are_decoupled():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(module, OptimConfig(weight_decay=0.5), {"0.weight"})
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == 0.5 and [p.shape for p in decayed["params"]] == [(3, 4)]
    assert kept["weight_decay"] == 0 and len(kept["params"]) == 4


def test_average_follows():
    module = nn.Linear(2, 2)
    start = module.weight.detach().clone()
    ema = Ema(module, decay=0.9)
    with torch.no_grad():
        module.weight += 1
    ema.update(module, step=1000)
    torch.testing.assert_close(ema.module.weight, start + 0.1)
    ema.update(module, step=0)  # early: (1 + 0) / (10 + 0)
    torch.testing.assert_close(ema.module.weight, start + 0.1 + 0.9 * 0.9)
    assert not ema.module.weight.requires_grad


def test_wrong_options_are_named():
    for name, value in (("lr", -1.0), ("beta1", 2.0), ("ema_decay", 1.5), ("warmup_steps", -1)):
        with pytest.raises(ValueError, match=f"optim.{name}="):
            OptimConfig(**{name: value})
