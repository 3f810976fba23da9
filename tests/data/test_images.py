"""Pictures of every kind come out as a person would expect, or are dropped with the right reason."""

import hashlib
import io
import struct
import warnings
import zlib
from importlib.resources import files as files_of_package
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ar_t2i.data.decode import Decoder
from ar_t2i.data.encode import Encoder
from ar_t2i.data.images import ImageLimits, prepare, prepare_many
from ar_t2i.data.sample import Reason, Sample
from ar_t2i.data.shards import expand_sources, iterate_samples
from ar_t2i.image_tokenizer import load_image_tokenizer

GOLDEN = Path(__file__).parent / "golden"
# width, height: sha256 of what torchvision 0.28.0 makes of `arithmetic(width, height)`
# by Resize(256, InterpolationMode.BICUBIC) and CenterCrop(256), with Pillow 13.0.0
TORCHVISION = {
    (300, 201): "5903f698541a7f66",
    (201, 300): "a0732c92257f47a6",
    (256, 400): "a34c4e59b2e9b82a",
    (512, 512): "e641fa76afdc1963",
    (97, 133): "cd2a88e50f73a620",
    (1025, 770): "7ddd06bf978539a8",
    (700, 257): "cb3168ff171939d3",
    (40, 41): "d76317dbc44aead2",
}


def arithmetic(width: int, height: int) -> np.ndarray:
    y, x, c = np.mgrid[:height, :width, :3]
    return ((x * x * 7 + y * y * 13 + x * y * (3 + c) + c * 71) % 251).astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def plain(color, mode="RGB", size=(300, 260)) -> Image.Image:
    return Image.new(mode, size, color)


def good(data: bytes, **options) -> np.ndarray:
    """The square, after a check of the promise about it."""
    square = prepare(data, **options)
    assert isinstance(square, np.ndarray), square
    size = options.get("size", 256)
    assert square.shape == (size, size, 3) and square.dtype == np.uint8
    return square


def close(square: np.ndarray, color, tolerance=4) -> bool:
    return bool((np.abs(square.astype(int) - np.array(color)) <= tolerance).all())


def test_center_rule_is_torchvisions():
    checked = 0
    for (width, height), expected in TORCHVISION.items():
        square = good(encoded(arithmetic(width, height)))
        assert hashlib.sha256(square.tobytes()).hexdigest()[:16] == expected, (width, height)
        checked += 1
    assert checked == 8


@pytest.mark.parametrize("name", ["up", "wide"])
def test_adm_rule_equals_the_original(name):
    square = good((GOLDEN / f"adm_{name}_input.png").read_bytes(), crop="adm")
    assert (square == np.asarray(Image.open(GOLDEN / f"adm_{name}_output.png"))).all()


def test_adm_rule_equals_the_original_on_all_fixtures(shared):
    fixtures = load_file(shared / "golden" / "titok" / "adm_center_crop_io.safetensors")
    checked = 0
    for name, expected in fixtures.items():
        case, _, kind = name.partition(".")
        if kind.startswith("output_hwc_"):
            size = int(kind.removeprefix("output_hwc_"))
            square = good(encoded(fixtures[f"{case}.input_hwc"]), size=size, crop="adm")
            assert (square == expected).all(), name
            checked += 1
    assert checked == 4


def test_adm_halving_is_a_mean_along_each_axis():
    picture = arithmetic(600, 520)
    half = (picture.reshape(520, 300, 2, 3).astype(int).sum(2) + 1) // 2
    half = (half.reshape(260, 2, 300, 3).sum(1) + 1) // 2
    expected = good(encoded(half.astype(np.uint8)), crop="adm")
    assert (good(encoded(picture), crop="adm") == expected).all()


