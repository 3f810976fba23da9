"""Any picture file to a square of RGB pixels by one of two published crop rules, or a reason why not.

PIL's plug-ins raise all kinds of errors on hostile files, so all that they do stands in one function, `_decode`.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ar_t2i.data.sample import Reason

CropRule = Literal["center", "adm"]
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""No others: PIL hands EPS to an interpreter, and some formats accept any bytes."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What is no picture to train on; decided from the header, before anything is decoded."""

    max_pixels: int = 180_000_000
    """Width times height above this is dropped: decoding takes 3 to 4 bytes of memory a pixel."""
    min_edge: int = 8
    """A shorter edge below this many pixels is dropped."""
    max_aspect: float = 20.0
    """A longer edge above this many times the shorter is dropped."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("max_pixels", 1), ("min_edge", 1), ("max_aspect", 1.0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")


DEFAULT_LIMITS = ImageLimits()
MOST_SCANNED = 16
"""Scans of a JPEG of the largest size, more of smaller ones; programs write about ten."""


def prepare(
    data: bytes, size: int = 256, crop: CropRule = "center", limits: ImageLimits = DEFAULT_LIMITS
) -> np.ndarray | Reason:
    """Decode, turn upright, lay over white, resize and crop.

    Args:
        data: the picture file.
        size: edge of the square, pixels.
        crop: "center" as torchvision's Resize(size, BICUBIC) and CenterCrop; "adm" as guided diffusion
            (arXiv 2105.05233) and the pretokenization script of 1d-tokenizer.
        limits: what is dropped unread.

    Returns:
        (size, size, 3) uint8 RGB, or the reason.
    """
    picture = _decode(data, limits)
    if isinstance(picture, Reason):
        return picture
    return _center_crop(picture, size) if crop == "center" else _adm_crop(picture, size)


def prepare_many(
    files: Sequence[bytes], size: int, crop: CropRule, limits: ImageLimits = DEFAULT_LIMITS
) -> list[np.ndarray | Reason]:
    """`prepare` over several files, the unit of work of a worker process."""
    return [prepare(data, size, crop, limits) for data in files]


def _center_crop(picture: Image.Image, size: int) -> np.ndarray:
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short != size:
        longer = int(size * long / short)
        picture = picture.resize((size, longer) if width <= height else (longer, size), Image.Resampling.BICUBIC)
    left, top = (round((edge - size) / 2) for edge in picture.size)
    return np.array(np.asarray(picture)[top : top + size, left : left + size])


def _adm_crop(picture: Image.Image, size: int) -> np.ndarray:
    while min(picture.size) >= 2 * size:
        width, height = picture.size
        picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
    width, height = picture.size
    scale = size / min(width, height)
    picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = ((edge - size) // 2 for edge in picture.size)
    return np.array(np.asarray(picture)[top : top + size, left : left + size])


def _decode(data: bytes, limits: ImageLimits) -> Image.Image | Reason:
    """The first frame in mode RGB, upright, or the reason."""
    if not data:
        return Reason.IMAGE_EMPTY
    try:
        with pixel_limit(limits.max_pixels), Image.open(io.BytesIO(data), formats=_formats()) as picture:
            too = _outside(picture.size, limits)
            if too is not None:
                return too
            if _scans(picture, data) * picture.width * picture.height > MOST_SCANNED * limits.max_pixels:
                return Reason.IMAGE_TOO_LARGE
            picture.load()
            return _rgb(ImageOps.exif_transpose(picture) if _turned(picture) else picture)
    except UnidentifiedImageError:
        return Reason.NOT_AN_IMAGE
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Reason.IMAGE_TOO_LARGE
    except Exception:  # a plug-in may raise anything on a damaged file: OSError, SyntaxError, struct.error, KeyError
        return Reason.IMAGE_BROKEN


def _scans(picture: Image.Image, data: bytes) -> int:
    """How often a decoder goes over all pixels: a progressive JPEG of some KB can ask for it thousands of times."""
    return data.count(b"\xff\xda") if picture.format in ("JPEG", "MPO") else 1


def _outside(size: tuple[int, int], limits: ImageLimits) -> Reason | None:
    short, long = min(size), max(size)
    if short * long > limits.max_pixels:
        return Reason.IMAGE_TOO_LARGE
    if short < limits.min_edge:
        return Reason.IMAGE_TOO_SMALL
    return Reason.IMAGE_TOO_LONG if long > limits.max_aspect * short else None


def _turned(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get(0x0112, 1) != 1  # the tag Orientation
    except Exception:  # broken EXIF is no reason to lose a good picture
        return False


def _rgb(picture: Image.Image) -> Image.Image | Reason:
    """Greyscale, palette, CMYK and the like to RGB; what is transparent shows white."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            return Reason.UNSUPPORTED_PIXELS
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")  # convert alone would clip
    if picture.mode == "F":
        return Reason.UNSUPPORTED_PIXELS
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


@contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """PIL's own check, which also looks at pictures inside pictures, set to our limit; others are noise."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
