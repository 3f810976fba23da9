"""Names of what is used: a folder here, or `owner/name` on the Hub, with `@revision` where it is not main."""

import fnmatch
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ar_t2i.hub.remote import Remote, RepoType, Unavailable, file_digest, patiently

BUNDLE_FILES = (
    "README.md", "LICENSE", "ar_t2i.json", "config.json", "generation_config.json", "words.txt", "*.png",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "preprocessor_config.json", "config.yaml", "metrics.jsonl",
    "image_tokenizer/README.md", "image_tokenizer/config.json", "image_tokenizer/model.safetensors",
    "image_tokenizer/reference.json", "verifier/config.json", "verifier/model.safetensors",
)  # fmt: skip
"""What may stand in a bundle, an image tokenizer's folder or a vocabulary's; nothing else goes up or comes down."""
CHECKPOINT_FILES = (
    "model.safetensors", "ema.safetensors", "optimizer.safetensors", "companions.safetensors", "state.json",
)  # fmt: skip
"""The files of one training checkpoint."""
CHECKPOINTS = tuple(f"checkpoints/*/{name}" for name in CHECKPOINT_FILES)
"""Those of all checkpoints of a repository."""
DATASET_FILES = ("README.md", "LICENSE", "*.png", "data/*.parquet", "manifest.json", "manifest/*.json")
"""What may stand in a tokenized dataset."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.npy", "*.npz", "*.joblib")
"""Names of weights that can hold code."""


def split_id(name: str) -> tuple[str, str]:
    """`owner/name@revision` as id and revision, "main" where none is said.

    Raises:
        ValueError: no id of the Hub.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo_id, _, revision = name.partition("@")
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("no owner")
        if (
            not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision or "main") or ".." in revision
        ):  # names a file in the cache
            raise HFValidationError("no revision")
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} is neither a folder here nor an id of the Hub, owner/name or owner/name@revision"
        ) from error
    return repo_id, revision or "main"


def link_to(name: str) -> str:
    """The id of the Hub that a name means, without its revision; "" where it means a folder, a file or a url."""
    try:
        return "" if Path(name).exists() else split_id(name)[0]
    except ValueError:
        return ""