def test_a_square_of_the_right_size_is_left_alone():
    picture = arithmetic(256, 256)
    for crop in ("center", "adm"):
        assert (good(encoded(picture), crop=crop) == picture).all()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """As smooth and as noisy as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("crop", ["center", "adm"])
def test_fast_pixels_are_the_exact_ones_but_for_rounding(crop):
    sizes = [
        (500, 375),
        (375, 500),
        (300, 201),
        (97, 133),
        (1024, 768),
        (1025, 770),
        (700, 257),
        (257, 5000),
        (40, 41),
    ]
    for width, height in sizes:
        for data in (encoded(photo(width, height), "JPEG", quality=90), encoded(arithmetic(width, height))):
            exact, fast = (good(data, crop=crop, pixels=pixels).astype(int) for pixels in ("exact", "fast"))
            apart = np.abs(exact - fast)
            assert apart.max() <= 2 and (apart > 0).mean() < 0.02, (width, height, apart.max(), (apart > 0).mean())
    assert len(sizes) == 9
    same = arithmetic(256, 256)
    assert (good(encoded(same), crop=crop, pixels="fast") == same).all()


def test_fast_pixels_give_the_codes_of_exact_ones_on_photographs(shared):
    """Each code of the tokenizer that comes with the package stands for a part of the picture; few may turn over."""
    tar = shared / "data" / "photos" / "photos-validation-0000.tar"
    if not tar.exists():
        pytest.skip("no photographs")
    files = [sample.image for sample in iterate_samples(expand_sources([str(tar)])[0]) if sample.image][:48]
    encode = Encoder(load_image_tokenizer(files_of_package("ar_t2i") / "bundle" / "image_tokenizer"), "cpu", "float32")
    exact, fast = (encode([good(data, pixels=pixels) for data in files]) for pixels in ("exact", "fast"))
    assert exact.size == 48 * 32 and (exact == fast).mean() > 0.99


GREY_RAMP = np.linspace(0, 65535, 256 * 256).reshape(256, 256).astype(np.uint16)
HALF = Image.merge("RGBA", [*plain((200, 0, 0)).split(), Image.new("L", (300, 260), 128)])
PALETTE = Image.new("P", (300, 260), 1)
PALETTE.putpalette([0, 0, 0, 10, 200, 30])
CLEAR_PALETTE = PALETTE.copy()
CLEAR_PALETTE.info["transparency"] = 1

COLORS = {
    "jpeg": (encoded(plain((10, 200, 30)), "JPEG", quality=95), (10, 200, 30)),
    "webp": (encoded(plain((10, 200, 30)), "WEBP", lossless=True), (10, 200, 30)),
    "grey": (encoded(plain(77, "L")), (77, 77, 77)),
    "one bit": (encoded(plain(1, "1")), (255, 255, 255)),
    "grey with alpha": (encoded(plain((0, 128), "LA")), (127, 127, 127)),
    "palette": (encoded(PALETTE), (10, 200, 30)),
    "palette, transparent": (encoded(CLEAR_PALETTE), (255, 255, 255)),
    "half transparent": (encoded(HALF), (227, 127, 127)),
    "wholly transparent": (encoded(plain((9, 9, 9, 0), "RGBA")), (255, 255, 255)),
    "rgb with a transparent color": (encoded(plain((9, 9, 9)), transparency=(9, 9, 9)), (255, 255, 255)),
    "cmyk jpeg, inverted as Adobe does": (encoded(plain((0, 255, 255, 0), "CMYK"), "JPEG", quality=95), (255, 0, 0)),
    "cmyk tiff": (encoded(plain((0, 255, 255, 0), "CMYK"), "TIFF"), (255, 0, 0)),
    "ycbcr jpeg": (encoded(plain((81, 90, 240), "YCbCr"), "JPEG", quality=95), (238, 14, 14)),
    "16 bit grey": (encoded(np.full((256, 256), 128 * 257, np.uint16)), (128, 128, 128)),
    "16 bit tiff, big endian": (
        encoded(Image.frombytes("I;16B", (256, 256), (b"\x40\x40" * 256 * 256)), "TIFF"), (64, 64, 64)),
    "16 bit ppm": (b"P5 256 256 65535\n" + b"\x80\x80" * 256 * 256, (128, 128, 128)),
    "gif": (encoded(PALETTE, "GIF"), (10, 200, 30)),
    "animated gif": (
        encoded(plain((200, 0, 0)), "GIF", save_all=True, append_images=[plain((0, 0, 200))]), (200, 0, 0)),
    "animated webp": (
        encoded(plain((200, 0, 0)), "WEBP", lossless=True, save_all=True, append_images=[plain((0, 0, 200))]),
        (200, 0, 0)),
    "8 pixels": (encoded(plain((10, 200, 30), size=(8, 9))), (10, 200, 30)),
    "20 times as wide": (encoded(plain((10, 200, 30), size=(400, 20))), (10, 200, 30)),
    "bmp": (encoded(plain((10, 200, 30)), "BMP"), (10, 200, 30)),
    "broken exif": (encoded(plain((10, 200, 30)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), (10, 200, 30)),
}  # fmt: skip


@pytest.mark.parametrize("name", COLORS)
def test_pixels_of_every_kind(name):
    data, color = COLORS[name]
    assert close(good(data), color)


def test_16_bit_grey_is_scaled_not_clipped():
    square = good(encoded(GREY_RAMP))
    assert (square[..., 0] == (GREY_RAMP.astype(int) + 128) // 257).all()
    assert len(np.unique(square)) == 256


def test_exif_orientation_turns_the_picture_upright():
    upright = np.zeros((256, 256, 3), np.uint8)
    upright[:128] = (255, 0, 0)
    stored = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        square = good(encoded(np.ascontiguousarray(pixels), "JPEG", quality=95, exif=exif))
        assert close(square[:120], (254, 0, 0)) and close(square[136:], (0, 0, 0)), orientation
    assert len(stored) == 4


def header_of_a_png(width: int, height: int) -> bytes:
    """A PNG that promises much and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data))
    return b"\x89PNG\r\n\x1a\n" + chunks


