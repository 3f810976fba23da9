"""Distances between pictures: zero for equal ones, of every picture alone, with gradients, and honestly named."""

import sys
import types

import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextForImageClassification, ConvNextModel

from ar_t2i.perceptual import ConvNextDistance, load_perceptual

TINY = ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 24], num_labels=7)


@pytest.fixture(params=["pyramid", "ConvNextModel", "ConvNextForImageClassification", "sum"])
def distance(request, tmp_path):
    """Each kind that can be had without a network; ConvNeXts are random and read from a folder."""
    if request.param == "pyramid":
        return load_perceptual("pyramid")
    torch.manual_seed(0)
    made = ConvNextModel if request.param == "ConvNextModel" else ConvNextForImageClassification
    made(TINY).save_pretrained(tmp_path / "net")
    return load_perceptual(f"{tmp_path / 'net'}" if request.param != "sum" else f"0.5*pyramid+2*{tmp_path / 'net'}")


def test_laws_of_a_distance(distance):
    one, two = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 64, 64)
    found = distance(one, two)
    assert found.shape == (3,) and (found > 0).all()
    assert torch.equal(distance(one, one), torch.zeros(3))
    torch.testing.assert_close(found, distance(two, one))
    alone = torch.cat([distance(a[None], b[None]) for a, b in zip(one, two, strict=True)])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-8)
    near = distance(one, (one + 0.01 * (two - one)))
    assert (near < found).all()


def test_gradients_reach_pictures_and_nothing_else(distance):
    painted = torch.rand(2, 3, 32, 32, requires_grad=True)
    distance.train()
    assert not any(module.training for module in distance.modules())
    distance(torch.rand(2, 3, 32, 32), painted).sum().backward()
    assert painted.grad is not None and painted.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_convnext_is_the_mean_squared_difference_of_logits_of_normalised_pictures(tmp_path):
    torch.manual_seed(0)
    net = ConvNextForImageClassification(TINY).eval()
    net.save_pretrained(tmp_path)
    one, two = torch.rand(2, 3, 224, 224), torch.rand(2, 3, 224, 224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        a, b = (net((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)).logits for x in (one, two))
    found = load_perceptual(str(tmp_path))
    torch.testing.assert_close(found(one, two), (a - b).square().mean(1))
    assert found.name == f"convnext:{tmp_path}" and isinstance(found, ConvNextDistance)


def test_pyramid_sees_a_lost_edge_more_than_noise_of_the_same_size():
    """Halving levels add up what is wrong at every scale, so a shift of large areas counts more than noise."""
    pyramid = load_perceptual("pyramid")
    picture = torch.zeros(1, 3, 64, 64)
    noise = torch.where(torch.rand(1, 3, 64, 64) < 0.5, 0.1, -0.1)
    shifted = torch.full_like(picture, 0.1)
    assert pyramid(picture, shifted).item() == pytest.approx(0.1, abs=1e-6)  # flat: the last level alone
    halves = torch.zeros(1, 3, 64, 64)
    halves[..., 32:] = 0.2
    assert pyramid(picture, halves) > 0.1 and pyramid(picture, noise) > 0.1
    assert pyramid.name == "pyramid"


def test_lpips_is_called_as_its_package_wants_it(monkeypatch):
    """The package itself fetches weights, so a stand-in of the same signature tells how it is called."""
    called = {}

    class LPIPS(nn.Module):
        def __init__(self, net="alex", verbose=True):
            super().__init__()
            called.update(net=net, verbose=verbose)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, in0, in1, normalize=False):
            called["normalize"] = normalize
            return (in0 - in1).square().mean((1, 2, 3), keepdim=True) * self.scale

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    distance = load_perceptual("lpips-vgg")
    assert distance(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)).tolist() == [1, 1]
    assert called == {"net": "vgg", "verbose": False, "normalize": True} and distance.name == "lpips-vgg"


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match="needs the package lpips: pip install"):
        load_perceptual("lpips-alex")
    with pytest.raises(ValueError, match="no perceptual distance is called 'vgg'"):
        load_perceptual("vgg")
    with pytest.raises(ValueError, match="half"):
        load_perceptual("half*pyramid+pyramid")
    with pytest.raises(ValueError, match="no ConvNeXt can be loaded from"):
        load_perceptual(str(tmp_path))
    ConvNextModel(TINY).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"ConvNextModel"', '"ConvNextForImageClassification"')
    )
    with pytest.raises(ValueError, match="does not hold exactly a ConvNextForImageClassification"):
        load_perceptual(str(tmp_path))
