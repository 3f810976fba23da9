"""A folder of pictures, each with its caption in a text file of the same name, cut into shards."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ar_t2i.data.sample import MAX_FILE_BYTES, MAX_TEXT_BYTES, Reason, Sample
from ar_t2i.data.tar import CAPTION_SUFFIXES, IMAGE_SUFFIXES, file_checksum
from ar_t2i.untrusted import read_bytes


@dataclass(frozen=True, kw_only=True)
class FolderShard:
    """Some pictures of a folder, each with its caption in a text file of the same name."""

    name: str
    folder: str
    files: tuple[tuple[str, str], ...]
    """Picture and caption, relative to the folder; empty where there is none."""
    fingerprint: str
    """Of names, sizes and times."""

    def samples(self, images: bool = True, captions: bool = True) -> Iterator[Sample]:
        """The samples in the order of their names; see `shards.iterate_samples`."""
        for i, (image, caption) in enumerate(self.files):
            key = os.path.splitext(image or caption)[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            lacks_image, lacks_caption = images and not image, captions and not caption
            reason = Reason.NO_IMAGE if lacks_image else Reason.NO_CAPTION if lacks_caption else None
            yield with_files(
                key.replace(os.sep, "/"),
                Path(self.folder, image) if images and not reason else None,
                lambda name=caption: read_bytes(Path(self.folder, name), MAX_TEXT_BYTES) if captions else None,
                reason,
                (i + 1) / len(self.files),
            )

    def checksum(self) -> str:
        """sha256 of names and contents."""
        digest = hashlib.sha256()
        for path in (path for pair in self.files for path in pair if path):
            content = file_checksum(Path(self.folder, path))
            digest.update(f"{path}\0{content}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def folder_shards(folder: Path, name: str, rows: int) -> Iterator[FolderShard]:
    """Cut a folder, subfolders included, into shards of `rows` pictures; hidden files are passed over."""
    entries = sorted(_pairs(folder))
    for start in range(0, len(entries), rows):
        files = tuple(entries[start : start + rows])
        digest = hashlib.sha256()
        for path in (path for pair in files for path in pair if path):
            digest.update(f"{path}\0{_state(folder / path)}\n".encode("utf-8", "surrogateescape"))
        yield FolderShard(
            name=f"{name}#{start // rows:05d}", folder=str(folder), files=files, fingerprint=digest.hexdigest()
        )


def _state(path: Path) -> str:
    """Size and time; nothing for a link that leads nowhere, which costs its sample alone."""
    try:
        status = path.stat()
        return f"{status.st_size}\0{status.st_mtime_ns}"
    except OSError:
        return ""


def _pairs(folder: Path) -> Iterator[tuple[str, str]]:
    for root, directories, names in os.walk(folder):
        directories[:] = [name for name in directories if not name.startswith((".", "__MACOSX"))]
        relative = os.path.relpath(root, folder)
        images, captions = {}, {}
        for name in names:
            stem, suffix = os.path.splitext(name)
            path = os.path.normpath(os.path.join(relative, name))
            if not name.startswith(".") and suffix[1:].lower() in IMAGE_SUFFIXES:
                images[path] = os.path.join(relative, stem)
            elif not name.startswith(".") and suffix[1:].lower() in CAPTION_SUFFIXES:
                captions[os.path.join(relative, stem)] = path
        for path, stem in images.items():
            yield path, captions.get(stem, "")
        for stem in captions.keys() - set(images.values()):
            yield "", captions[stem]


def with_files(
    key: str, image: Path | None, caption: Callable[[], bytes | str | None], reason: Reason | None, done: float
) -> Sample:
    """A sample whose contents lie in files, which may be missing; `caption` is called to read it."""
    if reason is not None:
        return Sample(key=key, reason=reason, done=done)
    try:
        if image is not None and image.stat().st_size > MAX_FILE_BYTES:
            return Sample(key=key, reason=Reason.FILE_TOO_LARGE, done=done)
        content = read_bytes(image, MAX_FILE_BYTES) if image else None
        return Sample(key=key, image=content, caption=caption(), done=done)
    except (OSError, ValueError):  # ValueError: a NUL character in a path, or no plain file
        return Sample(key=key, reason=Reason.MISSING_FILE, done=done)
