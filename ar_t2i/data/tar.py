"""Webdataset tars: the files of a sample stand side by side and share their name up to the first dot.

One bad place in a tar costs the sample that it hits. Python's tarfile finds the next header by itself when it is told
to pass over blocks that are none (`ignore_zeros`); what is passed over is counted here. Nothing is ever extracted to
the disk, and of files that are neither pictures nor captions nothing is read: a name is a key, and no more.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ar_t2i.data.sample import MAX_FILE_BYTES, MAX_TEXT_BYTES, Reason, Sample, UnreadableShard
from ar_t2i.untrusted import parse_json

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
CAPTION_SUFFIXES = ("txt", "text", "caption")
CAPTION_COLUMNS = ("caption", "text", "prompt")
"""Names of the caption in tables and json, first match first, in any case."""

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's rule: the key ends at the first dot of the file name
_META = re.compile(r"__[^/]*__($|/)")
_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_MOST_UNPACKED = 200
"""A compressed tar that becomes so many times larger, and larger than a picture file may be, is a bomb."""
_GROUP_FILES = 1000
"""Of one sample."""
_EXTENSION_BYTES = 8 * 1024
"""Of a header that gives a member a longer name and the like: what tarfile makes of it grows as the square."""
_EXTENSIONS = 4
"""Such headers for one member; tarfile goes one level deeper for each."""
_EXTENDING = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
              tarfile.GNUTYPE_LONGLINK)  # fmt: skip


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
    size: int = 0

    def add(self, member: _Member) -> None:
        self.done = member.done
        self.size += len(member.data)
        if member.reason is not None:
            self.reason = self.reason or member.reason
        elif self.size > MAX_FILE_BYTES + MAX_TEXT_BYTES or len(self.files) >= _GROUP_FILES:
            self.reason = self.reason or Reason.FILE_TOO_LARGE
        else:
            self.files[member.suffix] = member.data

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
            found = parse_json(_pick(self.files, ("json",)) or b"{}", self.key)
        except ValueError:
            return None
        name = column or guess_column(list(found), CAPTION_COLUMNS)
        value = found.get(name) if name else None
        return value if isinstance(value, str) else None


def file_checksum(path: str | Path) -> str | None:
    """sha256 of a file's contents, None for one that cannot be read or is no plain file."""
    try:
        if not os.path.isfile(path):
            return None
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
            header = _header_class()
            archive, size = _archive(stream, is_local(url), header)
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
                        most = MAX_FILE_BYTES if kind in IMAGE_SUFFIXES else MAX_TEXT_BYTES
                        data, reason = _read(archive, info, most) if kind in read else (b"", None)
                        yield _Member(key, suffix, data, reason, done)
    except OSError as error:  # from the disk or a download; tarfile has its own errors for the contents
        raise UnreadableShard(f"cannot read {url}: {error}") from error


def _header_class() -> type[tarfile.TarInfo]:
    """A header that counts in `damaged` the blocks that should hold one and hold something else.

    Something else is also what would make tarfile read without end: sizes below zero, long extensions, many of them
    behind each other, and maps of sparse files.
    """

    class Header(tarfile.TarInfo):
        damaged = 0
        extensions = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            try:
                found = super().frombuf(buf, encoding, errors)
                extends = found.type in _EXTENDING
                cls.extensions = cls.extensions + 1 if extends else 0
                too_long = found.size > (_EXTENSION_BYTES if extends else 2**62)
                if found.size < 0 or too_long or cls.extensions > _EXTENSIONS or found.type == tarfile.GNUTYPE_SPARSE:
                    raise tarfile.InvalidHeaderError("not one of a webdataset")  # type: ignore[attr-defined]
                return found
            except tarfile.HeaderError:
                cls.damaged += any(buf)  # zeros, or nothing, end an archive as they should
                raise

        def _no_sparse(self, *_: object) -> None:
            raise tarfile.ReadError("a sparse file")

        _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse

    return Header


def _archive(stream: Any, local: bool, header: type[tarfile.TarInfo]) -> tuple[tarfile.TarFile | None, int]:
    """The archive, and its size where that is known: seeking passes over unwanted pictures."""
    size = os.fstat(stream.fileno()).st_size if local else 0
    raw = _Raw(stream)
    source: Any = stream if local else io.BufferedReader(raw)
    start = source.peek(6)
    packed = next((kind for mark, kind in _COMPRESSED.items() if start.startswith(mark)), None)
    if packed is not None:
        source, size = _Unpacked(packed(source), source.tell if local else lambda: raw.count), 0
    mode: Any = "r:" if size else "r|"
    try:
        return tarfile.open(fileobj=source, mode=mode, tarinfo=header, ignore_zeros=True), size
    except tarfile.TarError:
        return None, 0


class _Raw(io.RawIOBase):
    """A stream that only reads, such as the output of a command, as io's buffers want it."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.count = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class _Unpacked:
    """The contents of a compressed stream, which ends where it is damaged, or where it is a bomb."""

    def __init__(self, stream: Any, packed: Callable[[], int]) -> None:
        self.stream, self.packed, self.count = stream, packed, 0

    def read(self, size: int) -> bytes:
        try:
            data = self.stream.read(size)
        except OSError as error:
            if error.errno is not None:  # from the disk or a download; the errors of damage have no number
                raise
            return b""
        except (EOFError, zlib.error, lzma.LZMAError):
            return b""
        self.count += len(data)
        if self.count > max(_MOST_UNPACKED * self.packed(), 2 * MAX_FILE_BYTES):
            raise tarfile.ReadError("a compressed tar that is a bomb")
        return data


def _headers(archive: tarfile.TarFile, header: Any) -> Iterator[tarfile.TarInfo | None]:
    """Each header in order, None for each damaged place."""
    known, before = 0, -1
    while True:
        try:
            info = archive.next()
            if info is not None and archive.offset <= before:
                raise tarfile.ReadError("a size below zero leads back")
        except (tarfile.TarError, ValueError, OverflowError, AttributeError, TypeError):  # the last: odd extensions
            yield None
            position = archive.fileobj.tell()  # type: ignore[union-attr]
            if position <= max(archive.offset, before):
                return
            archive.offset = before = position  # past what tarfile stumbled over
            continue
        before = archive.offset
        if header.damaged > known:
            known = header.damaged
            yield None
        if info is None:
            return
        archive.members.clear()  # type: ignore[attr-defined]
        if len(archive.pax_headers) > _GROUP_FILES:
            archive.pax_headers = {}
        yield info


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo, most: int) -> tuple[bytes, Reason | None]:
    if info.size > most:
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
