"""`ar-t2i pull`: a folder from the Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ar_t2i.hub.names import BUNDLE_FILES, CHECKPOINTS, DATASET_FILES, fetch
from ar_t2i.hub.remote import RepoType

FILES: dict[RepoType, tuple[str, ...]] = {"model": (*BUNDLE_FILES, *CHECKPOINTS), "dataset": DATASET_FILES}


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Options of `ar-t2i pull`."""

    repo: str
    """owner/name on the Hub, or owner/name@revision: a branch, a tag or a commit."""
    out: str = ""
    """Folder to write to; the repository's name if not given."""
    type: Literal["model", "dataset"] = "model"
    """What it is: model for bundles, image tokenizers, vocabularies and checkpoints."""


def pull(config: PullConfig) -> Path:
    """Download a repository's files that are of use here, and compare them with the Hub's checksums.

    What was broken off is finished by another call; nothing but data is taken: no code, no pickles.

    Raises:
        ValueError: no such repository, nothing of use in it, damaged files, a full disk; the message says what to do.
    """
    out = Path(config.out or config.repo.partition("@")[0].rpartition("/")[2])
    paths = fetch(config.repo, out, FILES[config.type], config.type)
    print(f"{out}: {len(paths)} files, compared with their checksums")
    return out
