"""TiTok's interface: what it takes, what it refuses, its stages and its weights for training."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ar_t2i.image_tokenizer import ImageTokenizer
from ar_t2i.titok import MaskGITVQGAN, TiTok


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def stage1(golden):
    return TiTok.from_scratch(golden.config("titok_tiny_stage1"), seeded())


@pytest.fixture
def single_stage(golden):
    return TiTok.from_scratch(golden.config("titok_tiny_bl64_vq8k"), seeded())


def test_it_is_an_image_tokenizer(legacy):
    members = {*ImageTokenizer.__annotations__, *(name for name in vars(ImageTokenizer) if not name.startswith("_"))}
    assert members >= {"encode", "decode", "fingerprint", "num_codes"}
    assert members <= set(dir(legacy))
    assert (legacy.num_codes, legacy.codebook_size, legacy.image_size) == (32, 4096, 256)


def test_decoded_pictures_are_clamped_and_nothing_else(legacy, pixels):
    codes = legacy.encode(pixels)
    with torch.no_grad():
        raw = legacy.decode_tokens(codes)
    assert raw.min() < 0 and raw.max() > 1
    assert torch.equal(legacy.decode(codes), raw.clamp(0, 1))
    assert torch.equal(legacy.decode(codes.unsqueeze(1)), legacy.decode(codes.int()))


def test_a_picture_does_not_depend_on_its_batch(legacy, pixels):
    both = legacy.encode(pixels)
    assert torch.equal(torch.cat([legacy.encode(pixels[:1]), legacy.encode(pixels[1:])]), both)
    assert legacy.encode(pixels[:0]).shape == (0, 32)
    assert legacy.decode(both[:0]).shape == (0, 3, 256, 256)


def test_codes_are_the_same_under_autocast_given_the_same_latents(legacy, pixels):
    with torch.no_grad():
        z = legacy.encode_latents(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            quantized = legacy.quantize(z)
    assert torch.equal(quantized.codes, legacy.encode(pixels)) and quantized.z_quantized.dtype == torch.float32


def test_half_precision_models_run(golden, legacy, pixels):
    half = golden.titok("titok_tiny_legacy").to(torch.bfloat16)
    codes = half.encode(pixels)
    painted = half.decode(legacy.encode(pixels))
    assert codes.shape == (2, 32) and painted.dtype == torch.float32
    assert (painted - legacy.decode(legacy.encode(pixels))).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x * 2 - 1, r"pixels from -1 to 1: expected float in \[0, 1\]"),
        (lambda x: x * 255, r"pixels from 0 to 255: expected float in \[0, 1\]"),
        (lambda x: (x * 255).byte(), r"pixels of type torch.uint8: expected float in \[0, 1\]; divide uint8 by 255"),
        (lambda x: x * float("nan"), "pixels from nan to nan"),
        (lambda x: x[0], r"pixels of shape \(3, 256, 256\): expected \(B, 3, H, W\)"),
        (lambda x: x[..., :128], r"pixels of shape \(2, 3, 256, 128\): expected \(B, 3, 256, 256\)"),
        (lambda x: x.permute(0, 2, 3, 1), r"pixels of shape \(2, 256, 256, 3\)"),
    ],
)
def test_pixels_that_are_refused(legacy, pixels, bad, message):
    full_range = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    with pytest.raises(ValueError, match=message):
        legacy.encode(bad(full_range))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 32), 4096), r"codes from 4096 to 4096: expected 0\.\.4095"),
        (torch.full((1, 32), -1), r"codes from -1 to -1: expected 0\.\.4095"),
        (torch.zeros(1, 31, dtype=torch.int64), r"codes of shape \(1, 31\): expected \(B, 32\)"),
        (torch.zeros(32, dtype=torch.int64), r"codes of shape \(32,\): expected \(B, 32\)"),
        (torch.zeros(1, 32), "codes of type torch.float32: expected integers"),
        (torch.zeros(1, 32, dtype=torch.bool), "codes of type torch.bool: expected integers"),
    ],
)
def test_codes_that_are_refused(legacy, codes, message):
    with pytest.raises(ValueError, match=message):
        legacy.decode(codes)


def test_first_stage_needs_a_vqgan_to_paint(stage1, pixels):
    codes = stage1.encode(pixels)
    assert stage1.decode_tokens(codes).shape == (2, 1024, 16, 16)
    with pytest.raises(ValueError, match="a MaskGIT-VQGAN is needed"):
        stage1.decode(codes)


def test_second_stage_starts_from_the_first_and_a_vqgan(golden, legacy, stage1):
    """Taken apart into a first stage and a VQGAN, and put together again, a second stage is what it was."""
    whole = legacy.state_dict()
    first = TiTok(replace(legacy.config, finetune_decoder=False))
    first.load_state_dict({name: tensor for name, tensor in whole.items() if not name.startswith("pixel_")})
    vqgan = MaskGITVQGAN.from_scratch(legacy.config.vqgan, seeded())
    painter = {name[len("pixel_") :]: tensor for name, tensor in whole.items() if name.startswith("pixel_")}
    assert not vqgan.load_state_dict(painter, strict=False).unexpected_keys
    again = TiTok.from_stage1(first, vqgan)
    assert again.fingerprint == legacy.fingerprint
    with torch.no_grad():
        vqgan.decoder.conv_out.bias.add_(1)
        first.decoder.ln_post.bias.add_(1)
    assert again.fingerprint == legacy.fingerprint
    with pytest.raises(ValueError, match="gives pixels already"):
        TiTok.from_stage1(again, vqgan)
    with pytest.raises(ValueError, match="stage1 predicts the codes of"):
        TiTok.from_stage1(stage1, vqgan)


@pytest.mark.parametrize("kind", ["stage1", "single_stage"])
def test_the_loss_reaches_every_parameter(request, kind, pixels):
    model = request.getfixturevalue(kind)
    output, quantized = model(pixels)
    if kind == "stage1":
        loss = F.cross_entropy(output.flatten(2), torch.arange(512).view(2, 256))
    else:
        loss = (output - pixels).square().mean()
    (loss + quantized.quantizer_loss).backward()
    without = [name for name, tensor in model.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert without == []


def test_second_stage_trains_its_decoders_alone(legacy, pixels):
    output, quantized = legacy(pixels[:1])
    (output.mean() + quantized.quantizer_loss).backward()
    moved = {name.split(".")[0] for name, tensor in legacy.named_parameters() if tensor.grad is not None}
    legacy.zero_grad()
    assert moved == {"decoder", "pixel_quantize", "pixel_decoder"}
    assert [float(loss) for loss in quantized[2:5]] == [0, 0, 0]


def test_fresh_weights_follow_the_published_initialisation(golden):
    model = TiTok.from_scratch(golden.config("titok_tiny_legacy"), seeded())
    weights, checked = model.state_dict(), 0
    for name, tensor in weights.items():
        assert torch.isfinite(tensor).all(), name
        if ".ln_" in name or "norm" in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
        elif name.endswith("bias") and not name.startswith("pixel_"):
            assert not tensor.any(), name
        elif "embedding.weight" in name:
            assert 0.9 / len(tensor) < tensor.abs().max() <= 1 / len(tensor), name
        elif name.startswith("pixel_decoder") and name.endswith("weight"):
            bound = tensor[0].numel() ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, name
        elif name.endswith("in_proj_weight"):
            bound = (6 / (192 + 64)) ** 0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, name
        elif name.endswith("weight"):
            assert 0.018 < tensor.std() < 0.022, name
        elif not name.endswith("bias"):
            assert 0.7 < tensor.std() * 8 < 1.3, name
        checked += 1
    assert checked == len(weights) == 128


def test_fresh_weights_come_from_the_generator_alone(golden):
    config = golden.config("titok_tiny_bl64_vq8k")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (TiTok.from_scratch(config, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_fingerprint_follows_the_weights(golden, legacy):
    first = legacy.fingerprint
    assert first == legacy.fingerprint == golden.titok("titok_tiny_legacy").fingerprint and len(first) == 64
    with torch.no_grad():
        legacy.quantize.embedding.weight[0, 0] += 1
    changed = legacy.fingerprint
    with torch.no_grad():
        legacy.quantize.embedding.weight[0, 0] -= 1
    assert changed != first and legacy.fingerprint == first
    half = golden.titok("titok_tiny_legacy")
    assert half.fingerprint == first and half.to(torch.bfloat16).fingerprint != first


def test_it_works_in_inference_mode(golden, pixels):
    with torch.inference_mode():
        model = golden.titok("titok_tiny_legacy")
        codes = model.encode(pixels)
        assert len(model.fingerprint) == 64 and model.decode(codes).shape == pixels.shape
    assert torch.equal(codes, golden.tensors("titok_tiny_legacy_io")["indices"])
