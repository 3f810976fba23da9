"""The dataset card: README.md with the yaml that `datasets.load_dataset` and the Hub read.

What people write into the card stays: only the default config in the yaml and the text between two marks are ours. For
a folder with such a yaml the datasets library caches by the yaml alone, whatever becomes of the files. So the config
has a description that changes with the parts; without it people would go on with the rows of last time.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ar_t2i.config import build
from ar_t2i.data.parts import PartRecord, write_atomically
from ar_t2i.data.preview import PREVIEW, PREVIEW_BYTES, read_captions
from ar_t2i.hub.cards import plain, read_card, write_card_text
from ar_t2i.untrusted import printable, read_bytes, read_json, read_text

STEM = re.compile(r"(?P<split>\w+(?:\.\w+)*)-(?P<number>\d{5,7})-of-(?P<total>\d{5,7})", re.ASCII)
"""The name of a part, without its ending."""
BEGIN, END = "<!-- written by ar-t2i: begin -->", "<!-- written by ar-t2i: end -->"
HEADER = {"task_categories": ["text-to-image"], "tags": ["ar_t2i"]}
"""What the yaml of a new card says."""
TEMPLATE = """
# Captioned pictures as tokens

What the pictures are, where they come from and under which licence they may be used: please fill in, here and as
`license:` in the yaml above.
"""
"""The text of a new card, above the marked part."""
_MARKED = """{begin}
| split | rows | dropped | files | MB |
|---|---|---|---|---|
{table}

A row is a captioned picture of {image_size}x{image_size} pixels as {num_codes} codes of 0..{last_code}.

| column | |
|---|---|
| `__key__` | name of the sample in its source |
| `image_tokens` | the codes |
| `text_tokens` | ids of the caption |
| `text` | the caption |
| `data` | both as one sequence of tokens |
{preview}
## How it was made

By `ar-t2i preprocess` ({versions}) from {sources}.

- Pictures: shorter edge to {image_size} pixels, bicubic, crop rule `{crop}`, pixels `{pixels}`; the image tokenizer's
  fingerprint is `{image_tokenizer}`.
- Captions: the joint vocabulary's fingerprint is `{vocabulary}`.
- Left out: pictures of more than {max_pixels:,} pixels, with an edge under {min_edge} or longer than {max_aspect:g}
  times the shorter; captions of more than {max_caption_chars:,} characters; what could not be read.

`manifest/` tells for each part its source, its checksum, and what was dropped and why.
{end}"""
_PREVIEW = """
Some of its rows, decoded from their codes:

![rows, decoded from their codes]({name})

{captions}
"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card tells of manifest.json, which others may have written."""

    image_size: int
    """Pixels along the side of a picture."""
    num_codes: int
    """Codes of a picture."""
    codebook_size: int
    """Codes that there are."""
    image_tokenizer: str
    """Fingerprint."""
    vocabulary: str
    """Fingerprint."""
    crop: str
    """Crop rule."""
    pixels: str = "exact"
    """How near to the rule."""
    max_pixels: int
    """Of a picture."""
    min_edge: int
    """Pixels."""
    max_aspect: float
    """Longer edge by the shorter."""
    max_caption_chars: int
    """Of a caption."""
    versions: dict[str, str]
    """Of the software."""


def write_card(out: Path) -> None:
    """Make or update README.md from the manifest; does nothing while no part is finished.

    Raises:
        ValueError: the yaml of a README.md that is there cannot be read.
    """
    records = _records(out)
    if not records:
        return
    path, preview = out / "README.md", out / PREVIEW
    by_split: dict[str, list[PartRecord]] = {}
    for stem, record in records.items():
        by_split.setdefault(split_of(stem), []).append(record)
    files = {split: len(parts) for split, parts in by_split.items()}
    facts = read_json(out / "manifest.json")
    marked = describe(
        facts, by_split, files, read_captions(read_bytes(preview, PREVIEW_BYTES)) if preview.is_file() else ()
    )
    data_files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in in_order(by_split)]
    checksums = "".join(f"{stem} {record.sha256}\n" for stem, record in records.items())
    description = f"parts {hashlib.sha256(checksums.encode()).hexdigest()[:16]}"
    default = {"config_name": "default", "description": description, "data_files": data_files}
    if path.exists():
        header, body = read_card(read_text(path), str(path))
        header["configs"] = [default, *other_configs(header)]
    else:
        header, body = {**HEADER, "configs": [default]}, TEMPLATE
    write_atomically(path, write_card_text(header, with_marked(body, marked)))


