"""Webdataset tars: the files of a sample stand side by side and share their name up to the first dot.

One bad place in a tar costs the sample that it hits. Python's tarfile finds the next header by itself when it is told
to pass over blocks that are none (`ignore_zeros`); what is passed over is counted here.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ar_t2i.data.sample import MAX_FILE_BYTES, Reason, Sample, UnreadableShard

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
CAPTION_SUFFIXES = ("txt", "text", "caption")
CAPTION_COLUMNS = ("caption", "text", "prompt")
"""Names of the caption in tables and json, first match first, in any case."""

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's rule: the key ends at the first dot of the file name
_META = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


@dataclass(frozen=True, kw_only=True)
class TarShard:
    """A tar file, a url of one, or `pipe:COMMAND` that writes one."""

    name: str
    """Last two parts of the path: tells shards apart and shows no more of the machine than that."""
    url: str
    """Path, url or pipe."""
    fingerprint: str | None
    """Size and time of a local file, None for others; cheap, so that a run can begin at once."""
    caption_column: str | None = None
    """Key of the caption in KEY.json; None: KEY.txt, else a usual key of KEY.json."""

    def samples(self, images: bool = True, captions: bool = True) -> Iterator[Sample]:
        """The samples in the tar's order; see `shards.iterate_samples`."""
        group = None
        for member in _members(self.url, images, captions):
            if group is None or (member.key and member.key != group.key) or member.suffix in group.files:
                if group is not None:
                    yield from group.samples(images, captions, self.caption_column)
                group = _Group(member.key or self.name)
            group.add(member)
        if group is not None:
            yield from group.samples(images, captions, self.caption_column)

    def checksum(self) -> str | None:
        """sha256 of a local file, None for others."""
        return file_checksum(self.url) if is_local(self.url) else None


@dataclass(frozen=True, slots=True)
class _Member:
    key: str  # empty: damage between members
    suffix: str
    data: bytes = b""
    reason: Reason | None = None
    done: float = 0.0


@dataclass
class _Group:
    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    reason: Reason | None = None
    done: float = 0.0

    def add(self, member: _Member) -> None:
        self.done = member.done
        if member.reason is None:
            self.files[member.suffix] = member.data
        else:
            self.reason = self.reason or member.reason

    def samples(self, images: bool, captions: bool, caption_column: str | None) -> Iterator[Sample]:
        """The sample, and one more entry for damage that did not hit it."""
        image, caption = _pick(self.files, IMAGE_SUFFIXES), self._caption(caption_column)
        lacking = (Reason.NO_IMAGE if images and image is None else
                   Reason.NO_CAPTION if captions and caption is None else None)  # fmt: skip
        if lacking is not None:
            yield Sample(key=self.key, reason=self.reason or lacking, done=self.done)
            return
        wanted_image, wanted_caption = image if images else None, caption if captions else None
        yield Sample(key=self.key, image=wanted_image, caption=wanted_caption, done=self.done)
        if self.reason is not None:
            yield Sample(key=f"after {self.key}", reason=self.reason, done=self.done)

    def _caption(self, column: str | None) -> bytes | str | None:
        text = _pick(self.files, CAPTION_SUFFIXES)
        if text is not None and column is None:
            return text
        try:
            found = json.loads(_pick(self.files, ("json",)) or b"{}")
        except ValueError:  # also raised for bytes that are no text
            return None
        if not isinstance(found, dict):
            return None
        name = column or guess_column(list(found), CAPTION_COLUMNS)
        value = found.get(name) if name else None
        return value if isinstance(value, str) else None


