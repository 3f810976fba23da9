"""What made a report: versions, commit, the contents of weights."""

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import ar_t2i


def versions() -> dict[str, str]:
    """Of this package and what its figures rest on."""
    names = ("torch", "transformers", "numpy", "pillow")
    return {
        "ar_t2i": ar_t2i.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def commit() -> str | None:
    """The commit of this package where it lies in a checkout, with a plus where files have been changed."""
    folder = Path(__file__).parent
    if not any((parent / ".git").exists() for parent in folder.parents[1:2]):
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    said = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        said.append(done.stdout.strip())
    return said[0] + ("+" if said[1] else "")


def digest_of(path: Path) -> str:
    """sha256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_all(folder: Path, *patterns: str) -> str:
    """sha256 of the contents of all files that a pattern finds in a folder, whatever their names."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return hashlib.sha256(json.dumps([digest_of(path) for path in found]).encode()).hexdigest()
