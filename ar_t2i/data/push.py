"""A tokenized dataset on the Hub: shards of some hundred MB, each with its record, and a card that counts them.

data/train-00000-of-00332.parquet      parts 0 to 29 in one, named after the first; the next is train-00030-of-00332
manifest/train-00000-of-00332.json     the records of those parts, rows, bytes, checksum
manifest.json rows.png                 what all parts have in common; a picture of some rows
README.md                              the card; made anew from the records that are there at each push

A shard is pushed when all its parts are finished, so a dataset can go up while it is being made. Several processes can
push to one repository: what is there is never sent again, and the card counts what all of them have sent.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from ar_t2i.data.card import HEADER, TEMPLATE, describe, in_order, is_own_text, split_of, with_marked
from ar_t2i.data.parts import PartRecord, arrow_bytes, write_atomically
from ar_t2i.data.preview import PREVIEW, read_captions
from ar_t2i.hub.cards import read_card, write_card_text
from ar_t2i.hub.names import allowed
from ar_t2i.hub.remote import Remote, file_digest

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

MANIFEST = "manifest.json"
SHARD_BYTES = 300 * 10**6
SHARDS_AT_ONCE = 4
"""Shards of one commit, sent side by side; those that are put together from parts need so much room on the disk."""
_STEM = re.compile(r"(?P<split>.+)-(?P<number>\d{5,})-of-(?P<total>\d{5,})")


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


class _Page:
    """What the repository holds, and the card that says so."""

    def __init__(self, remote: Remote, folder: Path, license: str) -> None:
        self.remote, self.folder, self.license = remote, folder, license
        self.contents: dict[str, bytes] = {}
        """Of small files, by git's names for them."""

    def read(self, file: "RepoFile") -> bytes:
        """A small file that is there."""
        if file.blob_id not in self.contents:
            from huggingface_hub import hf_hub_download

            where: dict[str, Any] = {"repo_id": self.remote.repo_id, "repo_type": "dataset", "filename": file.path}
            where["revision"] = self.remote.head()
            found = self.remote.ask(f"read {file.path} of", lambda: hf_hub_download(**where))
            self.contents[file.blob_id] = Path(found).read_bytes()
        return self.contents[file.blob_id]

    def has(self, shard: Shard) -> bool:
        """Whether just these parts are there."""
        there = self.remote.files()
        sent: list[str] = []
        if shard.path in there and shard.record_path in there:
            sent = [part["sha256"] for part in json.loads(self.read(there[shard.record_path]))["parts"]]
        if sent == [record.sha256 for record in shard.records]:
            return True
        if any(record.pushed for record in shard.records):
            raise ValueError(
                f"{self.remote} does not hold {shard.path}, of which parts were deleted here after they had been "
                f"pushed to {next(record.pushed for record in shard.records if record.pushed)}"
            )
        return False

    def card(self, new: Mapping[str, Mapping[str, Any]], there: Mapping[str, "RepoFile"]) -> dict[str, bytes]:
        """README.md for what is there and the records that come with this commit, and what it needs beside it."""
        records: dict[str, Mapping[str, Any]] = {
            Path(path).stem: json.loads(self.read(file))
            for path, file in there.items()
            if allowed(path, ("manifest/*-of-*.json",)) and f"data/{Path(path).stem}.parquet" in there
        }
        records |= {Path(path).stem: record for path, record in new.items()}
        paths = [self.folder / name for name in (MANIFEST, PREVIEW)]
        kept = {path.name: path.read_bytes() for path in paths if path.exists()}
        kept |= {path.name: self.read(there[path.name]) for path in paths if path.name in there}  # these stay
        header, body = self._text(there)
        if self.license:
            header["license"] = self.license
        others = [entry for entry in header.get("configs") or [] if entry.get("config_name", "default") != "default"]
        header |= describe_dataset(records)
        header["configs"] += others
        parts: dict[str, list[PartRecord]] = {}
        files: Counter[str] = Counter()
        for stem, record in records.items():
            parts.setdefault(split_of(stem), []).extend(PartRecord(**part) for part in record["parts"])
            files[split_of(stem)] += 1
        marked = describe(json.loads(kept[MANIFEST]), parts, files, read_captions(kept.get(PREVIEW, b"")))
        return {**kept, "README.md": write_card_text(header, with_marked(body, marked)).encode()}

    def _text(self, there: Mapping[str, "RepoFile"]) -> tuple[dict[str, Any], str]:
        """Yaml and text of the card: what people wrote here goes before what they wrote there."""
        here = _local_card(self.folder)
        header, body = read_card(here) if here else (HEADER, TEMPLATE)
        if "README.md" not in there:
            return dict(header), body
        their_header, their_body = read_card(self.read(there["README.md"]).decode(errors="replace"))
        return {**their_header, **header}, body if is_own_text(body) else their_body

    def check_same_dataset(self, facts: Mapping[str, Any], shards: Sequence[Shard]) -> None:
        """Refuse to mix parts of different runs in one repository."""
        there = self.remote.files()
        known = json.loads(self.read(there[MANIFEST])) if MANIFEST in there else facts
        for name, value in facts.items():
            if name != "versions" and known.get(name) != value:
                raise ValueError(
                    f"{self.remote} was made with {name}={str(known.get(name))[:16]}, this dataset with "
                    f"{str(value)[:16]}: push it to a repository or branch of its own"
                )
        totals = {shard.split: shard.total for shard in shards}
        for path in there:
            match = _STEM.fullmatch(Path(path).stem)
            if match and int(match["total"]) != totals.get(match["split"], int(match["total"])):
                raise ValueError(
                    f"{self.remote} holds {path} of a run over {int(match['total'])} shards, this one has "
                    f"{totals[match['split']]}: push to a repository or branch of its own, or delete it there"
                )


