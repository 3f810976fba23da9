"""`ar-t2i push`: a folder to the Hub."""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ar_t2i.data.manifest import is_being_written
from ar_t2i.data.push import check_licence, has_finished_part, plan_dataset, push_dataset
from ar_t2i.hub.cards import published_card
from ar_t2i.hub.names import BUNDLE_FILES, CHECKPOINT_FILES, CHECKPOINTS, DATASET_FILES, allowed, split_id
from ar_t2i.hub.remote import Remote, RepoType, Unavailable, without_tokens

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Options of `ar-t2i push`."""

    folder: str
    """Folder of a bundle, an image tokenizer, a vocabulary, a training checkpoint or a tokenized dataset."""
    to: str
    """Where to: owner/name on the Hub, or owner/name@branch; what is missing of it is made."""
    license: str = ""
    """Licence for the card, such as apache-2.0; needed where the card says none."""
    dataset: str = ""
    """Id of the dataset that it was trained on, for the card."""
    base_model: str = ""
    """Id of the model that training started from, for the card."""
    private: bool = False
    """Make a new repository private."""
    tag: str = ""
    """Tag for what is there in the end."""
    pull_request: bool = False
    """Propose the change in a pull request."""
    message: str = ""
    """Message of the commit."""
    free: bool = False
    """Of a dataset, delete here what is there; preprocess counts it as finished, so a dataset can outgrow the disk."""
    follow: bool = False
    """Of a dataset that is being made, push what becomes finished until preprocess ends."""
    dry_run: bool = False
    """Say what would be sent, and send nothing."""


class Kind(NamedTuple):
    """What a folder can be."""

    name: str
    marker: str
    """A file, or a pattern of some, that only this kind has."""
    files: tuple[str, ...]
    repo_type: RepoType


KINDS = (
    Kind("bundle", "ar_t2i.json", BUNDLE_FILES, "model"),
    Kind("checkpoint", "state.json", CHECKPOINT_FILES, "model"),
    Kind("dataset", "manifest.json", DATASET_FILES, "dataset"),
    Kind(
        "image tokenizer", "model.safetensors", ("README.md", "LICENSE", "config.json", "model.safetensors"), "model"
    ),
    Kind("vocabulary", "tokenizer.json", BUNDLE_FILES, "model"),
)
FOLLOW_PAUSE = 10.0
"""Seconds between looks at a dataset that is being made."""
TEXTS = (".json", ".jsonl", ".md", ".txt", ".yaml")


def push(config: PushConfig) -> str:
    """Push a folder; returns the commit, or "" for a dry run.

    Raises:
        ValueError: a folder or file that does not belong on the Hub, or a push that failed; it says what to do.
    """
    repo_id, revision = split_id(config.to)
    folder = Path(config.folder)
    kind = kind_of(folder)
    _check_options(config, kind)
    files = collect(folder, kind)
    links = {"license": config.license, "datasets": config.dataset, "base_model": config.base_model}
    remote = Remote(repo_id, revision, kind.repo_type)
    message = config.message or f"{kind.name} by ar_t2i"
    if kind.name == "dataset":
        check_licence(folder, config.license)
        content: dict[str, Path | bytes] = {}
    else:
        content = _content(folder, kind, files, config.to, links)
    own = {"bundle": set(BUNDLE_FILES) - {"LICENSE", "*.png"}, "checkpoint": CHECKPOINTS}.get(kind.name, ())
    before = remote.before()
    there = before.files() if before else {}
    if kind.name in ("image tokenizer", "vocabulary") and "ar_t2i.json" in there:
        raise ValueError(f"{remote} holds a bundle, whose files this {kind.name} would replace: take another name")
    plan = plan_dataset(folder, before, config.license) if kind.name == "dataset" else _plan(there, content, own)
    if config.dry_run:
        for state, size, path in plan:
            print(f"{state:8}{size:>14,}  {path}")
        print(f"nothing was sent to {remote}: this was a dry run")
        return ""
    if config.tag and before:
        changes = any(state not in ("same", "there") for state, *_ in plan)
        remote.check_tag(config.tag, "" if changes else before.head())
    remote.create(config.private)
    address = remote.open_pull_request(message) if config.pull_request else ""
    if kind.name == "dataset":
        commit = _push_dataset(folder, remote, config, message)
    else:
        commit = remote.push(content, message, replaced=lambda path: allowed(path, own))
    if config.pull_request:
        remote.publish_pull_request()
    if config.tag:
        remote.tag(config.tag)
    print(f"{remote}: all files are there, compared with their checksums, commit {commit[:8]}  {address}".rstrip())
    return commit


def _push_dataset(folder: Path, remote: Remote, config: PushConfig, message: str) -> str:
    """Push once, or again and again until preprocess has ended."""
    while True:
        goes_on = config.follow and is_being_written(folder)
        if not goes_on or has_finished_part(folder):
            collect(folder, kind_of(folder))
            try:
                commit = push_dataset(folder, remote, config.license, message, config.free)
                if not goes_on:
                    return commit
            except Unavailable as error:
                if not goes_on:
                    raise
                print(f"{error}; the next push tries again", file=sys.stderr, flush=True)
        time.sleep(FOLLOW_PAUSE)


def kind_of(folder: Path) -> Kind:
    """What a folder holds.

    Raises:
        ValueError: no folder, or nothing that this project makes.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder at {str(folder)!r}: give a bundle, a checkpoint or a dataset")
    for kind in KINDS:
        if next(folder.glob(kind.marker), None):
            if kind.name == "image tokenizer" and (folder / "generation_config.json").exists():
                raise ValueError(
                    f"{str(folder)!r} is a checkpoint of transformers without ar_t2i.json, so `infer` could not draw "
                    "with it: push the bundle of the run, or this by `hf upload`"
                )
            return kind
    raise ValueError(f"{str(folder)!r} is none of {', '.join(kind.name for kind in KINDS)}: nothing was pushed")


