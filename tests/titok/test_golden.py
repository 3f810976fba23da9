"""Our TiTok and MaskGIT-VQGAN give the numbers of the original code, on the same random weights."""

import pytest
import torch
import torch.nn.functional as F

from ar_t2i.titok import MaskGITVQGAN, TiTok

# Largest absolute difference allowed, float32 on a CPU; a wrong norm epsilon already exceeds these.
EXACT = {"indices", "decoder_logits_argmax", "codes"}
TOLERANCE = {
    "encoder_z": 2e-5,
    "z_quantized": 1e-6,
    "z_from_indices": 1e-6,
    "soft_embedding": 1e-4,
    "ffn_out_sub": 8e-6,
}
LOGITS = 1e-4
PIXELS = {"titok_tiny_legacy": 1.5e-4, "titok_tiny_bl64_vq8k": 8e-6}
LOSSES = 1e-6
STAGE1_LOSSES = 1e-5


def outputs(model, pixels, io):
    """Everything that the golden files hold, under their names, from one pass over the pictures."""
    seen = {}
    hooks = [
        model.decoder.register_forward_hook(lambda module, inputs, output: seen.update(decoder=output)),
        model.decoder.ffn.register_forward_hook(lambda module, inputs, output: seen.update(ffn=output)),
    ]
    if model.config.finetune_decoder:
        hooks.append(model.pixel_decoder.register_forward_pre_hook(lambda module, inputs: seen.update(soft=inputs[0])))
    with torch.no_grad():
        quantized = model.quantize_pixels(pixels)
        result = model.decode_tokens(quantized.codes)
        found = {
            "encoder_z": model.encode_latents(pixels),
            "indices": model.encode(pixels),
            "z_quantized": quantized.z_quantized,
            "z_from_indices": model.quantize.entries(quantized.codes).transpose(1, 2).unsqueeze(2),
            "quantizer_loss": quantized.quantizer_loss.view(1),
            "commitment_loss": quantized.commitment_loss.view(1),
            "codebook_loss": quantized.codebook_loss.view(1),
        }
    for hook in hooks:
        hook.remove()
    if model.config.is_legacy:
        logits = seen["decoder"]
        sure = io["decoder_logits_top2_gap"] > 1e-3
        found["decoder_logits_image0"] = logits[:1]
        found["decoder_logits_sub"] = logits[:, ::16, ::2, ::2]
        found["decoder_logits_argmax"] = torch.where(sure, logits.argmax(1), io["decoder_logits_argmax"])
        found["decoder_logits_top2_gap"] = -logits.topk(2, dim=1).values.diff(dim=1).squeeze(1)
    else:
        found["ffn_out_sub"] = seen["ffn"][..., ::4, ::4]
    if model.config.finetune_decoder:
        found["soft_embedding"] = seen["soft"]
    if model.config.gives_pixels:
        found["pixels_image0"] = result[:1]
        found["pixels_sub4"] = result[..., ::4, ::4]
        found["pixels_mean"], found["pixels_std"] = result.mean((2, 3)), result.std((2, 3))
    if "proxy_targets" in io:
        reconstruction = F.cross_entropy(result.flatten(2), io["proxy_targets"])
        found["stage1_reconstruction_loss"] = reconstruction.view(1)
        found["stage1_total_loss"] = (reconstruction + quantized.quantizer_loss).view(1)
    return found


def allowed(name, kind):
    """Largest absolute difference for a golden number."""
    if name in EXACT:
        return 0
    if name.startswith("stage1"):
        return STAGE1_LOSSES
    if name.endswith("_loss"):
        return LOSSES
    if name.startswith("decoder_logits"):
        return LOGITS
    return PIXELS[kind] if name.startswith("pixels") else TOLERANCE[name]


