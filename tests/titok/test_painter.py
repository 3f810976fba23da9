"""The pixel decoder as inference runs it makes the pixels that the plain one makes, whatever its sizes."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ar_t2i.titok.config import ViTSize, VQGANConfig
from ar_t2i.titok.layers import Block
from ar_t2i.titok.painter import _TILES, _transforms, _Winograd
from ar_t2i.titok.vqgan import VQGANDecoder

TINY = VQGANConfig(channel_mult=(1, 2, 1), hidden_channels=64, num_res_blocks=2, z_channels=8, codebook_size=16)


def decoder_of(config=TINY):
    torch.manual_seed(0)
    return VQGANDecoder(config)


def test_the_transforms_are_exact():
    into, kernel, back = _transforms()
    numbers, weights = torch.randn(7, 6).double(), torch.randn(7, 3).double()
    found = ((numbers @ into.T) * (weights @ kernel.T)) @ back.T
    torch.testing.assert_close(found, (numbers.unfold(1, 3, 1) * weights[:, None]).sum(2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(8, 8), (16, 8), (9, 12), (20, 16), (1, 3)])
def test_pixels_are_those_of_the_plain_decoder(grid):
    for dtype, most in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        decoder, z = decoder_of().to(dtype), torch.randn(2, 8, *grid, dtype=dtype)
        with torch.inference_mode():
            torch.testing.assert_close(decoder(z), decoder.plain(z), rtol=0, atol=most)
        assert decoder._painter is not None


@pytest.mark.parametrize("upsample", [False, True])
@torch.no_grad()
def test_the_last_rows_may_be_fewer_than_a_part(upsample):
    conv, side = nn.Conv2d(32, 32, 3, padding=1), 68
    across = side // (2 if upsample else 4)
    assert across % (_TILES // across), "this size divides evenly"
    x = torch.randn(1, 32, side, side).contiguous(memory_format=torch.channels_last)
    expected = conv(F.interpolate(x, scale_factor=2.0) if upsample else x)
    torch.testing.assert_close(_Winograd(conv, upsample=upsample)(x), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mean, std", [(30, 1), (30, 1e-2), (7.3, 1e-3), (1000, 1), (30, 0)])
@torch.no_grad()
def test_a_mean_far_from_zero_costs_little(mean, std):
    norm, conv = nn.GroupNorm(32, 64, eps=1e-6), nn.Conv2d(64, 64, 3, padding=1, bias=False)
    x = (torch.randn(1, 64, 32, 32) * std + mean).contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(conv).double()(F.silu(copy.deepcopy(norm).double()(x.double()))).float()
    torch.testing.assert_close(_Winograd(conv, norm)(x), exact, rtol=0, atol=0.05)


def test_gradients_are_those_of_the_plain_decoder():
    decoder = decoder_of()
    z = torch.randn(1, 8, 8, 8, requires_grad=True)
    decoder(z).square().sum().backward()
    assert z.grad is not None and all(part.grad is not None for part in decoder.parameters())


def test_changed_weights_are_seen():
    decoder, z = decoder_of(), torch.randn(1, 8, 8, 8)
    with torch.inference_mode():
        for part in (decoder.up[0].block[0].conv2.weight, decoder.norm_out.bias, decoder.up[1].upsample_conv.bias):
            before = decoder(z)
            part.add_(torch.randn_like(part))
            assert not torch.equal(decoder(z), before)
            torch.testing.assert_close(decoder(z), decoder.plain(z), rtol=0, atol=1e-4)
        made_here = decoder_of()  # its weights count no changes
        before = made_here(z)
        made_here.conv_out.weight.mul_(2)
        assert not torch.equal(made_here(z), before)
    with torch.no_grad():  # as in training, where weights change through `data`
        before = decoder(z)
        decoder.conv_out.weight.data.mul_(2)
        assert not torch.equal(decoder(z), before)


def test_a_copy_leaves_the_prepared_weights_behind():
    decoder, z = decoder_of(), torch.randn(1, 8, 16, 16)
    with torch.inference_mode():
        found = decoder(z)
    again = copy.deepcopy(decoder)
    assert decoder._painter is not None and again._painter is None
    with torch.inference_mode():
        assert torch.equal(again(z), found)


@torch.inference_mode()
def test_threads_paint_with_one_decoder():
    with torch.inference_mode(False):
        decoder = decoder_of()
    latents = [torch.randn(1, 8, *grid) for grid in ((8, 8), (16, 8), (8, 16), (16, 16))] * 4

    def paint(z):
        with torch.inference_mode():
            return decoder(z)

    with ThreadPoolExecutor(4) as pool:
        for z, found in zip(latents, pool.map(paint, latents), strict=True):
            torch.testing.assert_close(found, decoder.plain(z), rtol=0, atol=2e-5)


def test_bfloat16_is_near():
    decoder, z = decoder_of(), torch.randn(1, 8, 16, 16)
    with torch.inference_mode():
        exact = decoder(z)
        with torch.autocast("cpu", torch.bfloat16):
            found = decoder(z)
    assert found.dtype == torch.bfloat16
    assert (found - exact).square().mean() < 1e-3 * exact.var()


@pytest.mark.parametrize("kept", [slice(-3, None), slice(1, 6)])
def test_a_block_at_some_positions_is_the_block_there(kept):
    torch.manual_seed(0)
    block = Block(ViTSize(width=32, num_layers=1, num_heads=2))
    for part in block.parameters():
        nn.init.normal_(part, std=0.3)
    x = torch.randn(2, 9, 32, requires_grad=True)
    probe = torch.randn(2, 9, 32)[:, kept]
    grads = []
    for found in (block(x)[:, kept], block(x, kept)):
        grads.append(torch.autograd.grad((found * probe).sum(), [x, *block.parameters()]))
        torch.testing.assert_close(found, block(x)[:, kept], rtol=1e-5, atol=1e-5)
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