def push_dataset(folder: Path, remote: Remote, license: str, message: str, free: bool) -> str:
    """Push the finished shards of a tokenized dataset, some a commit, and its card; returns the last commit.

    Args:
        folder: what `ar-t2i preprocess` writes, finished or not.
        remote: the repository.
        license: for the card; "" keeps the one that it names.
        message: of the commits.
        free: delete parts here that are there, checked; `preprocess` counts them as finished.

    Raises:
        ValueError: nothing finished, parts that are damaged, parts of another run there, a push that failed.
    """
    shards = list(finished_shards(folder))
    page = _Page(remote, folder, license)
    page.check_same_dataset(json.loads((folder / MANIFEST).read_bytes()), shards)
    missing = [shard for shard in shards if not page.has(shard)]
    for start in range(0, len(missing), SHARDS_AT_ONCE):
        with tempfile.TemporaryDirectory(prefix=".shard-", dir=folder) as scratch:
            files: dict[str, Any] = {}
            records, digests = {}, {}
            for shard in missing[start : start + SHARDS_AT_ONCE]:
                files[shard.path] = path = _file(shard, Path(scratch))
                records[shard.record_path] = record = _record(shard, path)
                digests[shard.path] = record["sha256"]
                files[shard.record_path] = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
            done = min(start + SHARDS_AT_ONCE, len(missing))
            remote.push(
                files, f"{message} ({done} of {len(missing)} shards)",
                digests=digests, amend=partial(page.card, records),
            )  # fmt: skip
        print(f"{remote}: {len(shards) - len(missing) + done} of {len(shards)} shards are there", flush=True)
        if free:
            for shard in missing[start:done]:
                _free(folder, shard, remote)
    if free:
        for shard in shards:
            _free(folder, shard, remote)
    return remote.push(_beside(folder), f"{message}: card", amend=partial(page.card, {}))


def check_licence(folder: Path, license: str) -> None:
    """Raise ValueError where neither the card nor `license` names a licence."""
    if not license and not read_card(_local_card(folder))[0].get("license"):
        raise ValueError("the card names no licence: give --license, such as cc-by-4.0, or write `license:` into it")


def has_finished_part(folder: Path) -> bool:
    """Whether there is something to push."""
    return any((folder / "data").glob("*.parquet"))


def plan_dataset(folder: Path, there: Mapping[str, "RepoFile"]) -> Iterator[tuple[str, int, str]]:
    """State, bytes and path of each file that a push would send; a shard of several parts is about so large."""
    for shard in finished_shards(folder, settle=False):
        state = "new" if shard.path not in there else "there"
        yield state, sum(record.bytes for record in shard.records), shard.path
        yield state, sum(len(json.dumps(asdict(record))) for record in shard.records), shard.record_path
    for path in (*_beside(folder).values(), *(folder / name for name in (MANIFEST, PREVIEW, "README.md"))):
        if path.exists():
            state = "new" if path.name not in there else "there" if path.name in (MANIFEST, PREVIEW) else "renewed"
            yield state, path.stat().st_size, path.name


def _beside(folder: Path) -> dict[str, Path]:
    """Files of the owner beside the card: a licence, pictures."""
    paths = [*folder.glob("LICENSE"), *folder.glob("*.png")]
    return {path.name: path for path in paths if path.name != PREVIEW}


def _local_card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""