def compare(found, io, kind):
    """Assert that every golden number is met, and count them."""
    checked = 0
    for name, expected in io.items():
        if name in ("images_uint8", "proxy_targets"):
            continue
        assert found[name].shape == expected.shape, name
        difference = (found[name] - expected).abs().max().item()
        assert difference <= allowed(name, kind), f"{name}: {difference}"
        checked += 1
    return checked


def test_legacy_second_stage(golden, legacy, pixels):
    io = golden.tensors("titok_tiny_legacy_io")
    assert compare(outputs(legacy, pixels, io), io, "titok_tiny_legacy") == 14


@pytest.mark.parametrize(
    ("kind", "numbers"), [("titok_tiny_legacy", 16), ("titok_tiny_bl64_vq8k", 12), ("titok_tiny_stage1", 13)]
)
def test_full_golden_files(full_golden, kind, numbers):
    io = full_golden.tensors(f"{kind}_io")
    model = full_golden.titok(kind)
    assert compare(outputs(model, io["images_uint8"].float() / 255, io), io, kind) == numbers


@pytest.mark.parametrize("kind", ["titok_tiny_bl64_vq8k", "titok_tiny_stage1"])
def test_quantizer_with_live_losses(golden, kind):
    """Raw distances for one, unit vectors for the other."""
    io = golden.tensors(f"{kind}_io")
    quantizer = TiTok(golden.config(kind)).quantize
    quantizer.embedding.weight.data = golden.tensors(f"{kind}_parts")["quantize.embedding.weight"]
    with torch.no_grad():
        quantized = quantizer(io["encoder_z"])
        found = {
            "indices": quantized.codes,
            "z_quantized": quantized.z_quantized,
            "z_from_indices": quantizer.entries(quantized.codes).transpose(1, 2).unsqueeze(2),
            "quantizer_loss": quantized.quantizer_loss.view(1),
            "commitment_loss": quantized.commitment_loss.view(1),
            "codebook_loss": quantized.codebook_loss.view(1),
        }
    assert compare(found, {name: io[name] for name in found}, kind) == 6


def test_single_stage_encoder_and_head(golden, pixels):
    """The parts in which the single stage differs from the legacy kinds; its blocks are theirs."""
    kind = "titok_tiny_bl64_vq8k"
    io, parts = golden.tensors(f"{kind}_io"), golden.tensors(f"{kind}_parts")
    model = TiTok(golden.config(kind))
    lacking = model.load_state_dict(parts, strict=False)
    assert not lacking.unexpected_keys and all(name.startswith("decoder.") for name in lacking.missing_keys)
    seen = {}
    model.decoder.ffn.register_forward_hook(lambda module, inputs, output: seen.update(ffn=output))
    with torch.no_grad():
        found = {
            "encoder_z": model.encode_latents(pixels),
            "indices": model.encode(pixels),
            "pixels_sub4": model.decoder.head(io["decoder_ln_post_image0"])[..., ::4, ::4],
            "ffn_out_sub": seen["ffn"][..., ::4, ::4],
        }
    expected = {
        "encoder_z": io["encoder_z"][:2],
        "indices": io["indices"][:2],
        "pixels_sub4": io["pixels_sub4_image0"],
        "ffn_out_sub": io["ffn_out_sub_image0"],
    }
    assert compare(found, expected, kind) == 4


def test_vqgan_encoder(golden):
    io = golden.tensors("maskgit_vqgan_tiny_io")
    vqgan = MaskGITVQGAN(golden.vqgan_config())
    lacking = vqgan.load_state_dict(golden.tensors("maskgit_vqgan_tiny_parts"), strict=False)
    assert not lacking.unexpected_keys and all(name.startswith("decoder.") for name in lacking.missing_keys)
    codes, hidden_states = vqgan.encode(io["images_uint8"].float() / 255)
    assert torch.equal(codes, io["codes"])
    assert (hidden_states - io["hidden_states"]).abs().max() <= 2e-5


