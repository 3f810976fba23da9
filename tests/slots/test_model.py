import json

import pytest
import torch

from ar_t2i.image_tokenizer import load_image_tokenizer
from ar_t2i.slots import SlotConfig, SlotTokenizer

TINY = SlotConfig(
    image_size=64,
    num_codes=4,
    codebook_size=32,
    code_dim=4,
    stage_widths=(8, 8, 8, 8),
    feature_channels=8,
    regions=(2, 1),
    mixer_width=16,
    unmixer_width=16,
)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return SlotTokenizer(TINY).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_pictures_to_codes_and_back(tokenizer, pixels):
    codes = tokenizer.encode(pixels)
    assert codes.shape == (6, 4) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 32
    assert len(codes.unique()) > 4, "pictures of noise should not all have the same codes"
    painted = tokenizer.decode(codes)
    assert painted.shape == pixels.shape and painted.dtype == torch.float32
    assert 0 <= painted.min() and painted.max() <= 1


def test_codes_do_not_depend_on_the_batch(tokenizer, pixels):
    together = tokenizer.encode(pixels)
    alone = torch.cat([tokenizer.encode(picture[None]) for picture in pixels])
    assert torch.equal(together, alone)


def test_pictures_do_not_depend_on_the_batch(tokenizer):
    codes = torch.randint(32, (5, 4), generator=torch.Generator().manual_seed(2))
    alone = torch.cat([tokenizer.decode(row[None]) for row in codes])
    torch.testing.assert_close(tokenizer.decode(codes), alone, atol=1e-5, rtol=0)


def test_slots_come_from_their_regions_the_first_of_each_first(tokenizer):
    features_BCHW = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(2))
    changed_BCHW = features_BCHW.clone()
    changed_BCHW[:, :, 1] += 1  # the lower row
    with torch.no_grad():
        before, after = tokenizer.slots(features_BCHW.flatten(1)), tokenizer.slots(changed_BCHW.flatten(1))
    assert (before == after).all(-1).tolist() == [[True, False, True, False]]


def test_codes_are_searched_in_float32_under_autocast_too(tokenizer):
    slots = torch.nn.functional.normalize(torch.randn(200, 4, 4, generator=torch.Generator().manual_seed(5)), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = tokenizer.nearest(slots)
    assert torch.equal(found, (slots @ tokenizer.codebook_KD.T).argmax(-1))


def test_no_pictures_give_no_codes(tokenizer, pixels):
    codes = tokenizer.encode(pixels[:0])
    assert codes.shape == (0, 4)
    assert tokenizer.decode(codes).shape == (0, 3, 64, 64)


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_is_the_same(tmp_path, pixels, half):
    torch.manual_seed(3)
    tokenizer = SlotTokenizer(TINY).eval()
    if half:
        with torch.no_grad():
            for tensor in tokenizer.state_dict().values():
                tensor.copy_(tensor.half().float())
    tokenizer.save_pretrained(tmp_path)
    numbers = sum(tensor.numel() for tensor in tokenizer.state_dict().values())
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert stored < 2 * numbers + 10_000 if half else stored > 3 * numbers, (
        "float16 where, and only where, it is exact"
    )
    loaded = load_image_tokenizer(tmp_path)
    assert isinstance(loaded, SlotTokenizer)
    assert loaded.config == TINY
    assert loaded.fingerprint == tokenizer.fingerprint
    codes = tokenizer.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_the_fingerprint_follows_weights_and_config(tokenizer):
    other = SlotTokenizer(TINY)
    other.load_state_dict(tokenizer.state_dict())
    assert other.fingerprint == tokenizer.fingerprint
    with torch.no_grad():
        other.codebook_KD[0, 0] += 1e-3
    assert other.fingerprint != tokenizer.fingerprint
    before = other.fingerprint
    assert other.half().fingerprint != before


@pytest.mark.parametrize("code", [-1, 32, 4096])
def test_a_code_out_of_range_is_refused(tokenizer, code):
    codes = torch.zeros(2, 4, dtype=torch.int64)
    codes[1, 2] = code
    with pytest.raises(ValueError, match=rf"{code}.*0\.\.31"):
        tokenizer.decode(codes)


@pytest.mark.parametrize(
    "codes", [torch.zeros(2, 5, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), torch.zeros(2, 4)]
)
def test_codes_of_another_shape_or_type_are_refused(tokenizer, codes):
    with pytest.raises(ValueError, match="expected"):
        tokenizer.decode(codes)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, float("nan")])
def test_pixels_out_of_range_are_refused(tokenizer, value):
    pixels = torch.full((1, 3, 64, 64), 0.5)
    pixels[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match=r"expected float in \[0, 1\]"):
        tokenizer.encode(pixels)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(1, 3, 32, 64), torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
)
def test_pixels_of_another_shape_or_type_are_refused(tokenizer, pixels):
    with pytest.raises(ValueError, match="expected"):
        tokenizer.encode(pixels)


def test_damaged_folders_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no slot tokenizer"):
        SlotTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mixer_width": 17}))
    with pytest.raises(ValueError, match="do not fit"):
        SlotTokenizer.from_pretrained(tmp_path)
    older = {name: value for name, value in config.items() if name != "regions"}
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match="does not tell regions: another version"):
        SlotTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(ValueError, match="unknown option"):
        SlotTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no slot tokenizer"):
        SlotTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": 100},
        {"stage_widths": (8, 8)},
        {"num_codes": 0},
        {"codebook_size": 1},
        {"code_dim": 100},
        {"regions": (3, 1)},
        {"num_codes": 30},
    ],
)
def test_sizes_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SlotConfig(**values)
