"""A tokenized dataset on disk, one split of it at a time: what is finished, what is missing, what must not be mixed.

README.md rows.png                        dataset card, with a picture of some rows
manifest.json                             what all parts have in common: tokenizers, crop rule, versions
manifest/train-00000-of-00008.json        one record a part: source, rows kept, rows dropped by reason, checksum
data/train-00000-of-00008.parquet         one part an input shard
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ar_t2i.data.card import write_card
from ar_t2i.data.parts import PartRecord, PartWriter, arrow_bytes, publish, write_atomically
from ar_t2i.data.preview import PREVIEW
from ar_t2i.data.shards import Shard
from ar_t2i.untrusted import read_json

FORMAT_VERSION = 1


class TokenizedFolder:
    """One split of a tokenized dataset, with one part for each shard.

    Attributes:
        out: the dataset's folder.
        shards: the input shards; part i comes from shard i.
        records: by number of the part, of those that are on disk, checked or not.
    """

    def __init__(
        self, out: str | Path, split: str, shards: Sequence[Shard], facts: dict[str, Any], versions: dict[str, str]
    ):
        """Open or make the folder; parts of a smaller run get the names of this one.

        Args:
            out: the dataset's folder.
            split: name of the split.
            shards: all shards of the split, those of other processes included.
            facts: what must be the same for all parts.
            versions: of the software, kept for the reader.

        Raises:
            ValueError: a folder that cannot be written, or holds something else, or parts that do not fit this run.
        """
        self.out, self.split, self.shards = Path(out), split, shards
        self.records: dict[int, PartRecord] = {}
        try:
            for folder in (self.out / "data", self.out / "manifest"):
                folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._check_facts(facts, versions)
                self._adopt()
        except OSError as error:
            raise ValueError(f"cannot write out={str(out)!r}: {error.strerror}; give another folder") from error

    @contextmanager
    def claim(self, rank: int, world: int) -> Iterator[None]:
        """Keep a second run of the same process number out; the card is right before and after.

        Raises:
            ValueError: one is at work already, or README.md has yaml that cannot be read.
        """
        path = self.out / "manifest" / f".{self.split}-{rank}-of-{world}.lock"
        try:
            with FileLock(path, timeout=1):  # a second, because `is_being_written` takes it for a moment
                self._update_card()
                try:
                    yield
                finally:
                    self._update_card()
                    with suppress(OSError):  # Windows keeps an open file
                        path.unlink()
        except Timeout as error:
            raise ValueError(f"another run writes the split {self.split!r} of {self.out}; wait for its end") from error

    def unfinished(self, numbers: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Those of `numbers` that are still to do, each with the reason, after a check of the files."""
        for number in numbers:
            record, path = self.records.get(number), self.path(number)
            if record is None:
                yield number, "missing"
            elif not self._same_source(number, record):
                yield number, "its source changed"
            elif record.pushed and not path.exists():
                continue  # on the Hub
            elif not record.fits(path):
                yield number, "damaged" if path.exists() else "missing"
            else:
                continue
            self.records.pop(number, None)

    @contextmanager
    def part(self, number: int) -> Iterator[PartWriter]:
        """Write part `number`; it appears when the block ends well and leaves nothing when it does not.

        Raises:
            ValueError: the disk is full or fails.
        """
        path, shard = self.path(number), self.shards[number]
        writer = PartWriter(_temporary(path))
        try:
            yield writer
            sha256, size = writer.finish()
            record = PartRecord(
                shard=shard.name, source=shard.fingerprint, checksum=shard.checksum(), sha256=sha256, bytes=size,
                kept=writer.kept, dropped=dict(sorted(writer.dropped.items())), examples=writer.examples,
                arithmetic=writer.arithmetic, arrow_bytes=arrow_bytes(writer.path),
            )  # fmt: skip
            record.write(self._record_path(path.stem))
            publish(writer.path, path)
            self.records[number] = record
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}; finished parts are kept") from error
        finally:
            writer.close()
            writer.path.unlink(missing_ok=True)

    def arithmetics(self) -> set[str]:
        """Devices and number formats that parts of this split were computed in."""
        return {record.arithmetic for record in self.records.values()}

    @property
    def preview(self) -> Path:
        """The picture of some rows, for the card."""
        return self.out / PREVIEW

    def show(self, preview: bytes) -> None:
        """Keep a picture of some rows, and bring the card up to date."""
        write_atomically(self.preview, preview)
        self._update_card()

    def path(self, number: int) -> Path:
        """Where part `number` lies."""
        return self.out / "data" / f"{self.split}-{number:05d}-of-{len(self.shards):05d}.parquet"

    def _update_card(self) -> None:
        with self._lock():
            write_card(self.out)

    def _same_source(self, number: int, record: PartRecord) -> bool:
        shard = self.shards[number]
        if record.source == shard.fingerprint:
            return True
        if record.checksum is None or record.checksum != shard.checksum():
            return False
        record = replace(record, source=shard.fingerprint)  # copied or touched: other times, the same contents
        record.write(self._record_path(self.path(number).stem))
        self.records[number] = record
        return True

    def _lock(self) -> FileLock:
        return FileLock(self.out / "manifest" / ".lock")

    def _record_path(self, stem: str) -> Path:
        return self.out / "manifest" / f"{stem}.json"

    def _check_facts(self, facts: dict[str, Any], versions: dict[str, str]) -> None:
        path = self.out / "manifest.json"
        facts = {"format_version": FORMAT_VERSION, **facts}
        if not path.exists():
            foreign = next((self.out / "data").glob("*.parquet"), None)
            if foreign is not None:
                raise ValueError(f"{foreign} was not written by this command; give a folder of its own with --out")
            write_atomically(path, json.dumps({**facts, "versions": versions}, indent=1) + "\n")
            return
        try:
            known = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; restore it or give another --out") from error
        for name, value in facts.items():
            if known.get(name) != value:
                raise ValueError(
                    f"{self.out} was made with {name}={_short(known.get(name))}, this run has {_short(value)}; "
                    "parts of both must not be mixed: give another --out, or the same setting"
                )

    def _adopt(self) -> None:
        """Take over the parts of earlier runs, under this run's names."""
        numbers = {shard.name: number for number, shard in enumerate(self.shards)}
        ours = re.compile(re.escape(self.split) + r"-\d{5,}-of-\d{5,}")
        recorded = {path: PartRecord.read(path) for path in sorted((self.out / "manifest").glob("*.json"))
                    if ours.fullmatch(path.stem)}  # fmt: skip
        strangers = [record.shard for record in recorded.values() if record and record.shard not in numbers]
        if strangers:
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise ValueError(
                f"the split {self.split!r} of {self.out} also holds {strangers[0]}{more}, not named in this run; "
                "name all sources of a split (finished ones are passed over), or give another --split or --out"
            )
        for path, record in recorded.items():
            if record is None:
                path.unlink()
                continue
            number = numbers[record.shard]
            stem, part = self.path(number).stem, self.out / "data" / f"{path.stem}.parquet"
            if path.stem != stem:
                os.replace(path, self._record_path(stem))
                if part.exists():
                    os.replace(part, self.path(number))
            self.records[number] = record
        finished = {self.path(number) for number in self.records}
        of_this_run = {_temporary(self.path(number)) for number in range(len(self.shards))}  # maybe another process's
        for path in (self.out / "data").iterdir():
            crashed = ours.fullmatch(path.name.removesuffix(".parquet")) and path not in finished
            if crashed or (path.name.startswith(f".{self.split}-") and path not in of_this_run):
                path.unlink()  # left by a run that was killed


def is_being_written(out: Path) -> bool:
    """Whether a run of `preprocess` is at work on a dataset; the lock of one that was killed does not count."""
    for path in (out / "manifest").glob(".*-of-*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
    return False


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _short(value: object) -> str:
    return str(value)[:16]