JPEG = encoded(arithmetic(300, 260), "JPEG")
DROPPED = {
    "zero bytes": (b"", Reason.IMAGE_EMPTY),
    "text": (b"<html>404 not found</html>", Reason.NOT_AN_IMAGE),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="300" height="300"/>', Reason.NOT_AN_IMAGE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n%%EndComments\n", Reason.NOT_AN_IMAGE),
    "jpeg cut in half": (JPEG[: len(JPEG) // 2], Reason.IMAGE_BROKEN),
    "jpeg cut in the header": (JPEG[:20], Reason.NOT_AN_IMAGE),
    "png cut": (encoded(arithmetic(300, 260))[:5000], Reason.IMAGE_BROKEN),
    "gif cut": (encoded(PALETTE, "GIF")[:60], Reason.IMAGE_BROKEN),
    "webp cut": (encoded(arithmetic(300, 260), "WEBP")[:400], Reason.IMAGE_BROKEN),
    "a promise of 30,000 x 30,000": (header_of_a_png(30_000, 30_000), Reason.IMAGE_TOO_LARGE),
    "above the limit by one row": (header_of_a_png(10_000, 18_001), Reason.IMAGE_TOO_LARGE),
    "one pixel wide": (encoded(plain(1, "L", (1, 300))), Reason.IMAGE_TOO_SMALL),
    "one pixel": (encoded(plain(1, "L", (1, 1))), Reason.IMAGE_TOO_SMALL),
    "7 pixels": (encoded(plain(1, "L", (7, 7))), Reason.IMAGE_TOO_SMALL),
    "more than 20 times as wide": (encoded(plain(1, "L", (201, 10))), Reason.IMAGE_TOO_LONG),
    "floats": (encoded(plain(0.5, "F"), "TIFF"), Reason.UNSUPPORTED_PIXELS),
    "32 bit integers": (encoded(plain(70_000, "I"), "TIFF"), Reason.UNSUPPORTED_PIXELS),
    "negative integers": (encoded(plain(-1, "I"), "TIFF"), Reason.UNSUPPORTED_PIXELS),
}


@pytest.mark.parametrize("name", DROPPED)
def test_what_is_no_picture_is_dropped_with_its_reason(name):
    data, reason = DROPPED[name]
    assert prepare(data) is reason


def test_every_byte_cut_off_is_survived():
    rng, outcomes = np.random.default_rng(0), set()
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(arithmetic(40, 30), kind)
        for cut in rng.integers(0, len(whole), 40):
            outcomes.add(type(prepare(whole[:cut])))
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 5):
                damaged[place] = rng.integers(256)
            outcomes.add(type(prepare(bytes(damaged))))
    assert outcomes == {Reason, np.ndarray}


def test_limits_are_options():
    big = encoded(plain(1, "L", (200, 100)))
    assert prepare(big, limits=ImageLimits(max_pixels=19_999)) is Reason.IMAGE_TOO_LARGE
    assert isinstance(prepare(big, limits=ImageLimits(max_pixels=20_000)), np.ndarray)
    assert prepare(big, limits=ImageLimits(min_edge=101)) is Reason.IMAGE_TOO_SMALL
    assert prepare(big, limits=ImageLimits(max_aspect=1.5)) is Reason.IMAGE_TOO_LONG
    thin = encoded(plain(1, "L", (300, 2)))
    assert isinstance(prepare(thin, limits=ImageLimits(min_edge=1, max_aspect=1000)), np.ndarray)
    for wrong in ({"max_pixels": 0}, {"min_edge": 0}, {"max_aspect": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ImageLimits(**wrong)


def test_pixels_above_pils_own_limit_are_read_when_allowed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(prepare(encoded(arithmetic(300, 260))), np.ndarray)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_many_are_one_by_one():
    files = [COLORS["jpeg"][0], b"", COLORS["gif"][0]]
    first, second, third = prepare_many(files, 64, "center")
    assert second is Reason.IMAGE_EMPTY
    assert (first == prepare(files[0], 64)).all() and (third == prepare(files[2], 64)).all()


@pytest.mark.parametrize("pixels", ["exact", "fast"])
def test_workers_hand_over_what_is_prepared(pixels):
    files = [encoded(photo(90, 70, seed), "JPEG") for seed in range(20)] + [b"", COLORS["gif"][0]]
    samples = [Sample(key=str(number), image=data, caption="a caption") for number, data in enumerate(files)]
    expected = prepare_many(files, 32, "adm", pixels=pixels)
    for workers in (0, 2):
        with Decoder(workers, 32, "adm", pixels=pixels) as decode:
            found = [item.reason or item.picture for _, items in decode([(0, samples)]) for item in items]
        for one, other in zip(found, expected, strict=True):
            assert one is other if isinstance(other, Reason) else (one == other).all()
