"""Shards of a tokenized dataset: parts that go to the Hub as one file of some hundred MB, and what is told of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ar_t2i.config import build
from ar_t2i.data.card import STEM
from ar_t2i.data.parts import PartRecord, arrow_bytes, open_writer, write_atomically
from ar_t2i.hub.remote import file_digest
from ar_t2i.untrusted import parse_json, read_json

SHARD_BYTES = 300 * 10**6


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What the repository tells of a shard; anyone may have written it."""

    parts_per_shard: int
    """Of all shards but the last of a split."""
    parts: list[PartRecord]
    """Those that it is made of."""
    kept: int
    """Rows."""
    bytes: int
    """Of the file."""
    arrow_bytes: int
    """Of the rows in memory."""
    sha256: str
    """Of the file."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Parts that go to the Hub as one file."""

    split: str
    number: int
    """Of the first part."""
    total: int
    """Parts of the split."""
    parts: Sequence[Path]
    records: Sequence[PartRecord]
    parts_per_shard: int
    """Of all shards but the last of a split."""

    @property
    def stem(self) -> str:
        """The name of its first part."""
        return f"{self.split}-{self.number:05d}-of-{self.total:05d}"

    @property
    def path(self) -> str:
        """Where it lies in the repository."""
        return f"data/{self.stem}.parquet"

    @property
    def record_path(self) -> str:
        """Where its record lies there."""
        return f"manifest/{self.stem}.json"

    def file(self, scratch: Path) -> Path:
        """The shard as one file: its only part, or all of them put together in `scratch`.

        Raises:
            ValueError: a part is not what its record says.
        """
        if len(self.parts) == 1:
            return self.parts[0]
        for part, record in zip(self.parts, self.records, strict=True):
            if not record.fits(part):
                raise ValueError(f"{part} is damaged: run preprocess again, which makes it anew, then push again")
        return _merge(self, scratch)

    def record(self, path: Path) -> dict[str, Any]:
        """What the repository is told of it, as a `ShardRecord`; `path` is its file."""
        parts = list(zip(self.parts, self.records, strict=True))
        return {
            "parts_per_shard": self.parts_per_shard,
            "parts": [asdict(record) for record in self.records],
            "kept": sum(record.kept for record in self.records),
            "bytes": path.stat().st_size,
            "arrow_bytes": sum(record.arrow_bytes or arrow_bytes(part) for part, record in parts),
            "sha256": self.records[0].sha256 if len(parts) == 1 else file_digest(path, "sha256"),
        }

    def free(self, folder: Path, remote: str) -> None:
        """Delete its parts, which `remote` holds, and note so."""
        for part, record in zip(self.parts, self.records, strict=True):
            if part.is_file():
                replace(record, pushed=remote).write(folder / "manifest" / f"{part.stem}.json")
                part.unlink()


def finished_shards(folder: Path, there: Mapping[str, Any], settle: bool = True) -> Iterator[Shard]:
    """The shards whose parts are all finished, split by split; those of unfinished parts are passed over.

    Args:
        folder: the dataset.
        there: records of the shards that the repository holds: it goes on with as many parts a shard.
        settle: write down how many parts make a shard, so that later pushes cut in the same places.

    Raises:
        ValueError: no part is finished.
    """
    records: dict[str, dict[int, tuple[Path, PartRecord]]] = {}
    totals: dict[str, int] = {}
    for path in sorted((folder / "manifest").glob("*-of-*.json")):
        match, record = STEM.fullmatch(path.stem), PartRecord.read(path)
        part = folder / "data" / f"{path.stem}.parquet"
        if match and record and (record.pushed or (part.is_file() and part.stat().st_size == record.bytes)):
            records.setdefault(match["split"], {})[int(match["number"])] = part, record
            totals[match["split"]] = int(match["total"])
    if not records:
        raise ValueError(f"{folder} has no finished part yet: nothing to push")
    finished = [record for parts in records.values() for _, record in parts.values()]
    known = next((record["parts_per_shard"] for record in there.values()), 0)
    size = known or _parts_per_shard(folder, finished, settle)
    for split, parts in records.items():
        for start in range(0, totals[split], size):
            numbers = range(start, min(start + size, totals[split]))
            if all(number in parts for number in numbers):
                chosen = [parts[number] for number in numbers]
                yield Shard(
                    split=split, number=start, total=totals[split],
                    parts=[path for path, _ in chosen], records=[record for _, record in chosen], parts_per_shard=size,
                )  # fmt: skip


def _parts_per_shard(folder: Path, records: Sequence[PartRecord], settle: bool) -> int:
    path = folder / "manifest" / "shards.json"
    try:
        return max(1, int(read_json(path)["parts_per_shard"]))
    except (OSError, ValueError, KeyError, TypeError):
        mean = sum(record.bytes for record in records) / len(records)
        size = max(1, round(SHARD_BYTES / max(mean, 1)))
        if settle:
            write_atomically(path, json.dumps({"parts_per_shard": size}) + "\n")
        return size


def _merge(shard: Shard, scratch: Path) -> Path:
    """All parts in one file, row group after row group; memory holds one at a time."""
    path = scratch / f"{shard.stem}.parquet"
    with open_writer(path) as writer:
        for part in shard.parts:
            with pq.ParquetFile(part) as file:
                for number in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(number))
    return path


def parse_shard_record(content: bytes, stem: str) -> dict[str, Any]:
    """The record of a shard, of the types that it must have (ValueError where it is not)."""
    record = asdict(build(ShardRecord, parse_json(content, f"the record of {stem}"), f"the record of {stem}: "))
    if record["parts_per_shard"] < 1:
        raise ValueError(f"the record of {stem} has parts_per_shard={record['parts_per_shard']}: it is damaged")
    return record