def test_full_vqgan(full_golden):
    io = full_golden.tensors("maskgit_vqgan_tiny_io")
    vqgan = MaskGITVQGAN.from_pretrained(
        full_golden.folder / "maskgit_vqgan_tiny.safetensors", full_golden.vqgan_config()
    )
    pixels = io["images_uint8"].float() / 255
    codes, hidden_states = vqgan.encode(pixels)
    with torch.no_grad():
        unclamped, quantized = vqgan(pixels)
    assert torch.equal(codes, io["codes"]) and torch.equal(quantized.codes, io["codes"])
    for found, expected in [
        (hidden_states, io["hidden_states"]),
        (quantized.z_quantized, io["z_quantized"]),
        (unclamped, io["pixels_unclamped"]),
        (vqgan.decode(codes), io["pixels"]),
        (vqgan.decode(codes.view(-1, 16, 16)), io["pixels"]),
    ]:
        assert (found - expected).abs().max() <= 2e-5


@pytest.mark.parametrize(
    ("kind", "epsilon", "name"), [("LayerNorm", 1e-6, "encoder_z"), ("GroupNorm", 1e-5, "pixels_sub4")]
)
def test_tolerances_see_a_wrong_norm_epsilon(golden, legacy, pixels, kind, epsilon, name):
    norms = [module for module in legacy.modules() if type(module).__name__ == kind]
    kept = {module.eps for module in norms}
    assert norms and len(kept) == 1
    for module in norms:
        module.eps = epsilon
    io = golden.tensors("titok_tiny_legacy_io")
    found = outputs(legacy, pixels, io)
    for module in norms:
        module.eps = kept.copy().pop()
    assert (found[name] - io[name]).abs().max() > allowed(name, "titok_tiny_legacy")


def damaged(name, tensor):
    """Biases zeroed, norm weights set to one, everything else rolled by one row, or zeroed if that changes nothing."""
    if name.endswith("bias"):
        return torch.zeros_like(tensor)
    if "ln_" in name or "norm" in name:
        return torch.ones_like(tensor)
    rolled = tensor.roll(1, 0)
    return torch.zeros_like(tensor) if torch.equal(rolled, tensor) else rolled


# With 32 channels a 32-group norm normalises each channel alone and takes these biases out again.
WITHOUT_EFFECT = {"pixel_decoder.up.4.upsample_conv.bias", "pixel_decoder.up.1.upsample_conv.bias"}


def moves(model, name, pixels, before):
    """Whether damage to one tensor changes a code or moves the pixels beyond the tolerance many times over."""
    state = model.state_dict()
    kept = state[name].clone()
    state[name].copy_(damaged(name, kept))
    with torch.no_grad():
        codes = model.encode(pixels)
        after = model.decode_tokens(codes)
    state[name].copy_(kept)
    return not torch.equal(codes, before[0]) or (after - before[1]).abs().max().item() > 0.02


@torch.no_grad()
def before_damage(model, pixels):
    codes = model.encode(pixels)
    return codes, model.decode_tokens(codes)


@pytest.mark.parametrize(
    "name",
    [
        "latent_tokens",
        "encoder.positional_embedding",
        "encoder.transformer.1.attn.in_proj_bias",
        "encoder.conv_out.bias",
        "quantize.embedding.weight",
        "decoder.mask_token",
        "decoder.ln_post.weight",
        "decoder.ffn.2.bias",
        "pixel_quantize.embedding.weight",
        "pixel_decoder.up.3.block.0.nin_shortcut.weight",
        "pixel_decoder.norm_out.bias",
    ],
)
def test_damage_to_a_tensor_shows(legacy, pixels, name):
    assert moves(legacy, name, pixels[:1], before_damage(legacy, pixels[:1]))


@pytest.mark.slow
def test_damage_to_any_tensor_shows(legacy, pixels):
    before = before_damage(legacy, pixels)
    silent = {name for name in legacy.state_dict() if not moves(legacy, name, pixels, before)}
    assert len(legacy.state_dict()) == 128
    assert silent == WITHOUT_EFFECT
