"""One finished part of a tokenized dataset: a parquet file and the record that tells how it came about.

Both appear whole or not at all. The record is written first: a part without a record is then never a finished one,
and a record without its part is redone.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ar_t2i.config import build
from ar_t2i.data.sample import Reason
from ar_t2i.sequence import sequence_text
from ar_t2i.untrusted import printable, read_json

SCHEMA = pa.schema(
    [
        ("__key__", pa.string()),
        ("image_tokens", pa.list_(pa.int64())),
        ("text_tokens", pa.list_(pa.int64())),
        ("text", pa.string()),
        ("data", pa.string()),
    ]
)
"""The columns of the published dataset darshanmakwana/cc3m_tokenized."""
ROWS_PER_GROUP = 2_000
"""Rows of a parquet row group, about 2 MB: what a reader that wants few rows must decode, and a writer holds."""
MOST_EXAMPLES = 20
"""Keys of dropped samples that a record lists for each reason."""


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What is known about a finished part."""

    shard: str
    """Name of the input shard."""
    source: str | None
    """Fingerprint of the input shard, None where it has none."""
    checksum: str | None
    """Of the input shard's contents, None where its fingerprint is that already or it lies elsewhere."""
    sha256: str
    """Of the parquet file."""
    bytes: int
    """Of the parquet file."""
    kept: int
    """Rows."""
    dropped: dict[str, int]
    """Samples left out, by reason."""
    examples: dict[str, list[str]]
    """Keys of some of them, by reason."""
    arithmetic: str
    """Device and number format the codes were computed in, such as "cuda bfloat16"."""
    arrow_bytes: int = 0
    """Of the rows in memory, as the datasets library counts them; 0 where an older version wrote the part."""
    pushed: str = ""
    """The repository that holds the part, if it was deleted here after it had been pushed."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file, None where there is none or it cannot be read."""
        try:
            return cls.of(read_json(path), str(path))
        except (OSError, ValueError):
            return None

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> Self:
        """The record with these values, which others may have written (ValueError where they are of a wrong type)."""
        record = build(cls, values, f"{name}: ")
        if min(record.bytes, record.kept, record.arrow_bytes, *record.dropped.values()) < 0:
            raise ValueError(f"{name} counts less than nothing: it is damaged")
        return record

    def fits(self, path: Path) -> bool:
        """Whether the file at `path` is the part that was written."""
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256

    def write(self, path: Path) -> None:
        """Write the record."""
        write_atomically(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


@dataclass
class PartWriter:
    """Takes rows and drops of one part, in order; the file is temporary until `finish`."""

    path: Path
    arithmetic: str = ""
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    record: PartRecord | None = None
    _waiting: list[pa.RecordBatch] = field(default_factory=list)
    _file: pq.ParquetWriter | None = None

    def add(
        self, keys: Sequence[str], captions: Sequence[str], codes: np.ndarray, ids: Sequence[Sequence[int]]
    ) -> None:
        """Add rows: `codes` is (B, T) int64, the others have B entries."""
        rows = codes.tolist()
        sequences = [sequence_text(*pair) for pair in zip(captions, rows, strict=True)]
        columns = (keys, rows, ids, captions, sequences)
        self._waiting.append(pa.record_batch(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA))
        self.kept += len(keys)
        while sum(map(len, self._waiting)) >= ROWS_PER_GROUP:
            self._flush()

    def drop(self, key: str, reason: Reason) -> None:
        """Count a sample that is left out."""
        self.dropped[reason.value] += 1
        examples = self.examples.setdefault(reason.value, [])
        if len(examples) < MOST_EXAMPLES:
            examples.append(printable(key))

    def finish(self) -> tuple[str, int]:
        """Bring everything to the disk; returns sha256 and size of the file."""
        self._flush()
        self.close()
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest(), self.path.stat().st_size

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        if self._file is None:
            self._file = open_writer(self.path)
        rows = pa.Table.from_batches(self._waiting, SCHEMA).combine_chunks()  # so that bytes tell nothing of batches
        group, self._waiting = rows[:ROWS_PER_GROUP], rows[ROWS_PER_GROUP:].to_batches()
        if len(group):  # the datasets library stumbles over a row group without rows, not over a file without
            self._file.write_table(group)


@contextmanager
def new_part(
    path: Path, record_path: Path, shard: str, source: str | None, checksum: Callable[[], str | None]
) -> Iterator[PartWriter]:
    """Write a part; it appears with its record when the block ends well, and leaves nothing when it does not.

    Args:
        path: of the parquet file.
        record_path: of its record.
        shard: name of the input shard.
        source: fingerprint of the input shard.
        checksum: called at the end for that of the input shard's contents.

    Raises:
        ValueError: the disk is full or fails.
    """
    writer = PartWriter(temporary_of(path))
    try:
        yield writer
        sha256, size = writer.finish()
        writer.record = PartRecord(
            shard=shard, source=source, checksum=checksum(), sha256=sha256, bytes=size, kept=writer.kept,
            dropped=dict(sorted(writer.dropped.items())), examples=writer.examples, arithmetic=writer.arithmetic,
            arrow_bytes=arrow_bytes(writer.path),
        )  # fmt: skip
        writer.record.write(record_path)
        publish(writer.path, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}; finished parts are kept") from error
    finally:
        writer.close()
        writer.path.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    """Where a part lies while it is written."""
    return path.with_name(f".{path.name}.tmp")


def open_writer(path: Path) -> pq.ParquetWriter:
    """A parquet file of rows, with checksums of its pages for those who stream it."""
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_index=True, write_page_checksum=True)


def arrow_bytes(path: Path) -> int:
    """Bytes of a parquet file's rows in memory, as the datasets library counts them."""
    with pq.ParquetFile(path) as file:
        return sum(file.read_row_group(number).nbytes for number in range(file.num_row_groups))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file by new content, so that a reader sees the old or the new one and a crash leaves one of them."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, for good: the folder's entry reaches the disk too."""
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