def other_configs(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configs in a card's yaml that are not ours."""
    configs = header.get("configs")
    entries = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    return [entry for entry in entries if entry.get("config_name", "default") != "default"]


def describe(
    facts: Mapping[str, Any],
    records: Mapping[str, Sequence[PartRecord]],
    files: Mapping[str, int],
    captions: Sequence[str],
) -> str:
    """The marked part of a card: splits, columns, some rows, how it was made.

    Args:
        facts: the content of manifest.json.
        records: of all parts, by split.
        files: how many each split is stored in.
        captions: of the picture of some rows; none leaves it out.
    """
    lines = []
    for split in in_order(records):
        parts = records[split]
        dropped = sum(sum(part.dropped.values()) for part in parts)
        kept, size = sum(part.kept for part in parts), sum(part.bytes for part in parts)
        lines.append(f"| {split} | {kept:,} | {dropped:,} | {files[split]:,} | {size / 1e6:,.1f} |")
    listed = "\n".join(f"{number}. {plain(caption)}" for number, caption in enumerate(captions, 1))
    preview = _PREVIEW.format(name=PREVIEW, captions=listed) if captions else ""
    known = build(
        Facts, {field.name: facts[field.name] for field in fields(Facts) if field.name in facts}, "manifest: "
    )
    texts = {name: plain(value) for name, value in vars(known).items() if isinstance(value, str)}
    versions = ", ".join(f"{plain(name)} {plain(version)}" for name, version in known.versions.items())
    return _MARKED.format(
        begin=BEGIN, end=END, table="\n".join(lines), last_code=known.codebook_size - 1, preview=preview,
        sources=_sources([part.shard for parts in records.values() for part in parts]),
        **{**vars(known), **texts, "versions": versions},
    )  # fmt: skip


def with_marked(body: str, marked: str) -> str:
    """The text with its marked part replaced, or with one at its end."""
    start, end = body.find(BEGIN), body.find(END)
    if 0 <= start < end:
        return body[:start] + marked + body[end + len(END) :]
    return f"{body.rstrip()}\n\n{marked}\n"


def is_own_text(body: str) -> bool:
    """Whether people wrote into a card, outside of the marked part."""
    return with_marked(body, "").split() != with_marked(TEMPLATE, "").split()


def split_of(stem: str) -> str:
    """The split of train-00000-of-00012."""
    return stem.rsplit("-", 3)[0]


def in_order(splits: Collection[str]) -> list[str]:
    """Splits as people list them: train first."""
    order = {"train": 0, "validation": 1, "test": 2}
    return sorted(splits, key=lambda name: (order.get(name, 3), name))


def _records(out: Path) -> dict[str, PartRecord]:
    """Records of the finished parts, by the name of the part."""
    paths = [path for path in sorted((out / "manifest").glob("*-of-*.json")) if STEM.fullmatch(path.stem)]
    found = {path.stem: PartRecord.read(path) for path in paths}
    return {stem: record for stem, record in found.items() if record and (out / "data" / f"{stem}.parquet").exists()}


def _sources(names: Iterable[str]) -> str:
    """The input shards in a few words: the first and the last of each folder."""
    folders: dict[str, list[str]] = {}
    for name in sorted(printable(name).replace("`", "'").replace("<", "(") for name in names):
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    told = [
        f"`{shards[0]}`" if len(shards) == 1 else f"{len(shards):,} shards, `{shards[0]}` to `{shards[-1]}`"
        for shards in folders.values()
    ]
    return ", ".join(told[:10]) + (f" and {len(told) - 10} more folders" if len(told) > 10 else "")