def _check_options(config: PushConfig, kind: Kind) -> None:
    """Raise ValueError for an option that this kind has no use for, or one that would publish a token."""
    for name in ("to", "message", "tag", "license", "dataset", "base_model"):
        if without_tokens(getattr(config, name)) != getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} holds an access token: take it out")
    if config.pull_request and split_id(config.to)[1] != "main":
        raise ValueError(f"--pull-request is made to main, not to {config.to}: leave out the branch")
    if config.free and (config.pull_request or "@refs/" in config.to):
        raise ValueError("--free deletes what is there for good, and a pull request may be closed: leave out one")
    wrong = ("dataset", "base_model") if kind.name == "dataset" else ("free", "follow")
    given = [f"--{name.replace('_', '-')}" for name in wrong if getattr(config, name)]
    if given:
        raise ValueError(f"{given[0]} has no meaning for a {kind.name}: leave it out")


def collect(folder: Path, kind: Kind) -> dict[str, Path]:
    """The files of a folder by their paths in it; hidden ones, which programs keep for themselves, stay.

    Raises:
        ValueError: a file that does not belong to the kind, or one with an access token in it.
    """
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path for name, path in found.items() if not re.search(r"(^|/)\.", name)}
    foreign = [name for name in files if not allowed(name, kind.files)]
    if foreign:
        raise ValueError(
            f"{folder / foreign[0]} does not belong to a {kind.name} ({len(foreign)} such files), and nothing that is "
            "not on its list goes to the Hub: move it away"
        )
    homes = (folder.resolve(), folder.resolve().parents[1] / "blobs")  # the latter: of the Hub's own cache
    for path in files.values():
        if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in homes):
            raise ValueError(f"{path} is a link to {path.resolve()}, outside of the folder: put the file itself there")
        is_text = path.suffix in TEXTS or path.name == "LICENSE"
        text = path.read_text(encoding="utf-8", errors="replace") if is_text else ""
        if without_tokens(text) != text:
            raise ValueError(f"{path} holds an access token: take it out, and revoke the token if others saw it")
    return files


def _content(
    folder: Path, kind: Kind, files: Mapping[str, Path], name: str, links: Mapping[str, str]
) -> dict[str, Path | bytes]:
    """What goes up, by its path there; with the card as it stands on the Hub."""
    if kind.name == "checkpoint":
        return {f"checkpoints/{folder.name}/{path}": source for path, source in files.items()}
    text = files["README.md"].read_text(encoding="utf-8") if "README.md" in files else ""
    return {**files, "README.md": published_card(text, name, kind.name, links).encode()}


def _plan(
    there: Mapping[str, "RepoFile"], content: Mapping[str, Path | bytes], own: Iterable[str]
) -> Iterator[tuple[str, int, str]]:
    """State, size and path of each file that a push would send, pass over or delete."""
    from huggingface_hub import CommitOperationAdd

    for path, source in content.items():
        addition, known = CommitOperationAdd(path, source), there.get(path)
        state = "new" if known is None else "same" if Remote.holds(known, addition) else "changed"
        yield state, addition.upload_info.size, path
    for path, file in there.items():
        if allowed(path, own) and path not in content:
            yield "gone", file.size, path
