"""Tables of pictures and captions, cut into shards of a fixed number of rows.

A shard of a csv, tsv or jsonl file is a byte offset and a number of rows, so that any shard is read without those
before it. Its fingerprint is a hash of its own rows, so that a table may grow at its end.

A table that was named says itself where its pictures lie; that of a folder, which may come from anywhere, names files
of this folder alone. A web address is never opened.
"""

import codecs
import csv
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ar_t2i.data.folders import with_files
from ar_t2i.data.sample import MAX_FILE_BYTES, MAX_TEXT_BYTES, Reason, Sample, UnreadableShard
from ar_t2i.data.tar import CAPTION_COLUMNS, guess_column
from ar_t2i.untrusted import check_file, leads_out, parse_json, printable

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("file_name", "filename", "path", "file", "image", "image_path", "file_path", "filepath", "img")
"""Names of the picture's column in tables, first match first, in any case."""


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """Some rows of a csv, tsv, jsonl or parquet file; picture paths are relative to the file's folder."""

    name: str
    path: str
    image_column: str | None
    caption_column: str | None
    columns: tuple[str, ...]
    offset: int
    """Where the rows start: a byte of a text file, a row of a parquet file."""
    rows: int
    inside: bool = False
    """Only pictures inside of the file's folder are read."""
    fingerprint: str
    """Of the rows themselves; a parquet file's is that of its footer, which tells what its columns hold."""

    def samples(self, images: bool = True, captions: bool = True) -> Iterator[Sample]:
        """The samples in the table's order; see `shards.iterate_samples`."""
        wanted = ((images, self.image_column, "picture", "--image-column", IMAGE_COLUMNS),
                  (captions, self.caption_column, "caption", "--caption-column", CAPTION_COLUMNS))  # fmt: skip
        for needed, column, what, option, usual in wanted:
            if needed and column is None:
                raise ValueError(
                    f"{self.path} has no {what} column among {list(self.columns[:50])}: name it with {option} "
                    f"(known without: {', '.join(usual)})"
                )
        try:
            for i, row in enumerate(_rows_from(self)):
                yield self._sample(i, row, images, captions)
        except OSError as error:
            raise UnreadableShard(f"cannot read {self.path}: {error}") from error

    def checksum(self) -> None:
        """None: the fingerprint already is one of contents."""

    def _sample(self, index: int, row: dict[str, Any] | None, images: bool, captions: bool) -> Sample:
        key, done = f"{self.name}-{index:06d}", (index + 1) / self.rows
        if row is None:
            return Sample(key=key, reason=Reason.DAMAGED_ROW, done=done)
        image = row.get(self.image_column) if self.image_column else None
        caption = row.get(self.caption_column) if self.caption_column and captions else None
        content = None
        if isinstance(image, dict):  # how the datasets library stores pictures in parquet
            image, content = image.get("path"), image.get("bytes")
        if isinstance(image, bytes):
            image, content = None, image
        if isinstance(image, str) and image:
            key = os.path.splitext(image)[0].encode("utf-8", "replace").decode()
        reason = (
            Reason.NO_IMAGE if images and not image and content is None
            else Reason.URL if images and content is None and "://" in str(image)
            else Reason.OUTSIDE if images and content is None and self.inside and leads_out(str(image))
            else Reason.FILE_TOO_LARGE if images and content is not None and len(content) > MAX_FILE_BYTES
            else Reason.NO_CAPTION if captions and not isinstance(caption, str | bytes)
            else None
        )  # fmt: skip
        if not images or content is not None or reason:
            if reason:
                return Sample(key=key, reason=reason, done=done)
            return Sample(key=key, image=content if images else None, caption=caption, done=done)
        return with_files(key, Path(self.path).parent / str(image), lambda: caption, None, done)


def table_shards(
    path: Path, name: str, image_column: str | None, caption_column: str | None, rows: int, inside: bool = False
) -> Iterator[TableShard]:
    """Cut a table into shards of `rows` rows; it is read through once, without its pictures.

    Args:
        path: the table.
        name: of the shards, before the number.
        image_column: column of the picture, None guesses.
        caption_column: column of the caption, None guesses.
        rows: of a shard.
        inside: read no picture outside of the table's folder.

    Raises:
        ValueError: a file that is no such table, or a named column that it lacks.
    """
    columns = _columns(path)
    for column in (image_column, caption_column):
        if column is not None and column not in columns:
            raise ValueError(f"{path} has no column {column!r}; it has {list(columns[:50])}")
    image = image_column or guess_column(list(columns), IMAGE_COLUMNS)
    caption = caption_column or guess_column(list(columns), CAPTION_COLUMNS)
    for number, (offset, count, fingerprint) in enumerate(_cuts(path, rows)):
        yield TableShard(
            name=f"{name}#{number:05d}", path=str(path), image_column=image, caption_column=caption, columns=columns,
            offset=offset, rows=count, inside=inside, fingerprint=fingerprint,
        )  # fmt: skip


