"""A captioned picture as a source gives it, and the reasons for which one is left out."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a sample is dropped; each is counted under its value in the manifest."""

    NO_IMAGE = "no-image"
    """A caption, and no picture beside it."""
    NO_CAPTION = "no-caption"
    """A picture, and no caption beside it."""
    MISSING_FILE = "missing-file"
    """A table names a file that is not there or cannot be opened."""
    URL = "url"
    """A table names a web address; nothing is downloaded here."""
    DAMAGED_TAR = "damaged-tar"
    """The tar is cut or overwritten at this place."""
    DAMAGED_ROW = "damaged-row"
    """A row of a table that cannot be read, or has too few columns."""
    OUTSIDE = "outside"
    """The metadata table of a folder names a file outside of that folder."""
    FILE_TOO_LARGE = "file-too-large"
    """A picture file above `MAX_FILE_BYTES`, or a caption's above `MAX_TEXT_BYTES`."""
    CAPTION_EMPTY = "caption-empty"
    """Nothing but white space."""
    CAPTION_NOT_UTF8 = "caption-not-utf8"
    """Bytes that are no UTF-8 text."""
    CAPTION_HAS_NUL = "caption-has-nul"
    """A NUL character: binary data or UTF-16."""
    CAPTION_TOO_LONG = "caption-too-long"
    """More characters than allowed."""
    IMAGE_EMPTY = "image-empty"
    """A file of zero bytes."""
    NOT_AN_IMAGE = "not-an-image"
    """A file in none of the formats that are read."""
    IMAGE_BROKEN = "image-broken"
    """A picture that is cut or damaged."""
    IMAGE_TOO_LARGE = "image-too-large"
    """More pixels than allowed, by its header; it is not decoded."""
    IMAGE_TOO_SMALL = "image-too-small"
    """A shorter edge below what is allowed."""
    IMAGE_TOO_LONG = "image-too-long"
    """The longer edge is too many times the shorter."""
    UNSUPPORTED_PIXELS = "unsupported-pixels"
    """Pixels without a known white: floats, or integers beyond 16 bits."""


MAX_FILE_BYTES = 512 * 1024**2
"""A larger picture file is dropped unread."""
MAX_TEXT_BYTES = 4 * 1024**2
"""A larger file of a caption is dropped unread, as is a line of a table; captions have some hundred bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One entry of a shard: a captioned picture, or the reason why there is none."""

    key: str
    """Name of the sample; not necessarily unique."""
    image: bytes | None = None
    """The picture file, None if not asked for or dropped."""
    caption: bytes | str | None = None
    """The caption as found, not yet checked (`captions.clean_caption`); None if not asked for or dropped."""
    reason: Reason | None = None
    """Why it is dropped, None for a good one."""
    done: float = 0.0
    """Part of the shard that lies behind this sample, 0 to 1; 0 where the length of the shard is unknown."""


class UnreadableShard(ValueError):
    """A shard that cannot be opened or read to its end: a missing file, a failed download. Another try may succeed."""