def finished_shards(folder: Path, settle: bool = True) -> Iterator[Shard]:
    """The shards whose parts are all finished, split by split; those of unfinished parts are passed over.

    Args:
        folder: the dataset.
        settle: write down how many parts make a shard, so that later pushes cut in the same places.

    Raises:
        ValueError: no part is finished.
    """
    records: dict[str, dict[int, tuple[Path, PartRecord]]] = {}
    totals: dict[str, int] = {}
    for path in sorted((folder / "manifest").glob("*-of-*.json")):
        match, record = _STEM.fullmatch(path.stem), PartRecord.read(path)
        part = folder / "data" / f"{path.stem}.parquet"
        if match and record and (record.pushed or (part.is_file() and part.stat().st_size == record.bytes)):
            records.setdefault(match["split"], {})[int(match["number"])] = part, record
            totals[match["split"]] = int(match["total"])
    if not records:
        raise ValueError(f"{folder} has no finished part yet: nothing to push")
    size = _parts_per_shard(folder, [record for parts in records.values() for _, record in parts.values()], settle)
    for split, parts in records.items():
        for start in range(0, totals[split], size):
            numbers = range(start, min(start + size, totals[split]))
            if all(number in parts for number in numbers):
                chosen = [parts[number] for number in numbers]
                yield Shard(
                    split=split, number=start, total=totals[split],
                    parts=[path for path, _ in chosen], records=[record for _, record in chosen],
                )  # fmt: skip


def describe_dataset(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`configs` and `dataset_info` of the card, as the datasets library computes them.

    Args:
        records: by the stem of the shard, what its record holds.
    """
    import datasets
    from huggingface_hub import DatasetCardData

    from ar_t2i.data.parts import SCHEMA

    splits: dict[str, dict[str, Any]] = {}
    for stem, record in records.items():
        match = _STEM.fullmatch(stem)
        assert match is not None
        split = splits.setdefault(match["split"], {"name": match["split"], "num_bytes": 0, "num_examples": 0})
        split["num_bytes"] += record["arrow_bytes"]
        split["num_examples"] += record["kept"]
    names = in_order(splits)
    infos = datasets.info.DatasetInfosDict(
        default=datasets.DatasetInfo(
            features=datasets.Features.from_arrow_schema(SCHEMA),
            splits=datasets.SplitDict({name: datasets.SplitInfo(**splits[name]) for name in names}),
            download_size=sum(record["bytes"] for record in records.values()),
            dataset_size=sum(split["num_bytes"] for split in splits.values()),
        )
    )
    card = DatasetCardData()
    infos.to_dataset_card_data(card)
    files = [{"split": name, "path": f"data/{name}-*"} for name in names]
    return {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": card.to_dict()["dataset_info"],
    }


def _parts_per_shard(folder: Path, records: Sequence[PartRecord], settle: bool) -> int:
    path = folder / "manifest" / "shards.json"
    try:
        return max(1, int(json.loads(path.read_text(encoding="utf-8"))["parts_per_shard"]))
    except (OSError, ValueError, KeyError, TypeError):
        mean = sum(record.bytes for record in records) / len(records)
        size = max(1, round(SHARD_BYTES / max(mean, 1)))
        if settle:
            write_atomically(path, json.dumps({"parts_per_shard": size}) + "\n")
        return size


def _merge(shard: Shard, scratch: Path) -> Path:
    """All parts in one file, row group after row group; memory holds one at a time."""
    path = scratch / f"{shard.stem}.parquet"
    with pq.ParquetWriter(path, pq.read_schema(shard.parts[0]), compression="zstd", write_page_index=True) as writer:
        for part in shard.parts:
            with pq.ParquetFile(part) as file:
                for number in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(number))
    return path


def _file(shard: Shard, scratch: Path) -> Path:
    """The shard as one file: its only part, or all of them put together."""
    if len(shard.parts) == 1:
        return shard.parts[0]
    for part, record in zip(shard.parts, shard.records, strict=True):
        if not record.fits(part):
            raise ValueError(f"{part} is damaged: run preprocess again, which makes it anew, then push again")
    return _merge(shard, scratch)


def _record(shard: Shard, path: Path) -> dict[str, Any]:
    parts = list(zip(shard.parts, shard.records, strict=True))
    return {
        "parts": [asdict(record) for record in shard.records],
        "kept": sum(record.kept for record in shard.records),
        "bytes": path.stat().st_size,
        "arrow_bytes": sum(record.arrow_bytes or arrow_bytes(part) for part, record in parts),
        "sha256": shard.records[0].sha256 if len(parts) == 1 else file_digest(path, "sha256"),
    }


def _free(folder: Path, shard: Shard, remote: Remote) -> None:
    """Delete the parts of a shard, which is there, and note where it is."""
    for part, record in zip(shard.parts, shard.records, strict=True):
        if part.is_file():
            replace(record, pushed=str(remote)).write(folder / "manifest" / f"{part.stem}.json")
            part.unlink()
