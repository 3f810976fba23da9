"""A tokenized dataset on the Hub: shards of some hundred MB, each with its record, and a card that counts them.

data/train-00000-of-00332.parquet      parts 0 to 29 in one, named after the first; the next is train-00030-of-00332
manifest/train-00000-of-00332.json     the records of those parts, rows, bytes, checksum
manifest.json rows.png                 what all parts have in common; a picture of some rows
README.md                              the card; made anew from the records that are there at each push

A shard is pushed when all its parts are finished, so a dataset can go up while it is being made. Several processes can
push to one repository: what is there is never sent again, and the card counts what all of them have sent.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ar_t2i.data.card import (
    HEADER,
    STEM,
    TEMPLATE,
    describe,
    in_order,
    is_own_text,
    other_configs,
    split_of,
    with_marked,
)
from ar_t2i.data.hub_shards import Shard, finished_shards, parse_shard_record
from ar_t2i.data.parts import PartRecord
from ar_t2i.data.preview import PREVIEW, read_captions
from ar_t2i.hub.cards import read_card, write_card_text
from ar_t2i.hub.names import allowed, resolve
from ar_t2i.hub.remote import Remote
from ar_t2i.untrusted import parse_json, read_json, read_text

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

MANIFEST = "manifest.json"
SHARDS_AT_ONCE = 4
"""Shards of one commit, sent side by side; those that are put together from parts need so much room on the disk."""


class _Page:
    """What the repository holds, and the card that says so."""

    def __init__(self, remote: Remote, folder: Path, license: str) -> None:
        self.remote, self.folder, self.license = remote, folder, license
        self.contents: dict[str, bytes] = {}
        """Of small files, by git's names for them."""
        self.commit, self.there = "", dict[str, "RepoFile"]()
        self.records: dict[str, dict[str, Any]] = {}
        """Of the shards that are there, by stem."""

    def look(self) -> None:
        """Learn what is there now."""
        self.commit = self.remote.head()
        self.there = self.remote.files(self.commit)
        self.records = self._records(self.there, self.commit)

    def _records(self, there: Mapping[str, "RepoFile"], commit: str) -> dict[str, dict[str, Any]]:
        stems = [Path(path).stem for path in there if allowed(path, ("manifest/*-of-*.json",))]
        stems = [stem for stem in stems if f"data/{stem}.parquet" in there and STEM.fullmatch(stem)]
        with ThreadPoolExecutor(8) as pool:
            read = pool.map(lambda stem: self.read(there[f"manifest/{stem}.json"], commit), stems)
            return {stem: parse_shard_record(content, stem) for stem, content in zip(stems, read, strict=True)}

    def read(self, file: "RepoFile", commit: str) -> bytes:
        """A small file of a commit, compared with its checksum."""
        if file.blob_id not in self.contents:
            folder = resolve(f"{self.remote.repo_id}@{commit}", (file.path,), "dataset")
            self.contents[file.blob_id] = (folder / file.path).read_bytes()
        return self.contents[file.blob_id]

    def has(self, shard: Shard) -> bool:
        """Whether just these parts are there, in a file that has the checksum of its record."""
        record = self.records.get(shard.stem)
        file = self.there.get(shard.path)
        if record and file and file.lfs and file.lfs.sha256 == record["sha256"]:
            if [part["sha256"] for part in record["parts"]] == [part.sha256 for part in shard.records]:
                return True
        if any(record.pushed for record in shard.records):
            raise ValueError(
                f"{self.remote} does not hold {shard.path}, of which parts were deleted here after they had been "
                f"pushed to {next(record.pushed for record in shard.records if record.pushed)}"
            )
        return False

    def card(
        self, new: Mapping[str, Mapping[str, Any]], there: Mapping[str, "RepoFile"], commit: str
    ) -> dict[str, bytes]:
        """README.md for what is there and the records that come with this commit, and what it needs beside it."""
        records: dict[str, Mapping[str, Any]] = dict(self._records(there, commit))
        records |= {Path(path).stem: record for path, record in new.items()}
        _check_apart(records, self.remote)
        paths = [self.folder / name for name in (MANIFEST, PREVIEW)]
        kept = {path.name: path.read_bytes() for path in paths if path.exists()}
        kept |= {path.name: self.read(there[path.name], commit) for path in paths if path.name in there}
        header, body = self._text(there, commit)
        if self.license:
            header["license"] = self.license
        others = other_configs(header)
        header |= describe_dataset(records)
        header["configs"] += others
        parts: dict[str, list[PartRecord]] = {}
        files: Counter[str] = Counter()
        for stem, record in records.items():
            parts.setdefault(split_of(stem), []).extend(PartRecord(**part) for part in record["parts"])
            files[split_of(stem)] += 1
        marked = describe(parse_json(kept[MANIFEST], MANIFEST), parts, files, read_captions(kept.get(PREVIEW, b"")))
        return {**kept, "README.md": write_card_text(header, with_marked(body, marked)).encode()}

    def _text(self, there: Mapping[str, "RepoFile"], commit: str) -> tuple[dict[str, Any], str]:
        """Yaml and text of the card: what people wrote here goes before what they wrote there."""
        here = _local_card(self.folder)
        header, body = read_card(here) if here else (HEADER, TEMPLATE)
        if "README.md" not in there:
            return dict(header), body
        their_header, their_body = read_card(self.read(there["README.md"], commit).decode(errors="replace"))
        return {**their_header, **header}, body if is_own_text(body) else their_body

    def check_same_dataset(self, facts: Mapping[str, Any], shards: Sequence[Shard]) -> None:
        """Refuse to mix parts of different runs in one repository."""
        there = MANIFEST in self.there
        known = parse_json(self.read(self.there[MANIFEST], self.commit), f"its {MANIFEST}") if there else facts
        for name, value in facts.items():
            if name != "versions" and known.get(name) != value:
                raise ValueError(
                    f"{self.remote} was made with {name}={str(known.get(name))[:16]}, this dataset with "
                    f"{str(value)[:16]}: push it to a repository or branch of its own"
                )
        totals = {shard.split: shard.total for shard in shards}
        for path in self.there:
            match = STEM.fullmatch(Path(path).stem)
            if match and int(match["total"]) != totals.get(match["split"], int(match["total"])):
                raise ValueError(
                    f"{self.remote} holds {path} of a run over {int(match['total'])} shards, this one has "
                    f"{totals[match['split']]}: push to a repository or branch of its own"
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
        ValueError: nothing finished, parts that are damaged, parts of another run there, a push that failed, another
            push of this folder.
    """
    try:
        with FileLock(folder / "manifest" / ".push.lock", timeout=0):
            for scratch in folder.glob(".shard-*"):  # of a push that was killed
                shutil.rmtree(scratch)
            return _push(folder, _Page(remote, folder, license), message, free)
    except Timeout as error:
        raise ValueError(f"another push of {folder} is at work: wait for its end") from error


def _push(folder: Path, page: _Page, message: str, free: bool) -> str:
    page.look()
    shards = list(finished_shards(folder, page.records))
    page.check_same_dataset(read_json(folder / MANIFEST), shards)
    missing = [shard for shard in shards if not page.has(shard)]
    for start in range(0, len(missing), SHARDS_AT_ONCE):
        with tempfile.TemporaryDirectory(prefix=".shard-", dir=folder) as scratch:
            files: dict[str, Any] = {}
            records, digests = {}, {}
            for shard in missing[start : start + SHARDS_AT_ONCE]:
                files[shard.path] = path = shard.file(Path(scratch))
                records[shard.record_path] = record = shard.record(path)
                digests[shard.path] = record["sha256"]
                files[shard.record_path] = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
            done = min(start + SHARDS_AT_ONCE, len(missing))
            page.remote.push(
                files, f"{message} ({done} of {len(missing)} shards)",
                digests=digests, amend=partial(page.card, records),
            )  # fmt: skip
        print(f"{page.remote}: {len(shards) - len(missing) + done} of {len(shards)} shards are there", flush=True)
        if free:
            for shard in missing[start:done]:
                shard.free(folder, str(page.remote))
    if free:
        for shard in shards:
            shard.free(folder, str(page.remote))
    return page.remote.push(_beside(folder), f"{message}: card", amend=partial(page.card, {}))


def check_licence(folder: Path, license: str) -> None:
    """Raise ValueError where neither the card nor `license` names a licence."""
    if not license and not read_card(_local_card(folder))[0].get("license"):
        raise ValueError("the card names no licence: give --license, such as cc-by-4.0, or write `license:` into it")


def has_finished_part(folder: Path) -> bool:
    """Whether there is something to push."""
    return any((folder / "data").glob("*.parquet"))


def plan_dataset(folder: Path, before: Remote | None, license: str) -> list[tuple[str, int, str]]:
    """State, bytes and path of each file that a push would send or pass over.

    The bytes of a shard of several parts and of its record are about right.

    Args:
        folder: the dataset.
        before: what the push will find, None for nothing.
        license: as for `push_dataset`.
    """
    from huggingface_hub import CommitOperationAdd

    page = _Page(before or Remote(""), folder, license)
    if before:
        page.look()
    shards = list(finished_shards(folder, page.records, settle=False))
    plan = []
    for shard in shards:
        state = "there" if page.has(shard) else "changed" if shard.path in page.there else "new"
        plan.append((state, sum(record.bytes for record in shard.records), shard.path))
        plan.append((state, sum(len(json.dumps(asdict(record))) for record in shard.records), shard.record_path))
    changes = any(state != "there" for state, *_ in plan)
    beside = {name: path.read_bytes() for name, path in _beside(folder).items()}
    beside |= page.card({}, page.there, page.commit) if not changes else {}
    for name in (MANIFEST, PREVIEW, "README.md"):
        if name not in beside and (folder / name).exists():
            beside[name] = (folder / name).read_bytes()
    for name, content in beside.items():
        same = name in page.there and Remote.holds(page.there[name], CommitOperationAdd(name, content))
        kept = same or (name in page.there and name in (MANIFEST, PREVIEW))
        plan.append(("there" if kept else "changed" if name in page.there else "new", len(content), name))
    return plan


def _beside(folder: Path) -> dict[str, Path]:
    """Files of the owner beside the card: a licence, pictures."""
    paths = [*folder.glob("LICENSE"), *folder.glob("*.png")]
    return {path.name: path for path in paths if path.name != PREVIEW}


def _local_card(folder: Path) -> str:
    return read_text(folder / "README.md") if (folder / "README.md").is_file() else ""


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
        match = STEM.fullmatch(stem)
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


def _check_apart(records: Mapping[str, Mapping[str, Any]], remote: Remote) -> None:
    """Raise ValueError where two shards hold the same part: pushes that began at once cut in different places."""
    owner: dict[tuple[str, int], str] = {}
    for stem, record in records.items():
        match = STEM.fullmatch(stem)
        assert match is not None
        for number in range(int(match["number"]), int(match["number"]) + len(record["parts"])):
            other = owner.setdefault((match["split"], number), stem)
            if other != stem:
                raise ValueError(f"{remote} holds parts of {stem} in {other}, from another push: run this push again")
