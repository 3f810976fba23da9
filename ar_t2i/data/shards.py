"""Captioned pictures from wherever they lie: webdataset tars, a folder, a table.

    sources --expand_sources--> [Shard, ...] --samples()--> Sample, Sample, ...

Made for three readers: preprocessing (both), vocabulary training (captions alone, no picture is read) and image
tokenizer training (pictures alone). Nothing is decoded here.
"""

import glob
import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ar_t2i.data.folders import FolderShard, folder_shards
from ar_t2i.data.sample import Sample
from ar_t2i.data.tables import TABLE_SUFFIXES, TableShard, table_shards
from ar_t2i.data.tar import TarShard, is_local

Shard = TarShard | FolderShard | TableShard

ROWS_PER_SHARD = 1000
"""Rows of a folder or a table in one shard; parts that are finished are known by it, so it does not change."""


def expand_sources(
    sources: Sequence[str],
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> list[Shard]:
    """The shards that `sources` name, sorted by name, so that the order of the arguments does not matter.

    Args:
        sources: paths or urls of tars, with braces (`a-{0000..0007}.tar`) and, for paths, wildcards; `pipe:COMMAND`; a
            folder of tars, of pictures with text files, or with a metadata table; a csv, tsv, jsonl or parquet file.
        image_column: column of the picture's path in tables; None guesses.
        caption_column: column of the caption in tables and key of it in a tar's json files; None guesses.
        rows_per_shard: folders and tables are cut into shards of this many rows.

    Raises:
        ValueError: a source that matches nothing or holds nothing, or two shards of one name.
    """
    shards: list[Shard] = []
    for place in (place for source in sources for place in _places(source)):
        if not is_local(place):
            shards.append(TarShard(name=_url_name(place), url=place, fingerprint=None, caption_column=caption_column))
            continue
        path = Path(place)
        if path.is_dir():
            shards.extend(_folder(path, image_column, caption_column, rows_per_shard))
        elif path.suffix in TABLE_SUFFIXES:
            shards.extend(_table(path, image_column, caption_column, rows_per_shard))
        else:
            shards.append(_tar(path, caption_column))
    shards.sort(key=lambda shard: shard.name)
    for first, second in zip(shards, shards[1:], strict=False):
        if first.name == second.name:
            raise ValueError(
                f"two shards are called {first.name!r}: the same source twice, or two folders of one name; "
                "name each source once, and rename one of two folders"
            )
    return shards


def iterate_samples(shard: Shard, images: bool = True, captions: bool = True) -> Iterator[Sample]:
    """The samples of a shard in a fixed order; damage costs the sample that it hits, and comes as one with a reason.

    Args:
        shard: from `expand_sources`.
        images: read the picture files; without, a sample needs none.
        captions: read the captions; without, a sample needs none.

    Raises:
        UnreadableShard: the source cannot be opened, or a download fails.
        ValueError: a table without a column of that kind.
    """
    return shard.samples(images, captions)


def _places(source: str) -> list[str]:
    """The paths or urls that one source names."""
    from braceexpand import braceexpand

    source = source.removeprefix("file://")
    if is_local(source) and os.path.exists(source):
        return [source]
    try:
        patterns = list(braceexpand(source, escape=False))
    except ValueError as error:
        raise ValueError(f"source {source!r} has unbalanced braces; write a-{{0000..0007}}.tar") from error
    if not is_local(source):
        return [_openable(url) for url in patterns]
    places = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            of = "" if pattern == source else f" of {source!r}"
            kinds = "a tar, a folder, or a csv, tsv, jsonl or parquet file"
            raise ValueError(f"no file matches {pattern!r}{of}; expected {kinds}")
        places.extend(found)
    return places


def _openable(url: str) -> str:
    from webdataset.gopen import gopen_schemes

    scheme = url.partition(":")[0]
    if scheme == "s3":  # webdataset has no opener of its own for it
        return f"pipe:aws s3 cp {shlex.quote(url)} -"
    if scheme not in gopen_schemes:
        known = ", ".join(sorted(set(gopen_schemes) - {"__default__"} | {"s3"}))
        raise ValueError(f"source {url!r}: cannot open {scheme}: urls; known are {known}")
    return url


def _folder(path: Path, image_column: str | None, caption_column: str | None, rows: int) -> Iterator[Shard]:
    tars = sorted(path.glob("*.tar"))
    tables = [path / f"metadata{suffix}" for suffix in TABLE_SUFFIXES if (path / f"metadata{suffix}").exists()]
    if tars:
        yield from (_tar(tar, caption_column) for tar in tars)
    elif tables:
        yield from _table(tables[0], image_column, caption_column, rows, inside=True)
    else:
        shards = list(folder_shards(path, _name(path), rows))
        if not shards:
            raise ValueError(f"the folder {str(path)!r} holds no pictures, no tars and no metadata.csv")
        yield from shards


def _table(
    path: Path, image_column: str | None, caption_column: str | None, rows: int, inside: bool = False
) -> list[TableShard]:
    shards = list(table_shards(path, _name(path), image_column, caption_column, rows, inside))
    if not shards:
        raise ValueError(f"the table {str(path)!r} holds no rows")
    return shards


def _tar(path: Path, caption_column: str | None) -> TarShard:
    status = path.stat()
    fingerprint = f"{status.st_size}-{status.st_mtime_ns}"
    return TarShard(name=_name(path), url=str(path), fingerprint=fingerprint, caption_column=caption_column)


def _name(path: Path) -> str:
    """Last two parts of a path, those of its bytes that are no text as they can be written down and shown."""
    return "/".join(path.absolute().parts[-2:]).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _url_name(url: str) -> str:
    """Last two parts of the path, without a query: a published manifest must not hold keys and tokens."""
    words = re.split(r"[\s'\"]+", url.removeprefix("pipe:")) if url.startswith("pipe:") else [url]
    for word in reversed(words):
        path = urlsplit(word).path
        if ".tar" in path:
            return "/".join(path.strip("/").split("/")[-2:])
    return "pipe-" + hashlib.sha256(url.encode()).hexdigest()[:16]