def file_checksum(path: str | Path) -> str | None:
    """sha256 of a file's contents, None for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def guess_column(present: list[str], usual: tuple[str, ...]) -> str | None:
    """The first usual name that is present, in any case."""
    lower = {str(name).lower(): name for name in reversed(present)}
    return next((lower[name] for name in usual if name in lower), None)


def _pick(files: dict[str, bytes], suffixes: tuple[str, ...]) -> bytes | None:
    for suffix in suffixes:
        if suffix in files:
            return files[suffix]
    loose = [name for name in files if name.rpartition(".")[2] in suffixes]  # "v2.jpg", the suffix of photo.v2.jpg
    return files[loose[0]] if len(loose) == 1 else None


def _members(url: str, images: bool, captions: bool) -> Iterator[_Member]:
    """Members that belong to samples, and one without a key for each damaged place; unwanted contents are not read."""
    kinds = (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, "json")
    read = (IMAGE_SUFFIXES if images else ()) + ((*CAPTION_SUFFIXES, "json") if captions else ())
    try:
        with _opened(url) as stream:
            size = os.fstat(stream.fileno()).st_size if is_local(url) else 0
            header = _header_class()
            archive = _archive(stream, size, header)
            if archive is None:
                yield _Member("", "", reason=Reason.DAMAGED_TAR)
                return
            for info in _headers(archive, header):
                done = min(archive.offset / size, 1.0) if size else 0.0
                if info is None:
                    yield _Member("", "", reason=Reason.DAMAGED_TAR, done=done)
                elif info.isreg() and (name := _NAME.match(info.name)) and not _META.match(info.name):
                    key = name[1].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                    suffix = name[2].lower()
                    kind = suffix.rpartition(".")[2]
                    if kind in kinds:
                        data, reason = _read(archive, info) if kind in read else (b"", None)
                        yield _Member(key, suffix, data, reason, done)
    except OSError as error:  # from the disk or a download; tarfile has its own errors for the contents
        raise UnreadableShard(f"cannot read {url}: {error}") from error


def _header_class() -> type[tarfile.TarInfo]:
    """A header that counts in `damaged` the blocks that should hold one and hold something else."""

    class Header(tarfile.TarInfo):
        damaged = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                cls.damaged += any(buf)  # zeros, or nothing, end an archive as they should
                raise

    return Header


def _archive(stream: Any, size: int, header: type[tarfile.TarInfo]) -> tarfile.TarFile | None:
    seekable = size > 0 and not stream.peek(6).startswith(_COMPRESSED)  # seeking passes over unwanted pictures
    try:
        return tarfile.open(fileobj=stream, mode="r:" if seekable else "r|*", tarinfo=header, ignore_zeros=True)
    except tarfile.TarError:
        return None


def _headers(archive: tarfile.TarFile, header: Any) -> Iterator[tarfile.TarInfo | None]:
    """Each header in order, None for each damaged place."""
    known = 0
    while True:
        try:
            info = archive.next()
        except (tarfile.TarError, ValueError, OverflowError):
            yield None
            position = archive.fileobj.tell()  # type: ignore[union-attr]
            if position <= archive.offset:
                return
            archive.offset = position  # past what tarfile stumbled over
            continue
        if header.damaged > known:
            known = header.damaged
            yield None
        if info is None:
            return
        archive.members.clear()  # type: ignore[attr-defined]
        yield info


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> tuple[bytes, Reason | None]:
    if info.size > MAX_FILE_BYTES:
        return b"", Reason.FILE_TOO_LARGE
    try:
        file = archive.extractfile(info)
        assert file is not None, "only regular members are read"
        return file.read(), None
    except tarfile.TarError:
        return b"", Reason.DAMAGED_TAR


def is_local(url: str) -> bool:
    """Whether `url` is a plain path."""
    return not url.startswith("pipe:") and "://" not in url


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """A binary stream; closing one that was read to its end raises OSError if the command behind it failed."""
    if is_local(url):
        stream = open(url, "rb")
    else:
        from webdataset.gopen import gopen

        stream = gopen(url)
    try:
        yield stream
    except BaseException:
        with suppress(OSError):  # the first trouble is the one to tell: Ctrl-C ends the command too
            stream.close()
        raise
    stream.close()
