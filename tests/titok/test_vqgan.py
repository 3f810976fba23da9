"""The 2D MaskGIT-VQGAN: round trips, gradients and refusals (its numbers are proved in test_golden)."""

import json

import pytest
import torch

from ar_t2i.titok import MaskGITVQGAN, VQGANConfig

SMALL = VQGANConfig(channel_mult=(1, 2), hidden_channels=32, num_res_blocks=1, z_channels=8, codebook_size=64)


@pytest.fixture
def vqgan():
    return MaskGITVQGAN.from_scratch(SMALL, torch.Generator().manual_seed(0))


@pytest.fixture
def small_pixels():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def test_saved_and_loaded_is_the_same(tmp_path, vqgan, small_pixels):
    vqgan.save_pretrained(tmp_path)
    loaded = MaskGITVQGAN.from_pretrained(tmp_path)
    assert loaded.config == SMALL
    assert torch.equal(loaded.encode(small_pixels)[0], vqgan.encode(small_pixels)[0])


def test_pictures_need_not_be_square(vqgan, small_pixels):
    codes, z = vqgan.encode(small_pixels)
    assert codes.shape == (2, 8 * 12) and z.shape == (2, 8, 8, 12)
    painted = vqgan.decode(codes.view(2, 8, 12))
    assert painted.shape == small_pixels.shape and painted.min() >= 0 and painted.max() <= 1


def test_the_same_seed_gives_the_same_weights(vqgan):
    again = MaskGITVQGAN.from_scratch(SMALL, torch.Generator().manual_seed(0)).state_dict()
    other = MaskGITVQGAN.from_scratch(SMALL, torch.Generator().manual_seed(1)).state_dict()
    weights = vqgan.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["encoder.conv_in.weight"], other["encoder.conv_in.weight"])


def test_the_loss_reaches_every_parameter(vqgan, small_pixels):
    reconstructed, quantized = vqgan(small_pixels)
    ((reconstructed - small_pixels).square().mean() + quantized.quantizer_loss).backward()
    without = [name for name, tensor in vqgan.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert without == []


def test_refusals(tmp_path, vqgan):
    with pytest.raises(ValueError, match="expected sides that divide by 2"):
        vqgan.encode(torch.rand(1, 3, 15, 16))
    with pytest.raises(ValueError, match="pixels from -1 to 1: expected float in"):
        vqgan.encode(torch.tensor([-1.0, 1.0]).expand(1, 3, 16, 2))
    with pytest.raises(ValueError, match="with N a square number"):
        vqgan.decode(torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"codes from 0 to 64: expected 0\.\.63"):
        vqgan.decode(torch.tensor([[0, 1, 2, 64]]))
    (tmp_path / "config.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ValueError, match="not a MaskGIT-VQGAN config"):
        MaskGITVQGAN.from_pretrained(tmp_path)
