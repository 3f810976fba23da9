"""Captions as text: what is accepted, and a stream of them that opens no picture."""

from collections.abc import Iterable, Iterator

from ar_t2i.data.sample import Reason
from ar_t2i.data.shards import Shard, iterate_samples

MAX_CAPTION_CHARS = 4096


def clean_caption(raw: bytes | str, max_chars: int = MAX_CAPTION_CHARS) -> str | Reason:
    """The caption without white space around it, or the reason why it is none.

    Args:
        raw: UTF-8 bytes, a byte-order mark allowed, or text.
        max_chars: longer captions are dropped, not cut.
    """
    if isinstance(raw, str):  # text from csv and json may carry undecodable bytes as lone surrogates
        raw = raw.encode("utf-8", "surrogatepass")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Reason.CAPTION_NOT_UTF8
    if "\0" in text:
        return Reason.CAPTION_HAS_NUL
    text = text.strip()
    if not text:
        return Reason.CAPTION_EMPTY
    return text if len(text) <= max_chars else Reason.CAPTION_TOO_LONG


def iterate_captions(shards: Iterable[Shard], max_chars: int = MAX_CAPTION_CHARS) -> Iterator[str]:
    """The good captions of many shards, in order, in constant memory; no picture is read.

    Raises:
        UnreadableShard: a shard cannot be opened.
    """
    for shard in shards:
        for sample in iterate_samples(shard, images=False):
            if sample.caption is not None:
                caption = clean_caption(sample.caption, max_chars)
                if not isinstance(caption, Reason):
                    yield caption