def allowed(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path matches one of the patterns, whose * stop at a slash."""
    return any(pattern.count("/") == path.count("/") and fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def resolve(name: str | Path, patterns: Sequence[str] = BUNDLE_FILES, repo_type: RepoType = "model") -> Path:
    """A folder here: the one named, or the Hub's cache after a download of what is missing.

    Everything that was downloaded is compared with the checksums of the Hub. Without network the cache is used.

    Args:
        name: a folder, or an id of the Hub.
        patterns: the files that are wanted.
        repo_type: of the repository.

    Raises:
        ValueError: neither a folder nor a repository that can be read, or damaged files.
    """
    return Path(name) if Path(name).is_dir() else download(str(name), patterns, repo_type)


def download(name: str, patterns: Sequence[str] = BUNDLE_FILES, repo_type: RepoType = "model") -> Path:
    """As `resolve`, of an id of the Hub alone: what a file names must not lead to a folder here.

    Raises:
        ValueError: no repository that can be read, or damaged files.
    """
    remote = Remote(*split_id(name), repo_type=repo_type)
    for _ in range(2):
        folder = _snapshot(remote, patterns)
        damaged = _damaged(folder)
        if not damaged:
            return folder
        for path in damaged:
            Path(os.path.realpath(path)).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    names = ", ".join(path.relative_to(folder).as_posix() for path in damaged)
    raise ValueError(f"{name}: {names} came damaged from the Hub twice: try again later, or tell its owner")


def resolve_checkpoint(name: str | Path) -> Path:
    """The folder of a training checkpoint: the one named, or the newest one of a repository, downloaded.

    Raises:
        ValueError: no folder and no repository that holds one.
    """
    if Path(name).is_dir():
        return Path(name)
    repo_id, revision = split_id(str(name))
    folder = resolve(name, ("checkpoints/*/state.json",))
    found = [int(path.name[5:]) for path in folder.glob("checkpoints/step-*") if path.name[5:].isdecimal()]
    if not found:
        raise ValueError(f"{name} holds no training checkpoint: expected checkpoints/step-*/ in it")
    newest = f"checkpoints/step-{max(found):06d}"
    files = [f"{newest}/{file}" for file in CHECKPOINT_FILES]
    return resolve(f"{repo_id}@{folder.name}", files) / newest


def refuse_pickles(paths: Iterable[str], name: str) -> None:
    """Raise ValueError if there are weights, and all of them are pickled."""
    paths = list(paths)
    pickled = [path for path in paths if any(fnmatch.fnmatchcase(path, pattern) for pattern in PICKLED)]
    if pickled and not any(path.endswith(".safetensors") for path in paths):
        raise ValueError(
            f"{name} has its weights as {pickled[0]}, a pickle, which can run code when it is read: "
            "ask its owner for safetensors"
        )


def _snapshot(remote: Remote, patterns: Sequence[str]) -> Path:
    """The cached folder of a revision, brought up to date where there is a way to the Hub."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where: dict[str, Any] = {"repo_id": remote.repo_id, "repo_type": remote.repo_type, "revision": remote.revision}

    def download() -> Path:
        commit = remote.api.repo_info(**where).sha  # asked first: below, a 503 quietly means the cache
        folder = Path(snapshot_download(**where, allow_patterns=list(patterns)))
        if folder.name != commit:
            raise ConnectionError(f"{remote} moved on while it was read")
        return folder

    state = "the network is switched off (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        try:
            folder = patiently(download, f"download {remote}")
            if remote.repo_type == "model" and not any(folder.rglob("*.safetensors")):
                refuse_pickles(remote.files(folder.name), str(remote))
            return folder
        except Unavailable as error:
            state = str(error)
    try:
        folder = Path(snapshot_download(**where, allow_patterns=list(patterns), local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{remote} is neither a folder here nor in the cache, and {state}") from error
    if not constants.HF_HUB_OFFLINE:
        print(f"{remote} is taken from the cache, as it was last downloaded: {state}", file=sys.stderr)
    return folder


def _damaged(folder: Path) -> list[Path]:
    """Files of a snapshot whose content is not what their name in the cache says; each content is looked at once."""
    stamp = folder.parents[1] / "ar_t2i-verified.json"
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    damaged = []
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():  # a cache without links keeps no digests
            continue
        blob = Path(os.path.realpath(path))
        state = [blob.stat().st_size, blob.stat().st_mtime_ns]
        if known.get(blob.name) == state:
            continue
        if file_digest(blob, "sha256" if len(blob.name) == 64 else "git-sha1") != blob.name:
            damaged.append(path)
        else:
            known[blob.name] = state
    temporary = stamp.with_suffix(f".{os.getpid()}")
    try:
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(stamp)
    except OSError:  # a cache that only others may write to
        temporary.unlink(missing_ok=True)
    return damaged


def fetch(name: str, out: Path, patterns: Sequence[str], repo_type: RepoType) -> list[str]:
    """Download files of a repository into a folder and compare them with the Hub's checksums.

    After a download that was broken off, whole files are kept.

    Returns:
        the paths, as they are named there.

    Raises:
        ValueError: no such repository, nothing in it that is wanted, damaged files, a full disk.
    """
    from huggingface_hub import snapshot_download

    repo_id, revision = split_id(name)
    remote = Remote(repo_id, revision, repo_type)
    try:
        commit = remote.head()
    except ValueError as error:
        other: RepoType = "dataset" if repo_type == "model" else "model"
        if "no such repository" in str(error) and Remote(repo_id, revision, other).exists():
            raise ValueError(f"{remote} is a {other}: give --type {other}") from error
        raise
    there = remote.files(commit)
    refuse_pickles(there, name)
    wanted = {path: file for path, file in there.items() if allowed(path, patterns)}
    if not wanted:
        raise ValueError(f"{remote} holds nothing that is used here; it has {', '.join(sorted(there)[:5])}")
    here = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    stray = [path for path in here if allowed(path, patterns) and path not in wanted]
    if stray:
        raise ValueError(
            f"{out / stray[0]} is not of {remote} ({len(stray)} such files), and both must not be mixed: "
            "move it away, or give another --out"
        )

    def download() -> object:
        where: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type, "revision": commit, "local_dir": out}
        return snapshot_download(**where, allow_patterns=sorted(wanted))

    for _ in range(2):
        remote.ask("download", download)
        with ThreadPoolExecutor() as pool:  # a digest leaves the interpreter to the others
            whole = pool.map(lambda path: _is_whole(out / path, wanted[path]), wanted)
            damaged = [path for path, good in zip(wanted, whole, strict=True) if not good]
        if not damaged:
            break
        for path in damaged:
            (out / path).unlink(missing_ok=True)
    else:
        raise ValueError(f"{remote}: {', '.join(damaged)} came damaged from the Hub twice: try again later")
    shutil.rmtree(out / ".cache" / "huggingface", ignore_errors=True)
    if (out / ".cache").is_dir() and not any((out / ".cache").iterdir()):
        (out / ".cache").rmdir()
    return sorted(wanted)


def _is_whole(path: Path, file: object) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:  # type: ignore[attr-defined]
        return False
    lfs = file.lfs  # type: ignore[attr-defined]
    return file_digest(path, "sha256") == lfs.sha256 if lfs else file_digest(path, "git-sha1") == file.blob_id  # type: ignore[attr-defined]