def _columns(path: Path) -> tuple[str, ...]:
    try:
        if path.suffix == ".parquet":
            return tuple(_parquet(path).schema_arrow.names)
        with open(path, "rb") as file:
            if path.suffix == ".jsonl":
                first = next((row for row in _json_rows(_Lines(file)) if row is not None), {})
                return tuple(first)
            return tuple(next(csv.reader(_Lines(file), delimiter=_delimiter(path)), ()))
    except OSError as error:
        raise ValueError(f"cannot read the table {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no readable table: {error}") from error


def _cuts(path: Path, rows: int) -> Iterator[tuple[int, int, str]]:
    """Offset, number of rows and fingerprint of each shard."""
    if path.suffix == ".parquet":
        total, footer = _parquet(path).metadata.num_rows, _footer(path)
        if total > path.stat().st_size:  # rows of pictures differ, and need a byte each
            raise ValueError(f"{path} claims {total:,} rows, more than it has bytes: it is damaged")
        for start in range(0, total, rows):
            yield start, min(rows, total - start), f"{footer}-{start}"
        return
    with open(path, "rb") as file:
        lines = _Lines(file)
        records = _text_rows(path, lines, _header(path, lines))
        while True:
            start = lines.offset
            lines.digest = hashlib.sha256()
            count = sum(1 for _ in islice(records, rows))
            if not count:
                return
            yield start, count, lines.digest.hexdigest()


def _rows_from(shard: TableShard) -> Iterator[dict[str, Any] | None]:
    path = Path(shard.path)
    if path.suffix == ".parquet":
        yield from _parquet_rows(shard)
        return
    with open(path, "rb") as file:
        file.seek(shard.offset)
        yield from islice(_text_rows(path, _Lines(file), list(shard.columns)), shard.rows)


class _Lines:
    """Lines of a file as text, bytes that are no UTF-8 kept as surrogates; counts and hashes what went by.

    Of a line that is too long the rest is passed over; a row of lines that are too many raises csv.Error.
    """

    def __init__(self, file: IO[bytes]):
        self.file, self.offset, self.digest = file, file.tell(), hashlib.sha256()
        self.row_start = self.offset

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._piece()
        if not line:
            raise StopIteration
        text = line.removeprefix(codecs.BOM_UTF8) if self.offset == len(line) else line
        rest = line
        while len(rest) == MAX_TEXT_BYTES and not rest.endswith(b"\n"):
            rest = self._piece()
        if self.offset - self.row_start > 2 * MAX_TEXT_BYTES and rest is line:
            self.row_start = self.offset
            raise csv.Error("a row without end")
        return text.decode("utf-8", "surrogateescape")

    def _piece(self) -> bytes:
        line = self.file.readline(MAX_TEXT_BYTES)
        self.digest.update(line)
        self.offset += len(line)
        return line


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def _header(path: Path, lines: _Lines) -> list[str]:
    return [] if path.suffix == ".jsonl" else next(csv.reader(lines, delimiter=_delimiter(path)), [])


def _text_rows(path: Path, lines: _Lines, columns: list[str]) -> Iterator[dict[str, Any] | None]:
    return _json_rows(lines) if path.suffix == ".jsonl" else _csv_rows(lines, columns, _delimiter(path))


def _csv_rows(lines: _Lines, columns: list[str], delimiter: str) -> Iterator[dict[str, Any] | None]:
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.row_start = lines.offset
        try:
            values = next(reader, None)
        except csv.Error:  # a field beyond csv's limit, as after a quote that is never closed
            yield None
            continue
        if values is None:
            return
        if values:
            yield dict(zip(columns, values, strict=False)) if len(values) >= len(columns) else None


def _json_rows(lines: _Lines) -> Iterator[dict[str, Any] | None]:
    for line in lines:
        lines.row_start = lines.offset
        if line.strip():
            try:
                row = parse_json(line, "a row")
            except ValueError:
                row = None
            yield row


def _parquet(path: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_file(path, sys.maxsize)
        return pq.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException, MemoryError, RuntimeError) as error:  # RuntimeError: deep schemas
        raise ValueError(f"{path} is no readable parquet file: {printable(str(error))[:200]}") from error


def _footer(path: Path) -> str:
    """sha256 of a parquet file's footer, whose length stands before the last four bytes."""
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def _parquet_rows(shard: TableShard) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    file, position = _parquet(Path(shard.path)), 0
    columns = [column for column in (shard.image_column, shard.caption_column) if column]
    try:
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            first, last = max(shard.offset - position, 0), min(shard.offset + shard.rows - position, length)
            position += length
            if first >= last:
                continue
            batches = file.iter_batches(32, row_groups=[group], columns=columns)
            yield from islice((row for batch in batches for row in batch.to_pylist()), first, last)
    except (OSError, ValueError, pa.ArrowException, OverflowError, MemoryError) as error:
        raise UnreadableShard(f"cannot read {shard.path}: {printable(str(error))[:200]}") from error
