"""A tokenized dataset on disk, one split of it at a time: what is finished, what is missing, what must not be mixed.

README.md rows.png                        dataset card, with a picture of some rows
manifest.json                             what all parts have in common: tokenizers, crop rule, versions
manifest/train-00000-of-00008.json        one record a part: source, rows kept, rows dropped by reason, checksum
data/train-00000-of-00008.parquet         one part an input shard
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ar_t2i.data.card import write_card
from ar_t2i.data.parts import PartRecord, PartWriter, new_part, temporary_of, write_atomically
from ar_t2i.data.preview import PREVIEW
from ar_t2i.data.shards import Shard
from ar_t2i.untrusted import read_json

FORMAT_VERSION = 1
T = TypeVar("T")


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
        """Nothing is read or written before `claim`, where parts of a smaller run get the names of this one.

        Args:
            out: the dataset's folder.
            split: name of the split.
            shards: all shards of the split, those of other processes included.
            facts: what must be the same for all parts.
            versions: of the software, kept for the reader.
        """
        self.out, self.split, self.shards = Path(out), split, shards
        self.facts, self.versions = facts, versions
        self.records: dict[int, PartRecord] = {}

    @contextmanager
    def claim(self, rank: int, world: int) -> Iterator[None]:
        """Open or make the folder and keep other runs of the split out; the card is right before and after.

        Processes of one run have one `world` and each its own `rank`: they work side by side and wait for nobody. A
        second process of the same rank, or of another world, would write the same parts. The locks are the system's:
        they are gone with their process, however it ends.

        Raises:
            ValueError: a run is at work already; a folder that cannot be written, or holds something else, or parts
                that do not fit this run; README.md has yaml that cannot be read.
        """
        with ExitStack() as claimed:
            try:
                for folder in (self.out / "data", self.out / "manifest"):
                    folder.mkdir(parents=True, exist_ok=True)
                with self._lock():  # those who come in at the same time do it one after the other
                    claimed.enter_context(self._own_lock(rank, world))
                    self._refuse_others(f".{self.split}-*-of-{world}.lock")
                    self._check_facts()
                    if not self._knows_layout(range(rank, len(self.shards), world)):
                        self._refuse_others(f".{self.split}-{rank}-of-{world}.lock")
                        self._adopt()
            except Timeout as error:
                raise ValueError(
                    f"another run writes the split {self.split!r} of {self.out}; wait for its end"
                ) from error
            except OSError as error:
                raise ValueError(
                    f"cannot write out={str(self.out)!r}: {error.strerror}; give another folder"
                ) from error
            self._update_card()
            try:
                yield
            except BaseException:
                with suppress(ValueError):  # what went wrong before is what counts
                    self._update_card()
                raise
            self._update_card()

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
        shard = self.shards[number]
        places = self.path(number), self.record_path(number)
        checksum = _beside(shard.checksum)  # which takes as long as some batches on a GPU
        with new_part(*places, shard.name, shard.fingerprint, checksum) as writer:
            yield writer
        assert writer.record is not None, "a part that ends well has a record"
        self.records[number] = writer.record

    def arithmetics(self) -> set[str]:
        """Devices and number formats that parts of this split were computed in, or are about to be."""
        return {record.arithmetic for record in self.records.values()} | set(self._settled())

    def settle(self, arithmetic: str) -> str:
        """The number format for a kind of device that the first process to ask chose, and all others take.

        Args:
            arithmetic: what this process would choose, such as "cuda bfloat16".
        """
        with self._lock():
            settled = self._settled()
            kind = arithmetic.split()[0]
            first = next((known for known in settled if known.split()[0] == kind), None)
            if first is None:
                write_atomically(self._hidden("arithmetic"), "".join(f"{line}\n" for line in (*settled, arithmetic)))
        return first or arithmetic

    @property
    def preview(self) -> Path:
        """The picture of some rows, for the card."""
        return self.out / PREVIEW

    def show(self, preview: bytes) -> None:
        """Keep a picture of some rows, and bring the card up to date."""
        try:
            write_atomically(self.preview, preview)
        except OSError as error:
            raise ValueError(f"cannot write {self.preview}: {error.strerror}; finished parts are kept") from error
        self._update_card()

    def path(self, number: int) -> Path:
        """Where part `number` lies."""
        return self.out / "data" / f"{self._stem(number)}.parquet"

    def record_path(self, number: int) -> Path:
        """Where the record of part `number` lies."""
        return self.out / "manifest" / f"{self._stem(number)}.json"

    def _stem(self, number: int) -> str:
        return f"{self.split}-{number:05d}-of-{len(self.shards):05d}"

    @contextmanager
    def _own_lock(self, rank: int, world: int) -> Iterator[None]:
        path = self.out / "manifest" / f".{self.split}-{rank}-of-{world}.lock"
        with FileLock(path, timeout=1):  # a second, because `is_being_written` takes it for a moment
            try:
                yield
            finally:
                with suppress(OSError):  # Windows keeps an open file
                    path.unlink()

    def _refuse_others(self, spared: str) -> None:
        """Raise Timeout if another process holds a claim that does not match `spared`; what dead ones left goes."""
        for path in (self.out / "manifest").glob(f".{self.split}-*-of-*.lock"):
            if not path.match(spared):
                with FileLock(path, timeout=1), suppress(OSError):
                    path.unlink()

    def _update_card(self) -> None:
        """Whoever holds the card's lock also writes for those who come meanwhile: they leave a mark and go on."""
        wanted = self.out / "manifest" / ".card.wanted"
        try:
            wanted.touch()
            while wanted.exists():
                with FileLock(self.out / "manifest" / ".card.lock", timeout=0):
                    with suppress(FileNotFoundError):
                        os.remove(wanted)
                    write_card(self.out)
        except Timeout:
            return
        except OSError as error:
            raise ValueError(
                f"cannot write the card of {self.out}: {error.strerror or error}; finished parts are kept"
            ) from error

    def _same_source(self, number: int, record: PartRecord) -> bool:
        shard = self.shards[number]
        if record.source == shard.fingerprint:
            return True
        if record.checksum is None or record.checksum != shard.checksum():
            return False
        record = replace(record, source=shard.fingerprint)  # copied or touched: other times, the same contents
        record.write(self.record_path(number))
        self.records[number] = record
        return True

    def _lock(self) -> FileLock:
        return FileLock(self.out / "manifest" / ".lock")

    def _check_facts(self) -> None:
        path = self.out / "manifest.json"
        facts = {"format_version": FORMAT_VERSION, **self.facts}
        if not path.exists():
            foreign = next((self.out / "data").glob("*.parquet"), None)
            if foreign is not None:
                raise ValueError(f"{foreign} was not written by this command; give a folder of its own with --out")
            write_atomically(path, json.dumps({**facts, "versions": self.versions}, indent=1) + "\n")
            return
        try:
            known = {"pixels": "exact", **read_json(path)}  # all were, before there was a choice
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; restore it or give another --out") from error
        for name, value in facts.items():
            if known.get(name) != value:
                raise ValueError(
                    f"{self.out} was made with {name}={_short(known.get(name))}, this run has {_short(value)}; "
                    "parts of both must not be mixed: give another --out, or the same setting"
                )

    def _knows_layout(self, mine: Iterable[int]) -> bool:
        """Take over the parts of `mine` if all parts have this run's names already.

        So each of many processes reads the records of its own parts, not of all.
        """
        names = {path.stem for path in (self.out / "manifest").glob(f"{self.split}-*.json")}
        total = f"-of-{len(self.shards):05d}"
        if self._read("layout") != self._layout() or not all(name.endswith(total) for name in names):
            return False
        for number in mine:
            record = PartRecord.read(self.record_path(number)) if self._stem(number) in names else None
            if record is None:  # none, or one that cannot be read
                for left in (self.record_path(number), self.path(number), temporary_of(self.path(number))):
                    left.unlink(missing_ok=True)
            elif record.shard != self.shards[number].name:
                self.records.clear()
                return False
            else:
                self.records[number] = record
        return True

    def _adopt(self) -> None:
        """Take over the parts of earlier runs, under this run's names; nobody else is at work on the split."""
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
        self._hidden("layout").unlink(missing_ok=True)
        for path, record in recorded.items():
            if record is None:
                path.unlink()
                continue
            number = numbers[record.shard]
            part = self.out / "data" / f"{path.stem}.parquet"
            if path.stem != self._stem(number):
                os.replace(path, self.record_path(number))
                if part.exists():
                    os.replace(part, self.path(number))
            self.records[number] = record
        finished = {self.path(number) for number in self.records}
        for path in (self.out / "data").iterdir():
            crashed = ours.fullmatch(path.name.removesuffix(".parquet")) and path not in finished
            if crashed or path.name.startswith(f".{self.split}-"):
                path.unlink()  # left by a run that was killed
        write_atomically(self._hidden("layout"), self._layout())

    def _layout(self) -> str:
        """Tells which shard becomes which part."""
        return hashlib.sha256("\n".join(shard.name for shard in self.shards).encode()).hexdigest()

    def _settled(self) -> list[str]:
        return self._read("arithmetic").splitlines()

    def _read(self, what: str) -> str:
        try:
            return self._hidden(what).read_text(encoding="utf-8")
        except OSError:
            return ""

    def _hidden(self, what: str) -> Path:
        return self.out / "manifest" / f".{self.split}.{what}"


def is_being_written(out: Path) -> bool:
    """Whether a run of `preprocess` is at work on a dataset; the lock of one that was killed does not count."""
    for path in (out / "manifest").glob(".*-of-*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
    return False


def _beside(work: Callable[[], T]) -> Callable[[], T]:
    """Do the work in a thread that nobody waits for but who asks for its result."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result


def _short(value: object) -> str:
    return str(value)[:16]
