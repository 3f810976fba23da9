"""Strict loading, saving, and what is refused."""

import json
import os
import pickle
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from ar_t2i.image_tokenizer import load_image_tokenizer
from ar_t2i.titok import MaskGITVQGAN, TiTok


@pytest.fixture
def folder(tmp_path, golden):
    """A folder as published: the weights as a pickle, the config in the golden files' spelling."""
    torch.save(golden.tensors("titok_tiny_legacy"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(golden.json("titok_tiny_legacy")))
    return tmp_path


def test_saved_and_loaded_is_the_same(tmp_path, golden, legacy, pixels):
    legacy.save_pretrained(tmp_path / "a" / "b")
    loaded = TiTok.from_pretrained(tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["config.json", "model.safetensors"]
    assert loaded.config == legacy.config and not loaded.training
    assert loaded.fingerprint == legacy.fingerprint
    assert torch.equal(loaded.encode(pixels), golden.tensors("titok_tiny_legacy_io")["indices"])
    written = load_file(tmp_path / "a" / "b" / "model.safetensors")
    original = golden.tensors("titok_tiny_legacy")
    assert written.keys() == original.keys() and all(torch.equal(written[name], original[name]) for name in original)


def test_saved_files_are_as_readable_as_any_other(tmp_path, legacy):
    legacy.save_pretrained(tmp_path)
    (tmp_path / "other").write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_saving_over_the_file_that_was_loaded(folder, pixels):
    TiTok.from_pretrained(folder).save_pretrained(folder)
    loaded = TiTok.from_pretrained(folder)
    codes = loaded.encode(pixels)
    with torch.no_grad():
        loaded.quantize.embedding.weight.mul_(2)
    loaded.save_pretrained(folder)
    assert torch.equal(TiTok.from_pretrained(folder).encode(pixels), codes)


def test_frozen_parts_stay_frozen_after_loading(folder):
    loaded = TiTok.from_pretrained(folder)
    frozen = {name.split(".")[0] for name, tensor in loaded.named_parameters() if not tensor.requires_grad}
    assert frozen == {"latent_tokens", "encoder", "quantize"}


def test_folder_with_a_pickled_state_dict(folder, golden, pixels):
    """Whoever names TiTok may read it; a bundle, or whatever else may come from anywhere, has safetensors."""
    expected = golden.tensors("titok_tiny_legacy_io")["indices"]
    titok = TiTok.from_pretrained(folder)
    assert torch.equal(titok.encode(pixels), expected)
    with pytest.raises(ValueError, match="a pickle, which can run code"):
        load_image_tokenizer(folder)
    titok.save_pretrained(folder)
    assert torch.equal(load_image_tokenizer(folder).encode(pixels), expected)


def test_single_files_need_a_config(folder, golden, pixels):
    expected = golden.tensors("titok_tiny_legacy_io")["indices"]
    config, checked = golden.config("titok_tiny_legacy"), 0
    old = folder / "old_style.bin"
    torch.save(golden.tensors("titok_tiny_legacy"), old, _use_new_zipfile_serialization=False)
    for file in (folder / "pytorch_model.bin", old, golden.folder / "titok_tiny_legacy.safetensors"):
        assert torch.equal(TiTok.from_pretrained(file, config).encode(pixels), expected)
        with pytest.raises(ValueError, match=r"holds weights alone; give config="):
            TiTok.from_pretrained(file)
        checked += 1
    assert checked == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32(tmp_path, golden, dtype):
    half = {name: tensor.to(dtype) for name, tensor in golden.tensors("titok_tiny_legacy").items()}
    save_file(half, tmp_path / "model.safetensors")
    loaded = TiTok.from_pretrained(tmp_path / "model.safetensors", golden.config("titok_tiny_legacy")).state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in half.items())


def test_tensors_that_do_not_fit_are_named(tmp_path, golden):
    tensors = golden.tensors("titok_tiny_legacy")
    config = golden.config("titok_tiny_legacy")
    lost = [name for name in tensors if name.startswith("encoder.transformer")]
    for name in lost:
        del tensors[name]
    tensors["quantize.embed_prob"] = torch.zeros(4096)
    tensors["latent_tokens"] = torch.zeros(64, 64)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as raised:
        TiTok.from_pretrained(tmp_path / "model.safetensors", config)
    message = str(raised.value)
    assert len(lost) == 24
    assert f"24 missing ({', '.join(sorted(lost)[:5])}, ...)" in message
    assert "1 unexpected (quantize.embed_prob)" in message
    assert "1 wrongly shaped (latent_tokens (64, 64) instead of (32, 64))" in message
    assert "Use the config these weights were trained with" in message and "\n" not in message


def test_stages_taken_for_each_other_are_explained(tmp_path, golden):
    stage1 = golden.config("titok_tiny_stage1")
    with pytest.raises(
        ValueError, match=r"unexpected .*finetune_decoder: true goes with weights with pixel_\* tensors"
    ):
        TiTok.from_pretrained(golden.folder / "titok_tiny_legacy.safetensors", stage1)
    tensors = {k: v for k, v in golden.tensors("titok_tiny_legacy").items() if not k.startswith("pixel_")}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"missing .*finetune_decoder: false goes with weights without pixel_\* tensors"
    ):
        TiTok.from_pretrained(tmp_path / "model.safetensors", golden.config("titok_tiny_legacy"))


class _Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (None, "is refused: reading it would run code"),
        (2, "is refused: reading it would run code"),
        (4, "is damaged or no file of tensors alone"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, golden, protocol, message):
    """As torch.save writes it, and as plain pickles, of which torch does not even read the newer protocol."""
    marker = tmp_path / "it_ran"
    weights = {"latent_tokens": torch.zeros(2), "payload": _Command(marker)}
    if protocol is None:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(weights, protocol))
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin {message}") as raised:
        TiTok.from_pretrained(tmp_path / "pytorch_model.bin", golden.config("titok_tiny_legacy"))
    assert "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + bytes(90)]
)
def test_damaged_files_are_named(tmp_path, golden, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged or no ") as raised:
        TiTok.from_pretrained(tmp_path / name, golden.config("titok_tiny_legacy"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "'state_dict' is of type dict, expected a float tensor"),
        ({"codes": torch.zeros(2, dtype=torch.int64)}, "'codes' is of type torch.int64, expected a float tensor"),
        ([torch.zeros(2)], "holds a list, expected tensors by name"),
    ],
)
def test_other_pickles_are_refused(tmp_path, golden, content, message):
    torch.save(content, tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=message):
        TiTok.from_pretrained(tmp_path / "weights.bin", golden.config("titok_tiny_legacy"))


def test_folders_that_are_no_titok(tmp_path, folder):
    with pytest.raises(ValueError, match="nowhere.* cannot be read"):
        TiTok.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere is neither a folder nor a file"):
        MaskGITVQGAN.from_pretrained(tmp_path / "nowhere")
    os.remove(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no weights; expected model.safetensors or pytorch_model.bin"):
        TiTok.from_pretrained(folder)
    for text, message in [
        ('{"model_type": "qwen3"}', r"config\.json: not a TiTok config: .* \(its keys: model_type\)"),
        ("[]", "holds a list, expected a json object"),
        ("{", "is not valid json"),
    ]:
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            TiTok.from_pretrained(folder)
