import copy

import pytest
import torch
from torch import nn

from ar_t2i.training.muon import MOMENTUM, Muon, orthogonal
from ar_t2i.training.optim import OptimConfig, make_optimizer


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 80), (2, 80, 16), (1, 8, 8)])
def test_orthogonal_keeps_singular_vectors_and_levels_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices)
    assert found.shape == matrices.shape and found.dtype == torch.float32
    checked = 0
    for matrix, level in zip(matrices, found, strict=True):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        turned = u.T @ level @ v.T
        assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.1, "the singular vectors are the matrix's own"
        assert turned.diagonal()[s > 0.05 * s[0]].min() > 0.5 and turned.diagonal().max() < 1.3
        checked += 1
    assert checked == shape[0]


def test_one_step_is_the_formula_for_filters_and_adamw_for_the_rest():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))
    twin = copy.deepcopy(net)
    config = OptimConfig(name="muon", lr=0.01, weight_decay=0.1)
    optimizer = make_optimizer(net, config, {"2.weight"})
    assert isinstance(optimizer, Muon)
    net(torch.randn(4, 3, 4, 4)).square().sum().backward()
    gradient = net[0].weight.grad.clone()
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        other.grad = mine.grad.clone()
    rest = [twin[0].bias, twin[2].weight, twin[2].bias]
    torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0).step()
    optimizer.step()
    ahead = (1 - MOMENTUM + MOMENTUM * (1 - MOMENTUM)) * gradient
    update = orthogonal(ahead.reshape(1, 8, 27)).view(8, 3, 3, 3)
    expected = twin[0].weight * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 27**0.5 * update
    torch.testing.assert_close(net[0].weight, expected, rtol=0, atol=1e-6)
    for mine, other in zip([net[0].bias, *net[2].parameters()], rest, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_a_state_that_was_saved_goes_on_bit_for_bit():
    def run(net, optimizer, steps):
        for step in steps:
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    torch.manual_seed(0)
    config = OptimConfig(name="muon")
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    whole, cut = copy.deepcopy(net), copy.deepcopy(net)
    run(whole, make_optimizer(whole, config), range(6))
    first = make_optimizer(cut, config)
    run(cut, first, range(3))
    second = make_optimizer(cut, config)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(cut, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    assert not torch.equal(net[0].weight, cut[0].weight)
