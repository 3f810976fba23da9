"""Reading and writing the published config schema."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ar_t2i.titok import TiTokConfig, ViTSize, VQGANConfig, published_config

NAMES = ["l32", "b64", "s128", "bl64_vq8k", "bl128_vq8k", "sl256_vq8k"]


def published_schema(**changes):
    """A config as published for L-32, which names neither is_legacy nor quantize_mode; None removes a key."""
    vq_model = {
        "codebook_size": 4096,
        "token_size": 12,
        "use_l2_norm": True,
        "commitment_cost": 0.25,
        "vit_enc_model_size": "large",
        "vit_dec_model_size": "large",
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "num_latent_tokens": 32,
        "finetune_decoder": True,
        **changes,
    }
    return {
        "experiment": {"tokenizer_checkpoint": "tokenizer_titok_l32.bin"},
        "model": {
            "vq_model": {name: value for name, value in vq_model.items() if value is not None},
            "generator": {"image_seq_len": "${model.vq_model.num_latent_tokens}"},
        },
        "dataset": {"preprocessing": {"crop_size": 256}},
    }


@pytest.mark.parametrize("name", NAMES)
def test_published_names_give_the_published_values(manifests, name):
    manifest = manifests[name]
    config = {"model": {"vq_model": manifest["vq_model"]}, "dataset": {"preprocessing": {"crop_size": 256}}}
    assert TiTokConfig.from_dict(config) == published_config(name)


def test_unread_interpolations_do_no_harm():
    assert TiTokConfig.from_dict(published_schema()) == published_config("l32")


def test_absent_flags_mean_true():
    assert TiTokConfig.from_dict(published_schema(finetune_decoder=None)) == published_config("l32")
    assert not TiTokConfig.from_dict(published_schema(finetune_decoder=False)).gives_pixels


@pytest.mark.parametrize("name", NAMES)
def test_published_configs_are_written_without_an_extra_block(name):
    config = published_config(name)
    written = json.loads(json.dumps(config.to_dict()))
    assert TiTokConfig.from_dict(written) == config
    assert written.keys() == {"model", "dataset"}


def test_unpublished_sizes_round_trip(golden):
    checked = 0
    for name in ("titok_tiny_legacy", "titok_tiny_bl64_vq8k", "titok_tiny_stage1"):
        config = golden.config(name)
        assert TiTokConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.vit_enc_size == ViTSize(width=64, num_layers=2, num_heads=4)
        checked += 1
    assert checked == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize_mode": "vae"}, "quantize_mode='vae': only VQ is supported"),
        ({"is_legacy": False}, "finetune_decoder=true with is_legacy=false"),
        ({"token_size": None}, "model.vq_model.token_size is missing"),
        ({"token_size": "${model.x}"}, r"model.vq_model.token_size='\$\{model.x\}': expected a whole number"),
        ({"use_l2_norm": "yes"}, "model.vq_model.use_l2_norm='yes': expected true or false"),
        ({"codebook_size": 0}, "codebook_size=0: expected at least 1"),
        ({"vit_dec_model_size": "huge"}, "vit_dec_model_size='huge': expected one of small, base, large"),
        ({"vit_enc_patch_size": 15}, "vit_enc_patch_size=15: expected a divisor of crop_size=256"),
        ({"vit_dec_patch_size": 8}, "vit_dec_patch_size=8: expected 16"),
    ],
)
def test_refused_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TiTokConfig.from_dict(published_schema(**changes))


@pytest.mark.parametrize("config", [{}, {"model": {}}, {"model_type": "qwen3", "hidden_size": 512}, {"model": "x"}])
def test_other_configs_are_told_apart(config):
    with pytest.raises(ValueError, match="not a TiTok config: it has no model.vq_model block"):
        TiTokConfig.from_dict(config)


def test_a_missing_picture_size_is_named():
    with pytest.raises(ValueError, match=r"dataset\.preprocessing\.crop_size is missing"):
        TiTokConfig.from_dict(published_schema() | {"dataset": {}})


def test_unknown_published_name():
    with pytest.raises(ValueError, match="'ll32_vae'; expected one of l32, b64"):
        published_config("ll32_vae")


def test_vqgan_shapes_that_cannot_be():
    with pytest.raises(ValueError, match="hidden_channels=48: expected a multiple of 32"):
        VQGANConfig(hidden_channels=48)
    with pytest.raises(ValueError, match=r"channel_mult=\[\]"):
        VQGANConfig(channel_mult=())
    with pytest.raises(ValueError, match="embedding_dim=64: expected the pixel_decoder.z_channels 256"):
        VQGANConfig.from_dict({"pixel_quantize": {"embedding_dim": 64}})
    with pytest.raises(ValueError, match="width=65 is not a multiple of num_heads=4"):
        ViTSize(width=65, num_layers=1, num_heads=4)


def test_a_smaller_pixel_decoder_needs_a_smaller_patch():
    eight = VQGANConfig(channel_mult=(1, 1, 2, 4))
    config = replace(published_config("s128"), vit_dec_patch_size=8, vqgan=eight)
    assert eight.factor == 8
    assert TiTokConfig.from_dict(config.to_dict()).vqgan == eight


def test_the_documented_config_is_what_it_says():
    page = (Path(__file__).parents[2] / "docs" / "titok.md").read_text()
    whole, shapes = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    config = json.loads(whole)
    assert TiTokConfig.from_dict(config) == published_config("l32")
    config |= json.loads("{" + shapes + "}")
    config["model"]["vq_model"]["vit_enc_model_size"] = "mine"
    read = TiTokConfig.from_dict(config)
    assert read.vit_enc_size == ViTSize(width=256, num_layers=6, num_heads=4) and read.vqgan.hidden_channels == 64
