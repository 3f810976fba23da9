#!/usr/bin/env python3
"""A small stand-in for the Hugging Face Hub HTTP API, for tests on loopback.

Standard library only (PyYAML is used to check README metadata when it is there).
No git: a repository is a set of refs, a commit is an immutable {path: entry} map
with a 40-hex id, file contents live in a content-addressed folder.

Command line
    python hub_server.py --port 8765 --root DIR
    (prints one JSON line with the URL and the variables to set, then serves)

In a test
    with HubServer() as hub:
        env = hub.env(empty_dir)   # HF_ENDPOINT, HF_TOKEN, ...
        hub.fail(method="POST", path="/commit/", nth=2, status=503)
        ...
        assert hub.unknown == []

Control API (no token, loopback only, never counted by faults)
    GET    /_hub/health               {"ok": true}
    GET    /_hub/log                  requests seen so far;  DELETE clears
    GET    /_hub/state                repos, refs, commit counts, file lists
    GET    /_hub/faults               rules;  POST adds one or a list;  DELETE clears
    GET    /_hub/settings             tunables;  POST changes some of them
"""

from __future__ import annotations

import argparse
import base64
import binascii
import datetime as dt
import fnmatch
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

MB = 1024 * 1024
CHUNK = 256 * 1024
TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}

# What a fresh repository contains, as on the real Hub: one commit with this file.
GITATTRIBUTES = "".join(
    f"{p} filter=lfs diff=lfs merge=lfs -text\n"
    for p in (
        "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lz4 *.mds *.model *.msgpack *.npy *.npz "
        "*.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar *.tflite *.tgz *.wasm "
        "*.xz *.zip *.zst saved_model/**/* *tfevents*"
    ).split()
)


# --------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Entry:
    """One file of a commit. `blob` is the sha256 of its content (the storage key)."""

    blob: str
    size: int
    oid: str  # git blob id: of the content, or of the LFS pointer file
    lfs: bool
    pointer_size: int = 0
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        return self.blob if self.lfs else self.oid


@dataclass
class Commit:
    id: str
    parents: list[str]
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, Entry]


@dataclass
class Repo:
    type: str
    id: str
    private: bool
    created: str
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    prs: dict[str, str] = field(default_factory=dict)  # "1" -> commit id
    pr_info: dict[str, dict] = field(default_factory=dict)
    lfs: dict[str, int] = field(default_factory=dict)  # sha256 -> size, uploaded to this repo
    gated: Any = False


@dataclass
class User:
    name: str
    role: str = "write"  # "write" or "read"
    orgs: tuple[str, ...] = ()


@dataclass
class Fault:
    """Matching requests number nth .. nth+times-1 (counted from when the rule is added) misbehave.

    action  status    answer `status` (with `headers`) instead of the real answer
            reset     close the connection without an answer
            reset-half  the same when half of the request's body has been read
            truncate  real answer, but the body stops half-way and the connection closes (FIN)
            truncate-rst  the same with a TCP reset
            corrupt   real answer with one body byte flipped
            delay     wait `seconds`, then answer as usual
            hang      wait `seconds`, then close without an answer
    when    before    the request is not carried out
            after     it is carried out first (e.g. the commit lands, its answer is lost);
                      only with status / reset / hang
    """

    method: str = ""  # regex, "" = any
    path: str = ""  # regex searched in "path?query" after percent-decoding
    nth: int = 1
    times: int = 1  # <= 0: for ever
    action: str = "status"
    status: int = 503
    when: str = "before"
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    body: dict | None = None
    seen: int = 0
    hits: int = 0

    def matches(self, method: str, target: str) -> bool:
        if self.method and not re.fullmatch(self.method, method, re.I):
            return False
        if self.path and not re.search(self.path, target):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times > 0 and self.seen >= self.nth + self.times):
            return False
        self.hits += 1
        return True


@dataclass
class Settings:
    upload_mode: str = "auto"  # auto | lfs | regular
    lfs_threshold: int = 10 * MB  # auto: files this big are LFS whatever their name
    regular_max: int = 10 * MB  # auto: bigger regular files are refused at commit time
    multipart_size: int = 0  # > 0: LFS files bigger than this are sent in parts of this size
    page_size: int = 1000  # tree and commit listings
    cdn: str = ""  # "" | "other": LFS downloads redirect to another origin (localhost:PORT)
    latency: float = 0.0  # seconds before each answer
    bandwidth: float = 0.0  # bytes per second, both ways; 0 = unlimited
    require_token_for_public: bool = False
    xet_dir: str = ""  # != "": xet works too, see "xet" below
    xet_downloads: bool = True  # with xet_dir: announce X-Xet-Hash, so that hf_xet downloads as well


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **extra):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = dict(headers or {})
        self.extra = extra


class Abort(Exception):
    """Drop the connection now: with a TCP reset, or (rst=False) with an ordinary close."""

    def __init__(self, why: str, rst: bool = True):
        super().__init__(why)
        self.rst = rst


def now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


# --------------------------------------------------------------------------- store


class Hub:
    """State and rules, no HTTP."""

    def __init__(self, root: Path, tokens: dict[str, User], settings: Settings, persist: bool):
        self.root, self.tokens, self.settings, self.persist = root, tokens, settings, persist
        self.blobs = root / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        (root / "tmp").mkdir(exist_ok=True)
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.grants: dict[str, dict] = {}  # signed-URL stand-ins for LFS uploads and CDN downloads
        self.faults: list[Fault] = []
        self.log: list[dict] = []
        self.unknown: list[str] = []
        self.xet_hashes: dict[str, str] = {}  # sha256 -> xet file hash
        self.count = 0  # requests so far, control routes left out
        self.counter = 0  # commits so far
        if persist and (root / "state.json").exists():
            self._load()

    # -- users

    def can_read(self, repo: Repo, user: User | None) -> bool:
        ns = repo.id.split("/")[0]
        return not repo.private or (user is not None and (ns == user.name or ns in user.orgs))

    def can_write_ns(self, ns: str, user: User | None) -> bool:
        return user is not None and user.role == "write" and (ns == user.name or ns in user.orgs)

    # -- repos

    def repo(self, rtype: str, rid: str, user: User | None, write: bool = False) -> Repo:
        repo = self.repos.get((rtype, rid))
        if repo is None or not self.can_read(repo, user):
            if user is None:  # the real Hub does not tell anonymous callers what exists
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write:
            if user is None:
                raise HubError(401, "Invalid username or password.")
            if not self.can_write_ns(rid.split("/")[0], user):
                raise HubError(403, f"You don't have the required permissions to write to {rid}")
        return repo

    def create_repo(self, rtype: str, rid: str, private: bool, user: User) -> Repo:
        with self.lock:
            repo = Repo(rtype, rid, private, now())
            data = GITATTRIBUTES.encode()
            tree = {".gitattributes": self.put_regular(data)}
            self.add_commit(repo, None, tree, "initial commit", "", user.name, "branches", "main")
            self.repos[(rtype, rid)] = repo
            self.save()
            return repo

    def resolve(self, repo: Repo, rev: str) -> Commit:
        for table, name in (
            (repo.branches, rev.removeprefix("refs/heads/")),
            (repo.tags, rev.removeprefix("refs/tags/")),
            (repo.prs, rev.removeprefix("refs/pr/") if rev.startswith("refs/pr/") else ""),
        ):
            if name in table:
                return repo.commits[table[name]]
        if re.fullmatch(r"[0-9a-f]{7,40}", rev):
            found = [c for c in repo.commits if c.startswith(rev)]
            if len(found) == 1:
                return repo.commits[found[0]]
        raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")

    def add_commit(self, repo, parent, tree, title, message, author, table, name) -> Commit:
        self.counter += 1
        listing = "".join(f"{p}\0{e.oid}\n" for p, e in sorted(tree.items()))
        date = now()
        seed = f"{repo.type}/{repo.id}|{parent}|{title}|{message}|{author}|{date}|{self.counter}|{listing}"
        cid = hashlib.sha1(seed.encode()).hexdigest()
        commit = Commit(cid, [parent] if parent else [], title, message, author, date, dict(tree))
        repo.commits[cid] = commit
        getattr(repo, table)[name] = cid
        return commit

    def history(self, repo: Repo, head: Commit) -> Iterator[Commit]:
        cur: Commit | None = head
        while cur is not None:
            yield cur
            cur = repo.commits.get(cur.parents[0]) if cur.parents else None

    def last_change(self, repo: Repo, head: Commit, path: str) -> Commit:
        cur = head
        for c in self.history(repo, head):
            if c.tree.get(path) != head.tree.get(path):
                break
            cur = c
        return cur

    # -- content

    def blob_path(self, sha256: str) -> Path:
        return self.blobs / sha256

    def put_bytes(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        target = self.blob_path(sha)
        if not target.exists():
            tmp = self.root / "tmp" / secrets.token_hex(8)
            tmp.write_bytes(data)
            os.replace(tmp, target)
        return sha

    def put_regular(self, data: bytes) -> Entry:
        return Entry(self.put_bytes(data), len(data), git_blob_id(data), False)

    def lfs_entry(self, sha256: str, size: int, xet_hash: str | None = None) -> Entry:
        pointer = lfs_pointer(sha256, size)
        return Entry(sha256, size, git_blob_id(pointer), True, len(pointer), xet_hash)

    def read(self, entry: Entry) -> bytes:
        return self.blob_path(entry.blob).read_bytes()

    def adopt_xet(self, repo: Repo, sha256: str) -> bool:
        """Fetch a file that hf_xet has put into xet_dir; True if it is there and its content is right."""
        if not self.settings.xet_dir:
            return False
        found = xet_find(Path(self.settings.xet_dir), sha256)
        if found is None:
            return False
        file_hash, terms = found
        data = b"".join(xet_chunks(Path(self.settings.xet_dir), *t) for t in terms)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, f"the xet content of {sha256} has another sha256")
        with self.lock:
            self.put_bytes(data)
            self.xet_hashes[sha256] = file_hash
            repo.lfs[sha256] = len(data)
        return True

    # -- persistence (only with --root on the command line)

    def save(self) -> None:
        if not self.persist:
            return
        with self.lock:
            state = {"counter": self.counter, "repos": [asdict(r) for r in self.repos.values()]}
            tmp = self.root / "state.json.tmp"
            tmp.write_text(json.dumps(state))
            os.replace(tmp, self.root / "state.json")

    def _load(self) -> None:
        state = json.loads((self.root / "state.json").read_text())
        self.counter = state["counter"]
        for raw in state["repos"]:
            commits = raw.pop("commits")
            repo = Repo(**raw)
            for cid, c in commits.items():
                tree = {p: Entry(**e) for p, e in c.pop("tree").items()}
                repo.commits[cid] = Commit(tree=tree, **c)
            self.repos[(repo.type, repo.id)] = repo


# --------------------------------------------------------------------------- helpers


def lfs_patterns(hub: Hub, tree: dict[str, Entry]) -> list[str]:
    entry = tree.get(".gitattributes")
    if entry is None:
        return []
    lines = hub.read(entry).decode("utf-8", "replace").splitlines()
    return [ln.split()[0] for ln in lines if "filter=lfs" in ln.split()[1:]]


def path_matches(path: str, pattern: str) -> bool:
    base = path.rsplit("/", 1)[-1]
    if pattern.endswith("/"):
        return path.startswith(pattern) or f"/{pattern}" in f"/{path}"
    if "/" in pattern:
        return fnmatch.fnmatchcase(path, pattern.lstrip("/").replace("**/", "*"))
    return fnmatch.fnmatchcase(base, pattern)


def check_path(path: Any) -> str:
    if not isinstance(path, str) or not path or path.startswith("/") or "\0" in path or "\\" in path:
        raise HubError(400, f"Invalid path: {path!r}")
    if any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"Invalid path: {path!r}")
    return path


def yaml_header(text: str) -> tuple[dict | None, str | None]:
    """(metadata or None, error or None) of a README's front matter."""
    m = re.match(r"\A(?:\ufeff)?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", text, re.S)
    if not m:
        return None, None
    try:
        import yaml
    except ImportError:
        return None, None
    try:
        data = yaml.safe_load(m.group(1))
    except yaml.YAMLError as err:
        return None, str(err)
    if data is None:
        return None, None
    if not isinstance(data, dict):
        return None, "metadata must be a mapping"
    return data, None


def split_dirs(tree: dict[str, Entry]) -> dict[str, str]:
    """All folders of a tree with a stable id."""
    members: dict[str, list[str]] = {}
    for path, e in sorted(tree.items()):
        parts = path.split("/")
        for i in range(1, len(parts)):
            members.setdefault("/".join(parts[:i]), []).append(f"{path}\0{e.oid}")
    return {d: hashlib.sha1("\n".join(m).encode()).hexdigest() for d, m in members.items()}


# --------------------------------------------------------------------------- xet
#
# hf_xet accepts "local://FOLDER" as the address of its storage service and then keeps everything in
# that folder itself, so the real xet upload path can be exercised without a storage service. This
# server only has to find what the client left there: FOLDER/**/shards/*.mdb says which pieces make up
# a file, FOLDER/**/xorbs/default.<hash> holds the pieces. (Formats: huggingface.co/docs/xet.)
# One client process at a time: the folder contains a database that is locked while in use.


def xet_hex(raw: bytes) -> str:
    """Xet prints hashes as four little-endian 64-bit words."""
    return b"".join(raw[i : i + 8][::-1] for i in range(0, 32, 8)).hex()


def xet_find(folder: Path, sha256: str) -> tuple[str, list[tuple[str, int, int]]] | None:
    """(file hash, [(xorb hash, first chunk, end chunk)]) of the file with this sha256."""
    for shard in sorted(folder.rglob("shards/*.mdb")):
        raw = shard.read_bytes()
        pos = 48  # header: 32 bytes of tag, version, footer size
        while pos + 48 <= len(raw):
            name, (flags, count) = raw[pos : pos + 32], struct.unpack_from("<II", raw, pos + 32)
            if name == b"\xff" * 32:
                break
            pos += 48
            terms = []
            for i in range(count):
                first, end = struct.unpack_from("<II", raw, pos + 48 * i + 40)
                terms.append((xet_hex(raw[pos + 48 * i : pos + 48 * i + 32]), first, end))
            pos += 48 * count
            if flags & 0x80000000:  # a verification entry for each term
                pos += 48 * count
            if flags & 0x40000000:  # one metadata entry: the sha256
                if xet_hex(raw[pos : pos + 32]) == sha256:
                    return xet_hex(name), terms
                pos += 48
    return None


def xet_chunks(folder: Path, xorb: str, first: int, end: int) -> bytes:
    path = next(folder.rglob(f"xorbs/default.{xorb}"), None)
    if path is None:
        raise HubError(400, f"xorb {xorb} is not in {folder}")
    raw, pos, out = path.read_bytes(), 0, []
    for i in range(end):
        packed, scheme, size = int.from_bytes(raw[pos + 1 : pos + 4], "little"), raw[pos + 4], raw[pos + 5 : pos + 8]
        pos += 8
        if i >= first:
            data = raw[pos : pos + packed]
            if scheme:
                data = lz4_frame(data)
            if scheme == 2:  # byte i of every group of four, for i = 0..3
                whole, at = bytearray(len(data)), 0
                for k in range(4):
                    n = len(range(k, len(data), 4))
                    whole[k::4] = data[at : at + n]
                    at += n
                data = bytes(whole)
            if len(data) != int.from_bytes(size, "little") or scheme > 2:
                raise HubError(400, f"cannot unpack chunk {i} of xorb {xorb} (scheme {scheme})")
            out.append(data)
        pos += packed
    return b"".join(out)


def lz4_frame(src: bytes) -> bytes:
    """A small LZ4 frame decoder (checksums are not looked at, the caller checks a sha256)."""
    if src[:4] != b"\x04\x22\x4d\x18":
        raise ValueError("not an LZ4 frame")
    flags = src[4]
    pos = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    out = bytearray()
    while True:
        (size,) = struct.unpack_from("<I", src, pos)
        pos += 4
        if size == 0:
            return bytes(out)
        stored, size = size >> 31, size & 0x7FFFFFFF
        block, pos = src[pos : pos + size], pos + size + (4 if flags & 16 else 0)
        if stored:
            out += block
            continue
        p, n = 0, len(block)
        while p < n:
            token = block[p]
            p += 1
            length = token >> 4
            if length == 15:
                while True:
                    length += block[p]
                    p += 1
                    if block[p - 1] != 255:
                        break
            out += block[p : p + length]
            p += length
            if p >= n:
                break
            back = block[p] | block[p + 1] << 8
            p += 2
            length = (token & 15) + 4
            if length == 19:
                while True:
                    length += block[p]
                    p += 1
                    if block[p - 1] != 255:
                        break
            start = len(out) - back
            if not 0 < back <= len(out):
                raise ValueError("bad LZ4 block")
            while length > 0:
                piece = out[start : start + min(length, back)]
                out += piece
                start += len(piece)
                length -= len(piece)


# --------------------------------------------------------------------------- HTTP


class Body:
    """The request body: Content-Length or chunked, optionally throttled."""

    def __init__(self, handler: Handler):
        self.h = handler
        self.count = 0
        te = handler.headers.get("Transfer-Encoding", "").lower()
        self.chunked = "chunked" in te
        length = handler.headers.get("Content-Length")
        self.left = 0 if self.chunked else int(length or 0)
        self.done = not self.chunked and self.left == 0

    def _line(self) -> bytes:
        line = self.h.rfile.readline(65537)
        if not line.endswith(b"\n"):
            raise Abort("connection closed inside a chunk header")
        return line.strip()

    def read_some(self) -> bytes:
        if self.done:
            return b""
        if self.chunked and self.left == 0:
            size = int(self._line().split(b";")[0], 16)
            if size == 0:
                while self._line():
                    pass
                self.done = True
                return b""
            self.left = size
        data = self.h.rfile.read(min(self.h.chunk(), self.left))
        if not data:
            raise Abort("connection closed inside the request body")
        self.left -= len(data)
        self.count += len(data)
        self.h.throttle(len(data))
        if self.left == 0:
            if self.chunked:
                self._line()  # CRLF after the chunk
            else:
                self.done = True
        return data

    def __iter__(self) -> Iterator[bytes]:
        while not self.done:
            data = self.read_some()
            if data:
                yield data

    def read(self) -> bytes:
        return b"".join(self)

    def drain(self) -> None:
        for _ in self:
            pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hub_server/1"
    sys_version = ""
    disable_nagle_algorithm = True
    server: _Server

    # -- plumbing

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, fmt: str, *args: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.server.conn_lock:
            self.server.conns.add(self.connection)

    def finish(self) -> None:
        with self.server.conn_lock:
            self.server.conns.discard(self.connection)
        try:
            super().finish()
        except OSError:
            pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError, ValueError, OSError):
            self.close_connection = True

    def throttle(self, n: int) -> None:
        bw = self.hub.settings.bandwidth
        if bw > 0:
            time.sleep(n / bw)

    def chunk(self) -> int:
        bw = self.hub.settings.bandwidth
        return CHUNK if bw <= 0 else max(512, min(CHUNK, int(bw / 20)))

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def serve(self) -> None:
        raw_path, _, query = self.path.partition("?")
        self.segs = [unquote(s) for s in raw_path.strip("/").split("/")] if raw_path.strip("/") else []
        self.query = parse_qs(query, keep_blank_values=True)
        self.body = Body(self)
        self.status = 0
        self.sent = 0
        self.fault: Fault | None = None
        self.base = f"http://{self.headers.get('Host') or '%s:%d' % self.server.server_address[:2]}"
        self.t0 = time.monotonic()
        note = ""
        control = self.control_route = self.segs[:1] == ["_hub"]
        self.rec: dict[str, Any] = {
            "method": self.command,
            "path": unquote(self.path),
            "user": None,
            "auth": "Authorization" in self.headers,
            "range": self.headers.get("Range"),
            "agent": self.headers.get("User-Agent", "")[:80],
        }
        try:
            if not control:
                target = unquote(self.path)
                with self.hub.lock:
                    for rule in self.hub.faults:
                        if rule.matches(self.command, target) and self.fault is None:
                            self.fault = rule
                            self.rec["fault"] = rule.action
                if self.hub.settings.latency:
                    time.sleep(self.hub.settings.latency)
                self.apply_fault("before")
            user, bad = self.who()
            self.rec["user"] = user.name if user else None
            if bad and not control and self.segs[:1] not in (["_lfs"], ["_cdn"]):
                raise HubError(
                    401,
                    "Invalid username or password.",
                    headers={"X-Error-Message": "Invalid credentials in Authorization header"},
                )
            self.user = user
            self.route()
        except HubError as err:
            self.send_error_json(err)
        except Abort as err:
            note = f"abort: {err}"
            self.record(note)
            self.hard_close(err.rst)
        except (TimeoutError, BrokenPipeError, ConnectionResetError) as err:
            note = f"client went away: {err!r}"
            self.close_connection = True
        except Exception as err:  # a bug in this server: say so, loudly
            note = f"server bug: {err!r}"
            traceback.print_exc(file=sys.stderr)
            if not self.status:
                self.send_error_json(HubError(500, note))
            else:
                self.hard_close()
        finally:
            if not self.close_connection:
                try:
                    self.body.drain()
                except (Abort, OSError, ValueError):
                    self.close_connection = True
            self.record(note)

    def record(self, note: str = "") -> None:
        """Log the request: first just before the answer goes out (so that a client that has its answer
        finds the request in the log), then again with the final numbers."""
        if self.control_route:
            return
        rec = self.rec
        rec |= {
            "status": self.status,
            "in": self.body.count,
            "out": self.sent,
            "ms": round(1000 * (time.monotonic() - self.t0), 1),
        }
        if note:
            rec["note"] = note
        with self.hub.lock:
            if "n" not in rec:
                self.hub.count += 1
                rec["n"] = self.hub.count
                self.hub.log.append(rec)
        if note and self.server.verbose:
            print(f"{rec['method']} {rec['path']} -> {rec['status']} {note}", file=sys.stderr)

    def apply_fault(self, when: str) -> None:
        f = self.fault
        if f is None or (f.when != when and f.action not in ("truncate", "truncate-rst", "corrupt")):
            return
        if f.action == "delay" and when == "before":
            time.sleep(f.seconds)
        elif f.action == "hang":
            self.server.stopping.wait(f.seconds)
            raise Abort("fault: hang")
        elif f.action == "reset":
            if when == "before":
                self.body.drain()  # so that the client sees a clean send followed by a reset
            raise Abort("fault: reset")
        elif f.action == "reset-half" and when == "before":
            total, read = int(self.headers.get("Content-Length", 0)), 0
            while 2 * read < total:
                read += len(self.body.read_some())
            raise Abort("fault: reset-half")
        elif f.action == "status":
            extra = dict(f.body or {})
            raise HubError(f.status, extra.pop("error", f"injected {f.status}"), headers=f.headers, **extra)

    def hard_close(self, rst: bool = True) -> None:
        self.close_connection = True
        if not rst:
            return  # the base class closes it in the ordinary way
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        except OSError:
            pass

    def who(self) -> tuple[User | None, bool]:
        """(user, the credentials given are wrong)"""
        auth = self.headers.get("Authorization", "")
        if not auth:
            return None, False
        kind, _, value = auth.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return None, True
        user = self.hub.tokens.get(value.strip())
        return user, user is None

    # -- answers

    def begin(self, status: int, headers: dict[str, Any]) -> None:
        f = self.fault  # None while an error answer is being sent, so this fires once
        if f is not None and f.when == "after":
            if f.action == "status":
                raise HubError(f.status, f"injected {f.status} after the fact", headers=f.headers)
            if f.action == "hang":
                self.server.stopping.wait(f.seconds)
            if f.action in ("hang", "reset"):
                raise Abort(f"fault: {f.action} after the fact")
        if not self.body.done:
            self.body.drain()
        self.status = status
        self.record()
        self.send_response(status)
        self.send_header("X-Request-Id", f"local-{self.rec.get('n', 0)}")
        for k, v in headers.items():
            if v is not None:
                self.send_header(k, str(v))
        self.end_headers()

    def send_bytes(self, status: int, data: bytes, ctype: str, headers: dict | None = None) -> None:
        head = {"Content-Type": ctype, "Content-Length": len(data), **(headers or {})}
        self.begin(status, head)
        if self.command != "HEAD":
            self.write_body([data], len(data))

    def send_json(self, obj: Any, status: int = 200, headers: dict | None = None) -> None:
        self.send_bytes(status, json.dumps(obj).encode(), "application/json; charset=utf-8", headers)

    def send_error_json(self, err: HubError) -> None:
        headers = {"X-Error-Message": err.message.replace("\n", " ")[:500], **err.headers}
        if err.code:
            headers["X-Error-Code"] = err.code
        # the fault (if any) has been used up by now
        self.fault, kept = None, self.fault
        try:
            self.send_json({"error": err.message, **err.extra}, err.status, headers)
        except (Abort, OSError):
            self.hard_close()
        finally:
            self.fault = kept

    def write_body(self, parts, total: int) -> None:
        f = self.fault
        cut = f is not None and f.action in ("truncate", "truncate-rst")
        stop = total // 2 if cut else None
        flip = total // 2 if f is not None and f.action == "corrupt" and total else None
        for data in parts:
            if stop is not None and self.sent + len(data) > stop:
                data = data[: max(0, stop - self.sent)]
                self.wfile.write(data)
                self.sent += len(data)
                raise Abort("fault: truncate", rst=f.action == "truncate-rst")
            if flip is not None and self.sent <= flip < self.sent + len(data):
                b = bytearray(data)
                b[flip - self.sent] ^= 0xFF
                data = bytes(b)
            self.throttle(len(data))
            self.wfile.write(data)
            self.sent += len(data)

    def json_body(self) -> Any:
        data = self.body.read()
        if not data:
            return {}
        try:
            return json.loads(data)
        except ValueError:
            raise HubError(400, "Body is not valid JSON") from None

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("1", "true", "yes")

    # -- routing

    def route(self) -> None:
        s, m = self.segs, self.command
        if not s:
            return self.send_bytes(200, b"hub_server\n", "text/plain")
        if s[0] == "_hub":
            return self.control(s[1:])
        if s[0] == "_lfs" and len(s) >= 3:
            return self.lfs_transfer(s[1], s[2], s[3:])
        if s[0] == "_cdn" and len(s) == 2 and m in ("GET", "HEAD"):
            return self.cdn(s[1])
        if s[0] == "api":
            return self.api(s[1:])
        # <type prefix>/<ns>/<name>.git/info/lfs/objects/batch
        rtype, rest = ("model", s)
        if s[0] in TYPES and s[0] != "models":
            rtype, rest = TYPES[s[0]], s[1:]
        if len(rest) == 6 and rest[1].endswith(".git") and rest[2:] == ["info", "lfs", "objects", "batch"]:
            return self.lfs_batch(rtype, f"{rest[0]}/{rest[1][:-4]}")
        if len(rest) >= 5 and rest[2] in ("resolve", "raw") and m in ("GET", "HEAD"):
            return self.download(rtype, f"{rest[0]}/{rest[1]}", rest[3], "/".join(rest[4:]))
        self.unknown_route()

    def unknown_route(self) -> None:
        what = f"{self.command} {unquote(self.path)}"
        with self.hub.lock:
            self.hub.unknown.append(what)
        raise HubError(404, f"hub_server does not know {what}")

    def api(self, s: list[str]) -> None:
        m = self.command
        head = s[0] if s else ""
        if head == "whoami-v2" and m == "GET":
            return self.whoami()
        if head == "agent-harnesses" and m == "GET":
            return self.send_json({"standardEnvVars": [], "harnesses": {}})
        if head == "telemetry":
            return self.send_json({})
        if head == "validate-yaml" and m == "POST":
            return self.validate_yaml()
        if s == ["repos", "create"] and m == "POST":
            return self.repo_create()
        if s == ["repos", "delete"] and m == "DELETE":
            return self.repo_delete()
        if s == ["repos", "move"] and m == "POST":
            return self.repo_move()
        if head in TYPES and len(s) == 1 and m == "GET":
            return self.repo_list(TYPES[head])
        if head in TYPES and len(s) >= 3:
            return self.repo_api(TYPES[head], f"{s[1]}/{s[2]}", s[3:])
        self.unknown_route()

    def repo_api(self, rtype: str, rid: str, s: list[str]) -> None:
        m, hub = self.command, self.hub
        verb, n = (s[0] if s else ""), len(s)
        if m == "GET":
            if n == 0:
                return self.repo_info(rtype, rid, "main")
            if verb == "revision" and n == 2:
                return self.repo_info(rtype, rid, s[1])
            if verb == "tree" and n >= 2:
                return self.tree(rtype, rid, s[1], "/".join(s[2:]))
            if verb == "refs" and n == 1:
                return self.refs(rtype, rid)
            if verb == "commits" and n == 2:
                return self.commits(rtype, rid, s[1])
            if verb == "auth-check":
                hub.repo(rtype, rid, self.user, write=s[1:] == ["write"])
                return self.send_json({})
            if verb in ("xet-write-token", "xet-read-token"):
                return self.xet_token(rtype, rid, verb == "xet-write-token")
            if verb == "resolve" and n >= 3:
                return self.download(rtype, rid, s[1], "/".join(s[2:]))
            if verb == "discussions" and n == 1:
                found = [
                    self.discussion_facts(hub.repo(rtype, rid, self.user), num) for num in hub.repos[rtype, rid].prs
                ]
                return self.send_json({"discussions": found, "count": len(found), "start": 0})
            if verb == "discussions" and n == 2:
                return self.discussion(rtype, rid, s[1])
        if m == "POST":
            if verb == "paths-info" and n == 2:
                return self.paths_info(rtype, rid, s[1])
            if verb == "preupload" and n == 2:
                return self.preupload(rtype, rid, s[1])
            if verb == "commit" and n == 2:
                return self.commit(rtype, rid, s[1])
            if verb == "branch" and n == 2:
                return self.branch_create(rtype, rid, s[1])
            if verb == "tag" and n == 2:
                return self.tag_create(rtype, rid, s[1])
            if verb == "super-squash" and n == 2:
                return self.squash(rtype, rid, s[1])
            if verb == "discussions" and n == 3 and s[2] == "status":
                return self.discussion_status(rtype, rid, s[1])
            if verb == "discussions" and n == 1:
                return self.pr_create(rtype, rid)
        if m == "DELETE":
            if verb == "branch" and n == 2:
                return self.ref_delete(rtype, rid, "branches", s[1])
            if verb == "tag" and n == 2:
                return self.ref_delete(rtype, rid, "tags", s[1])
        if m == "PUT" and verb == "settings" and n == 1:
            return self.repo_settings(rtype, rid)
        self.unknown_route()

    # -- control

    def control(self, s: list[str]) -> None:
        hub, m = self.hub, self.command
        what = s[0] if s else ""
        with hub.lock:
            if what == "health":
                return self.send_json({"ok": True})
            if what == "log":
                if m == "DELETE":
                    hub.log.clear()
                    hub.unknown.clear()
                return self.send_json({"requests": hub.log, "unknown": hub.unknown})
            if what == "faults":
                if m == "DELETE":
                    hub.faults.clear()
                elif m == "POST":
                    new = self.json_body()
                    hub.faults += [Fault(**f) for f in (new if isinstance(new, list) else [new])]
                return self.send_json([asdict(f) for f in hub.faults])
            if what == "settings":
                if m == "POST":
                    for k, v in self.json_body().items():
                        if not hasattr(hub.settings, k):
                            raise HubError(400, f"no such setting: {k}")
                        setattr(hub.settings, k, v)
                return self.send_json(asdict(hub.settings))
            if what == "state":
                return self.send_json(
                    [
                        {
                            "type": r.type,
                            "id": r.id,
                            "private": r.private,
                            "branches": r.branches,
                            "tags": r.tags,
                            "prs": r.prs,
                            "commits": len(r.commits),
                            "files": {
                                b: {p: {"size": e.size, "lfs": e.lfs} for p, e in sorted(r.commits[c].tree.items())}
                                for b, c in r.branches.items()
                            },
                        }
                        for r in hub.repos.values()
                    ]
                )
        raise HubError(404, "no such control route")

    # -- account

    def need_user(self) -> User:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def whoami(self) -> None:
        u = self.need_user()
        self.send_json(
            {
                "type": "user",
                "id": hashlib.sha1(u.name.encode()).hexdigest()[:24],
                "name": u.name,
                "fullname": u.name.title(),
                "email": f"{u.name}@example.invalid",
                "emailVerified": True,
                "canPay": False,
                "isPro": False,
                "avatarUrl": "",
                "orgs": [{"type": "org", "name": o, "fullname": o, "roleInOrg": "write"} for o in u.orgs],
                "auth": {
                    "type": "access_token",
                    "accessToken": {"displayName": "local", "role": u.role, "createdAt": "2024-01-01T00:00:00.000Z"},
                },
            }
        )

    def validate_yaml(self) -> None:
        data = self.json_body()
        meta, error = yaml_header(str(data.get("content", "")))
        if error:
            raise HubError(400, "Invalid metadata", errors=[{"message": error}], warnings=[])
        warn = [] if meta is not None else [{"message": "empty or missing yaml metadata in repo card"}]
        self.send_json({"errors": [], "warnings": warn})

    # -- repos

    def target(self, data: dict) -> tuple[str, str]:
        user = self.need_user()
        name = str(data.get("name") or "")
        ns = str(data.get("organization") or user.name)
        if "/" in name and not data.get("organization"):
            ns, _, name = name.partition("/")
        if not re.fullmatch(r"[\w.-]{1,96}", name) or not re.fullmatch(r"[\w.-]{1,96}", ns):
            raise HubError(400, f"Invalid repo name: {ns}/{name}")
        rtype = data.get("type") or "model"
        if rtype not in PREFIX:
            raise HubError(400, f"Invalid repo type: {rtype}")
        return rtype, f"{ns}/{name}"

    def repo_create(self) -> None:
        data = self.json_body()
        rtype, rid = self.target(data)
        if not self.hub.can_write_ns(rid.split("/")[0], self.user):
            raise HubError(
                403, f"You don't have the rights to create a {rtype} under the namespace {rid.split('/')[0]!r}"
            )
        url = f"{self.base}/{PREFIX[rtype]}{rid}"
        private = data.get("visibility") == "private" or bool(data.get("private"))
        with self.hub.lock:
            if (rtype, rid) in self.hub.repos:
                raise HubError(409, f"You already created this {rtype} repo: {rid}", url=url)
            self.hub.create_repo(rtype, rid, private, self.need_user())
        self.send_json({"url": url, "name": rid, "id": hashlib.sha1(url.encode()).hexdigest()[:24]})

    def repo_delete(self) -> None:
        rtype, rid = self.target(self.json_body())
        with self.hub.lock:
            self.hub.repo(rtype, rid, self.user, write=True)
            del self.hub.repos[(rtype, rid)]
            self.hub.save()
        self.send_json({})

    def repo_move(self) -> None:
        d = self.json_body()
        rtype, old, new = d.get("type") or "model", d.get("fromRepo", ""), d.get("toRepo", "")
        with self.hub.lock:
            repo = self.hub.repo(rtype, old, self.user, write=True)
            if not self.hub.can_write_ns(new.split("/")[0], self.user):
                raise HubError(403, "You don't have the rights to that namespace")
            if (rtype, new) in self.hub.repos:
                raise HubError(409, f"{new} exists already")
            repo.id = new
            self.hub.repos[(rtype, new)] = self.hub.repos.pop((rtype, old))
            self.hub.save()
        self.send_json({})

    def repo_settings(self, rtype: str, rid: str) -> None:
        d = self.json_body()
        repo = self.hub.repo(rtype, rid, self.user, write=True)
        if "visibility" in d or "private" in d:
            repo.private = d.get("visibility") == "private" or bool(d.get("private"))
        if "gated" in d:
            repo.gated = d["gated"]
        self.hub.save()
        self.send_json({"private": repo.private, "gated": repo.gated})

    def info(self, repo: Repo, c: Commit, blobs: bool) -> dict:
        siblings = []
        for path, e in sorted(c.tree.items()):
            item: dict[str, Any] = {"rfilename": path}
            if blobs:
                item |= {"size": e.size, "blobId": e.oid}
                if e.lfs:
                    item["lfs"] = {"sha256": e.blob, "size": e.size, "pointerSize": e.pointer_size}
            siblings.append(item)
        card = None
        if "README.md" in c.tree:
            card, _ = yaml_header(self.hub.read(c.tree["README.md"]).decode("utf-8", "replace"))
        out = {
            "_id": hashlib.sha1(f"{repo.type}/{repo.id}".encode()).hexdigest()[:24],
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": c.id,
            "createdAt": repo.created,
            "lastModified": c.date,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [str(t) for t in ((card or {}).get("tags") or [])],
            "siblings": siblings,
            "usedStorage": sum(e.size for e in c.tree.values()),
        }
        if card is not None:
            out["cardData"] = card
        if repo.type == "model":
            out["modelId"] = repo.id
            if "config.json" in c.tree:
                try:
                    cfg = json.loads(self.hub.read(c.tree["config.json"]))
                    out["config"] = {k: cfg[k] for k in ("architectures", "model_type") if k in cfg}
                except ValueError:
                    pass
            if card and card.get("library_name"):
                out["library_name"] = card["library_name"]
        return out

    def repo_info(self, rtype: str, rid: str, rev: str) -> None:
        repo = self.hub.repo(rtype, rid, self.user)
        self.send_json(self.info(repo, self.hub.resolve(repo, rev), self.flag("blobs")))

    def repo_list(self, rtype: str) -> None:
        q = {k: v[-1] for k, v in self.query.items()}
        with self.hub.lock:
            repos = [
                r for (t, _), r in sorted(self.hub.repos.items()) if t == rtype and self.hub.can_read(r, self.user)
            ]
        if q.get("author"):
            repos = [r for r in repos if r.id.split("/")[0] == q["author"]]
        if q.get("search"):
            repos = [r for r in repos if q["search"].lower() in r.id.lower()]
        repos = repos[: int(q.get("limit") or 1000)]
        self.send_json([self.info(r, self.hub.resolve(r, "main"), False) for r in repos])

    # -- reading

    def file_json(self, repo: Repo, c: Commit, path: str, expand: bool) -> dict:
        e = c.tree[path]
        out: dict[str, Any] = {"type": "file", "oid": e.oid, "size": e.size, "path": path}
        if e.lfs:
            out["lfs"] = {"oid": e.blob, "size": e.size, "pointerSize": e.pointer_size}
        if e.xet_hash and self.hub.settings.xet_dir and self.hub.settings.xet_downloads:
            out["xetHash"] = e.xet_hash
        if expand:
            last = self.hub.last_change(repo, c, path)
            out["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
            out["securityFileStatus"] = {
                "status": "safe",
                "avScan": {"virusFound": False, "virusNames": None},
                "pickleImportScan": None,
            }
        return out

    def dir_json(self, c: Commit, path: str, oid: str, expand: bool) -> dict:
        out: dict[str, Any] = {"type": "directory", "oid": oid, "size": 0, "path": path}
        if expand:
            out["lastCommit"] = {"id": c.id, "title": c.title, "date": c.date}
        return out

    def page(self, items: list, make) -> None:
        """Send one page; `cursor` is an offset, the next page is named in the Link header."""
        size = self.hub.settings.page_size
        if self.query.get("limit", [""])[-1].isdigit():
            size = max(1, min(size, int(self.query["limit"][-1])))
        start = int(self.query.get("cursor", ["0"])[-1] or 0)
        headers = {}
        if start + size < len(items):
            q = {k: v[-1] for k, v in self.query.items()} | {"cursor": str(start + size)}
            path = self.path.partition("?")[0]
            link = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in q.items())
            headers["Link"] = f'<{self.base}{path}?{link}>; rel="next"'
        self.send_json([make(i) for i in items[start : start + size]], headers=headers)

    def tree(self, rtype: str, rid: str, rev: str, folder: str) -> None:
        repo = self.hub.repo(rtype, rid, self.user)
        c = self.hub.resolve(repo, rev)
        folder = folder.strip("/")
        deep, expand = self.flag("recursive"), self.flag("expand")
        dirs = split_dirs(c.tree)
        if folder and folder not in dirs:
            if folder in c.tree:  # the real Hub answers for a file path too
                return self.send_json([self.file_json(repo, c, folder, expand)])
            raise HubError(404, f"{folder} does not exist on {rev!r}", "EntryNotFound", {"X-Repo-Commit": c.id})
        prefix = folder + "/" if folder else ""

        def inside(p: str) -> bool:
            return p.startswith(prefix) and (deep or "/" not in p[len(prefix) :])

        items = [("d", d) for d in sorted(dirs) if inside(d)] + [("f", p) for p in sorted(c.tree) if inside(p)]
        self.page(
            items,
            lambda i: (
                self.dir_json(c, i[1], dirs[i[1]], expand) if i[0] == "d" else self.file_json(repo, c, i[1], expand)
            ),
        )

    def paths_info(self, rtype: str, rid: str, rev: str) -> None:
        ctype = self.headers.get("Content-Type", "")
        raw = self.body.read()
        if "json" in ctype:
            data = json.loads(raw or b"{}")
            paths, expand = data.get("paths") or [], bool(data.get("expand"))
        else:
            form = parse_qs(raw.decode())
            paths, expand = form.get("paths", []), form.get("expand", ["false"])[-1].lower() == "true"
        repo = self.hub.repo(rtype, rid, self.user)
        c = self.hub.resolve(repo, rev)
        dirs = split_dirs(c.tree)
        out = []
        for p in [paths] if isinstance(paths, str) else paths:
            p = p.strip("/")
            if p in c.tree:
                out.append(self.file_json(repo, c, p, expand))
            elif p in dirs:
                out.append(self.dir_json(c, p, dirs[p], expand))
        self.send_json(out)

    def refs(self, rtype: str, rid: str) -> None:
        repo = self.hub.repo(rtype, rid, self.user)

        def fmt(table: dict[str, str], kind: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in sorted(table.items())]

        out = {"branches": fmt(repo.branches, "heads"), "converts": [], "tags": fmt(repo.tags, "tags")}
        if self.flag("include_prs"):
            out["pullRequests"] = fmt(repo.prs, "pr")
        self.send_json(out)

    def commits(self, rtype: str, rid: str, rev: str) -> None:
        repo = self.hub.repo(rtype, rid, self.user)
        items = list(self.hub.history(repo, self.hub.resolve(repo, rev)))
        self.page(
            items,
            lambda c: {
                "id": c.id,
                "title": c.title,
                "message": c.message,
                "authors": [{"user": c.author, "avatar": ""}],
                "date": c.date,
                "parents": c.parents,
            },
        )

    def download(self, rtype: str, rid: str, rev: str, path: str) -> None:
        repo = self.hub.repo(rtype, rid, self.user)
        c = self.hub.resolve(repo, rev)
        e = c.tree.get(path)
        if e is None:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": c.id})
        headers: dict[str, Any] = {
            "X-Repo-Commit": c.id,
            "ETag": f'"{e.etag}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-cache",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}; "
            f'filename="{quote(path.rsplit("/", 1)[-1])}";',
        }
        if e.lfs:
            headers |= {"X-Linked-Size": e.size, "X-Linked-ETag": f'"{e.etag}"'}
            if e.xet_hash and self.hub.settings.xet_dir and self.hub.settings.xet_downloads:
                headers["X-Xet-Hash"] = e.xet_hash
                route = f"{self.base}/api/{rtype}s/{rid}/xet-read-token/{c.id}"
                headers["X-Xet-Refresh-Route"] = route
                headers["Link"] = f'<{route}>; rel="xet-auth"'
            if self.hub.settings.cdn == "other":
                key = secrets.token_urlsafe(16)
                with self.hub.lock:
                    self.hub.grants[key] = {"kind": "cdn", "entry": e}
                port = self.server.server_address[1]
                host = "localhost" if not self.headers.get("Host", "").startswith("localhost") else "127.0.0.1"
                headers["Location"] = f"http://{host}:{port}/_cdn/{key}"
                return self.send_bytes(302, b"", "text/plain", headers)
        self.send_file(e, headers)

    def cdn(self, key: str) -> None:
        grant = self.hub.grants.get(key)
        if grant is None or grant["kind"] != "cdn":
            raise HubError(403, "Signature expired")
        if "Authorization" in self.headers:  # S3 refuses this too, and it would be a token leak
            raise HubError(400, "Only one auth mechanism allowed")
        e = grant["entry"]
        self.send_file(e, {"ETag": f'"{hashlib.md5(e.blob.encode()).hexdigest()}"', "Accept-Ranges": "bytes"})

    def send_file(self, e: Entry, headers: dict) -> None:
        path = self.hub.blob_path(e.blob)
        if not path.exists():
            raise HubError(500, "content of this file is not on this server (xet upload without LFS copy?)")
        start, end, status = 0, e.size, 200
        rng = self.headers.get("Range")
        if rng and e.size >= 0:
            m = re.fullmatch(r"\s*bytes\s*=\s*(\d*)-(\d*)\s*", rng)
            if m and (m.group(1) or m.group(2)):
                if m.group(1):
                    start = int(m.group(1))
                    end = min(e.size, int(m.group(2)) + 1) if m.group(2) else e.size
                else:
                    start = max(0, e.size - int(m.group(2)))
                if start >= e.size or start >= end:
                    raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{e.size}"})
                status = 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{e.size}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": end - start, **headers}
        self.begin(status, headers)
        if self.command == "HEAD":
            return

        def parts() -> Iterator[bytes]:
            left = end - start
            with path.open("rb") as f:
                f.seek(start)
                while left > 0:
                    data = f.read(min(self.chunk(), left))
                    if not data:
                        raise Abort("blob is shorter than recorded")
                    left -= len(data)
                    yield data

        self.write_body(parts(), end - start)

    # -- writing

    def preupload(self, rtype: str, rid: str, rev: str) -> None:
        data = self.json_body()
        pr = self.flag("create_pr")
        repo = self.hub.repo(rtype, rid, self.user, write=not pr)
        c = self.hub.resolve(repo, rev)
        s = self.hub.settings
        patterns = lfs_patterns(self.hub, c.tree)
        ignore = data.get("gitIgnore")
        if ignore is None and ".gitignore" in c.tree:
            ignore = self.hub.read(c.tree[".gitignore"]).decode("utf-8", "replace")
        rules = [ln.strip() for ln in (ignore or "").splitlines() if ln.strip() and not ln.startswith(("#", "!"))]
        out = []
        for f in data.get("files", []):
            path, size = str(f.get("path")), int(f.get("size") or 0)
            if s.upload_mode in ("lfs", "regular"):
                mode = s.upload_mode
            else:
                big = size >= s.lfs_threshold
                mode = "lfs" if big or any(path_matches(path, p) for p in patterns) else "regular"
            item = {"path": path, "uploadMode": mode, "shouldIgnore": any(path_matches(path, r) for r in rules)}
            if path in c.tree:
                item["oid"] = c.tree[path].etag
            out.append(item)
        self.send_json({"files": out, "commitOid": c.id})

    def lfs_batch(self, rtype: str, rid: str) -> None:
        data = self.json_body()
        op = data.get("operation")
        repo = self.hub.repo(rtype, rid, self.user, write=op == "upload")
        transfers = data.get("transfers") or ["basic"]
        part = self.hub.settings.multipart_size
        out, chosen = [], "basic"
        for o in data.get("objects", []):
            oid, size = str(o.get("oid")), int(o.get("size") or 0)
            item: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            if not re.fullmatch(r"[0-9a-f]{64}", oid):
                item["error"] = {"code": 422, "message": "oid is not a sha256"}
            elif op == "download":
                if oid in repo.lfs:
                    key = self.grant("cdn", entry=self.hub.lfs_entry(oid, size))
                    item["actions"] = {"download": {"href": f"{self.base}/_cdn/{key}"}}
                else:
                    item["error"] = {"code": 404, "message": "Object does not exist"}
            elif not (oid in repo.lfs and self.hub.blob_path(oid).exists()):
                key = self.grant("lfs", repo=repo, oid=oid, size=size, parts={}, part=0)
                verify = {"href": f"{self.base}/_lfs/verify/{key}"}
                if part and size > part and "multipart" in transfers:
                    chosen = "multipart"
                    self.hub.grants[key]["part"] = part
                    count = -(-size // part)
                    header = {"chunk_size": str(part)}
                    header |= {str(i): f"{self.base}/_lfs/part/{key}/{i}" for i in range(1, count + 1)}
                    upload = {"href": f"{self.base}/_lfs/complete/{key}", "header": header}
                else:
                    upload = {"href": f"{self.base}/_lfs/upload/{key}"}
                item["actions"] = {"upload": upload, "verify": verify}
            out.append(item)
        self.send_json({"transfer": chosen, "objects": out, "hash_algo": "sha256"})

    def grant(self, kind: str, **what: Any) -> str:
        key = secrets.token_urlsafe(16)
        with self.hub.lock:
            self.hub.grants[key] = {"kind": kind, **what}
        return key

    def lfs_transfer(self, verb: str, key: str, rest: list[str]) -> None:
        g = self.hub.grants.get(key)
        if g is None or g["kind"] != "lfs":
            raise HubError(403, "Request has expired")
        if self.command == "PUT" and verb in ("upload", "part"):
            tmp = self.hub.root / "tmp" / secrets.token_hex(8)
            sha, md5, size = hashlib.sha256(), hashlib.md5(), 0
            try:
                with tmp.open("wb") as f:
                    for data in self.body:
                        f.write(data)
                        sha.update(data)
                        md5.update(data)
                        size += len(data)
                if verb == "upload":
                    self.lfs_store(g, tmp, sha.hexdigest(), size)
                else:
                    no = int(rest[0])
                    keep = tmp.with_name(f"{key}.{no}")
                    os.replace(tmp, keep)
                    with self.hub.lock:
                        g["parts"][no] = (keep, md5.hexdigest(), size)
            finally:
                tmp.unlink(missing_ok=True)
            return self.send_bytes(200, b"", "text/plain", {"ETag": f'"{md5.hexdigest()}"'})
        if self.command == "POST" and verb == "complete":
            want = self.json_body().get("parts") or []
            count = -(-g["size"] // g["part"])
            if [p.get("partNumber") for p in want] != list(range(1, count + 1)):
                raise HubError(400, "the list of parts is wrong")
            tmp = self.hub.root / "tmp" / secrets.token_hex(8)
            sha, size = hashlib.sha256(), 0
            try:
                with tmp.open("wb") as out:
                    for p in want:
                        path, md5, n = g["parts"].get(p["partNumber"], (None, None, 0))
                        if path is None or p.get("etag", "").strip('"') != md5:
                            raise HubError(400, f"part {p['partNumber']} is missing or has another etag")
                        with path.open("rb") as f:
                            while data := f.read(CHUNK):
                                out.write(data)
                                sha.update(data)
                                size += len(data)
                self.lfs_store(g, tmp, sha.hexdigest(), size)
            finally:
                tmp.unlink(missing_ok=True)
            for path, *_ in g["parts"].values():
                path.unlink(missing_ok=True)
            return self.send_json({})
        if self.command == "POST" and verb == "verify":
            d = self.json_body()
            repo: Repo = g["repo"]
            if d.get("oid") != g["oid"] or repo.lfs.get(g["oid"]) != d.get("size"):
                raise HubError(404, "Object not found or of another size")
            return self.send_json({"message": "ok"})
        self.unknown_route()

    def lfs_store(self, g: dict, tmp: Path, sha: str, size: int) -> None:
        if sha != g["oid"] or size != g["size"]:
            raise HubError(400, f"content is {sha} ({size} bytes), announced was {g['oid']} ({g['size']} bytes)")
        with self.hub.lock:
            os.replace(tmp, self.hub.blob_path(sha))
            g["repo"].lfs[sha] = size
            self.hub.save()

    def ndjson(self) -> Iterator[dict]:
        buf = b""
        for data in self.body:
            buf += data
            *lines, buf = buf.split(b"\n")
            for line in lines:
                if line.strip():
                    yield self.ndjson_line(line)
        if buf.strip():
            yield self.ndjson_line(buf)

    def ndjson_line(self, line: bytes) -> dict:
        try:
            item = json.loads(line)
            if isinstance(item, dict) and isinstance(item.get("value"), dict):
                return item
        except ValueError:
            pass
        raise HubError(400, "Body is not valid newline-delimited JSON")

    def commit(self, rtype: str, rid: str, rev: str) -> None:
        hub, s = self.hub, self.hub.settings
        pr = self.flag("create_pr")
        repo = hub.repo(rtype, rid, self.user, write=not pr)
        user = self.need_user()
        header: dict | None = None
        adds: dict[str, Entry] = {}
        steps: list[tuple[str, str]] = []
        for item in self.ndjson():
            key, val = item.get("key"), item["value"]
            if key == "header":
                header = val
                continue
            if header is None:
                raise HubError(400, "the first line must be the header")
            path = val.get("path")
            if key == "file":
                path = check_path(path)
                content = val.get("content", "")
                data = base64.b64decode(content) if val.get("encoding") == "base64" else content.encode()
                if s.upload_mode == "auto" and len(data) > s.regular_max:
                    raise HubError(400, f"{path} is bigger than {s.regular_max} bytes: upload it as LFS")
                adds[path] = hub.put_regular(data)
                steps.append(("add", path))
            elif key == "lfsFile":
                path, oid = check_path(path), str(val.get("oid"))
                if oid not in repo.lfs or not hub.blob_path(oid).exists():
                    if not hub.adopt_xet(repo, oid):
                        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path} ({oid})")
                adds[path] = hub.lfs_entry(oid, repo.lfs[oid], hub.xet_hashes.get(oid))
                steps.append(("add", path))
            elif key in ("deletedFile", "deletedFolder"):
                steps.append((key, check_path(str(path).rstrip("/"))))
            else:
                raise HubError(400, f"unknown operation {key!r}")
        if header is None or not str(header.get("summary") or "").strip():
            raise HubError(400, "a commit needs a summary")
        with hub.lock:
            head = hub.resolve(repo, rev)
            parent = header.get("parentCommit")
            if parent and not pr and not head.id.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            if parent and pr:
                head = hub.resolve(repo, parent)
            if pr:
                num = str(len(repo.prs) + 1)
                table, name = "prs", num
            elif rev.removeprefix("refs/heads/") in repo.branches:
                table, name = "branches", rev.removeprefix("refs/heads/")
            elif rev.startswith("refs/pr/"):
                table, name = "prs", rev.removeprefix("refs/pr/")
            else:
                raise HubError(400, f"{rev!r} is not a branch")
            tree = dict(head.tree)
            for what, path in steps:
                if what == "deletedFile":
                    if path not in tree:
                        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                    del tree[path]
                elif what == "deletedFolder":
                    inside = [p for p in tree if p.startswith(path + "/")]
                    if not inside:
                        raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
                    for p in inside:
                        del tree[p]
                else:
                    tree[path] = adds[path]
            for p in tree:
                if any("/".join(p.split("/")[:i]) in tree for i in range(1, p.count("/") + 1)):
                    raise HubError(400, f"{p}: one of its parents is a file")
            new = hub.add_commit(
                repo, head.id, tree, header["summary"], header.get("description") or "", user.name, table, name
            )
            if pr:
                repo.pr_info[name] = {"title": header["summary"], "author": user.name, "date": new.date}
            hub.save()
        url = f"{self.base}/{PREFIX[rtype]}{rid}"
        out = {"success": True, "commitOid": new.id, "commitUrl": f"{url}/commit/{new.id}", "hookOutput": ""}
        if pr:
            out["pullRequestUrl"] = f"{url}/discussions/{name}"
        self.send_json(out)

    # -- refs

    def branch_create(self, rtype: str, rid: str, name: str) -> None:
        d = self.json_body()
        with self.hub.lock:
            repo = self.hub.repo(rtype, rid, self.user, write=True)
            if name.startswith("refs/") or not re.fullmatch(r"[\w./-]{1,200}", name) or ".." in name:
                raise HubError(400, f"Invalid branch name: {name}")
            if name in repo.branches:
                raise HubError(409, f"Reference already exists: refs/heads/{name}")
            repo.branches[name] = self.hub.resolve(repo, d.get("startingPoint") or "main").id
            self.hub.save()
        self.send_json({})

    def tag_create(self, rtype: str, rid: str, rev: str) -> None:
        name = str(self.json_body().get("tag") or "")
        with self.hub.lock:
            repo = self.hub.repo(rtype, rid, self.user, write=True)
            if not re.fullmatch(r"[\w./-]{1,200}", name):
                raise HubError(400, f"Invalid tag name: {name}")
            if name in repo.tags:
                raise HubError(409, f"Tag reference exists already: {name}")
            repo.tags[name] = self.hub.resolve(repo, rev).id
            self.hub.save()
        self.send_json({})

    def ref_delete(self, rtype: str, rid: str, table: str, name: str) -> None:
        with self.hub.lock:
            repo = self.hub.repo(rtype, rid, self.user, write=True)
            refs = getattr(repo, table)
            if table == "branches" and name == "main":
                raise HubError(403, "The main branch cannot be deleted")
            if name not in refs:
                raise HubError(404, f"No such reference: {name}", "RevisionNotFound")
            del refs[name]
            self.hub.save()
        self.send_json({})

    def squash(self, rtype: str, rid: str, branch: str) -> None:
        message = self.json_body().get("message") or f"Super-squash branch {branch}"
        with self.hub.lock:
            repo = self.hub.repo(rtype, rid, self.user, write=True)
            if branch not in repo.branches:
                raise HubError(404, f"No such branch: {branch}", "RevisionNotFound")
            head = self.hub.resolve(repo, branch)
            self.hub.add_commit(repo, None, head.tree, message, "", self.need_user().name, "branches", branch)
            self.hub.save()
        self.send_json({})

    def pr_create(self, rtype: str, rid: str) -> None:
        d = self.json_body()
        if not d.get("pullRequest"):
            return self.unknown_route()
        with self.hub.lock:
            repo = self.hub.repo(rtype, rid, self.user)
            user = self.need_user()
            num = str(len(repo.prs) + 1)
            repo.prs[num] = repo.branches["main"]
            repo.pr_info[num] = {"title": d.get("title"), "author": user.name, "date": now()}
            self.hub.save()
        self.send_json(
            {"num": int(num), "pullRequest": True, "url": f"{self.base}/{PREFIX[rtype]}{rid}/discussions/{num}"}
        )

    def discussion_status(self, rtype: str, rid: str, num: str) -> None:
        status = self.json_body().get("status")
        with self.hub.lock:
            repo = self.hub.repo(rtype, rid, self.user)
            if num not in repo.prs or status not in ("open", "closed"):
                raise HubError(400, f"no discussion {num}, or no such status: {status}")
            repo.pr_info[num]["status"] = status
            self.hub.save()
        self.send_json(
            {
                "newStatus": {
                    "id": f"status-{num}", "type": "status-change", "createdAt": now(),
                    "author": {"name": self.need_user().name}, "data": {"status": status},
                }
            }
        )  # fmt: skip

    def discussion(self, rtype: str, rid: str, num: str) -> None:
        repo = self.hub.repo(rtype, rid, self.user)
        if num not in repo.prs:
            raise HubError(404, "Discussion not found")
        more = {"events": [], "changes": {"base": "refs/heads/main"}, "filesWithConflicts": False}
        self.send_json({**self.discussion_facts(repo, num), **more})

    @staticmethod
    def discussion_facts(repo: Repo, num: str) -> dict:
        i = repo.pr_info[num]
        return {
            "title": i["title"],
            "num": int(num),
            "author": {"name": i["author"]},
            "createdAt": i["date"],
            "status": i.get("status", "draft"),
            "isPullRequest": True,
            "repo": {"name": repo.id, "type": repo.type},
        }

    # -- xet tokens

    def xet_token(self, rtype: str, rid: str, write: bool) -> None:
        self.hub.repo(rtype, rid, self.user, write=write)
        folder = self.hub.settings.xet_dir
        if not folder:
            raise HubError(404, "this hub has no xet storage: set HF_HUB_DISABLE_XET=1 on the client")
        token, exp, url = "local", int(time.time()) + 3600, f"local://{folder}"
        self.send_json(
            {"accessToken": token, "exp": exp, "casUrl": url},
            headers={"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": exp},
        )


# --------------------------------------------------------------------------- server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, addr, hub: Hub, verbose: bool):
        self.hub, self.verbose = hub, verbose
        self.conns: set[socket.socket] = set()
        self.conn_lock = threading.Lock()
        self.stopping = threading.Event()
        super().__init__(addr, Handler)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, OSError)):
            super().handle_error(request, client_address)


WRITE_TOKEN = "hf_localwrite000000000000000000000000"
READ_TOKEN = "hf_localread0000000000000000000000000"
OTHER_TOKEN = "hf_localother000000000000000000000000"


def default_tokens() -> dict[str, User]:
    return {
        WRITE_TOKEN: User("tester", "write", ("acme",)),
        READ_TOKEN: User("tester", "read", ("acme",)),
        OTHER_TOKEN: User("stranger", "write"),
    }


class HubServer:
    """The server in a thread of this process. `with HubServer() as hub: ... hub.url ...`"""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        root: str | os.PathLike | None = None,
        tokens: dict[str, User] | None = None,
        verbose: bool = False,
        **settings: Any,
    ):
        if not (host == "localhost" or host.startswith("127.")):
            raise ValueError("loopback addresses only")
        self._own_root = root is None
        self.root = Path(root or tempfile.mkdtemp(prefix="hub-"))
        self.hub = Hub(self.root, tokens or default_tokens(), Settings(**settings), persist=root is not None)
        self._srv = _Server((host, port), self.hub, verbose)
        self.host, self.port = host, self._srv.server_address[1]
        self.url = f"http://{host}:{self.port}"
        self._thread: threading.Thread | None = None

    def start(self) -> HubServer:
        self._thread = threading.Thread(target=self._srv.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._srv.stopping.set()
        if self._thread is not None:
            self._srv.shutdown()
            self._thread.join()
        self._srv.server_close()
        with self._srv.conn_lock:
            conns = list(self._srv.conns)
        for c in conns:
            try:
                c.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if self._own_root:
            shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exc) -> None:
        self.stop()

    def serve_forever(self) -> None:
        self._srv.serve_forever(poll_interval=0.2)

    # -- what tests use

    settings = property(lambda self: self.hub.settings)
    unknown = property(lambda self: self.hub.unknown)

    def env(self, hf_home: str | os.PathLike, token: str = WRITE_TOKEN) -> dict[str, str]:
        return client_env(self.url, hf_home, token)

    def fail(self, **rule: Any) -> Fault:
        fault = Fault(**rule)
        with self.hub.lock:
            self.hub.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        with self.hub.lock:
            self.hub.faults.clear()

    def requests(self, method: str = "", path: str = "") -> list[dict]:
        with self.hub.lock:
            log = list(self.hub.log)
        return [r for r in log if re.fullmatch(method or ".*", r["method"]) and re.search(path, r["path"])]

    def clear_log(self) -> None:
        with self.hub.lock:
            self.hub.log.clear()
            self.hub.unknown.clear()


def client_env(url: str, hf_home: str | os.PathLike, token: str = WRITE_TOKEN) -> dict[str, str]:
    """What a client process needs in its environment, before huggingface_hub is imported."""
    return {
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HOME": str(hf_home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def main(argv: list[str] | None = None) -> int:
    d = Settings()
    ap = argparse.ArgumentParser(description="A local stand-in for the Hugging Face Hub HTTP API.")
    ap.add_argument("--host", default="127.0.0.1")
    ap.add_argument("--port", type=int, default=0, help="0: any free port")
    ap.add_argument("--root", help="keep everything in this folder (default: a temporary one)")
    ap.add_argument("--port-file", help="write the port number here once listening")
    ap.add_argument("--token", action="append", metavar="TOKEN:USER[:write|read[:ORG,ORG]]")
    ap.add_argument("--upload-mode", choices=("auto", "lfs", "regular"), default=d.upload_mode)
    ap.add_argument("--lfs-threshold", type=int, default=d.lfs_threshold)
    ap.add_argument("--multipart-size", type=int, default=d.multipart_size)
    ap.add_argument("--page-size", type=int, default=d.page_size)
    ap.add_argument("--cdn", choices=("", "other"), default=d.cdn)
    ap.add_argument("--xet-dir", default=d.xet_dir, help="let xet clients store files in this folder (see 'xet')")
    ap.add_argument("--latency", type=float, default=d.latency, help="seconds before each answer")
    ap.add_argument("--bandwidth", type=float, default=d.bandwidth, help="bytes per second")
    ap.add_argument("--fail-nth", type=int, metavar="N", help="answer 503 to the N-th request")
    ap.add_argument("--fault", action="append", default=[], metavar="JSON", help="a fault rule, see class Fault")
    ap.add_argument("--verbose", action="store_true")
    a = ap.parse_args(argv)
    tokens = None
    if a.token:
        tokens = {}
        for spec in a.token:
            t, u, *rest = spec.split(":")
            orgs = tuple(rest[1].split(",")) if len(rest) > 1 else ()
            tokens[t] = User(u, rest[0] if rest else "write", orgs)
    srv = HubServer(
        a.host, a.port, a.root, tokens, a.verbose, upload_mode=a.upload_mode, lfs_threshold=a.lfs_threshold,
        multipart_size=a.multipart_size, page_size=a.page_size, cdn=a.cdn, latency=a.latency, bandwidth=a.bandwidth,
        xet_dir=a.xet_dir,
    )  # fmt: skip
    if a.fail_nth:
        srv.fail(nth=a.fail_nth)
    for rule in a.fault:
        srv.fail(**json.loads(rule))
    if a.port_file:
        tmp = Path(a.port_file + ".tmp")
        tmp.write_text(str(srv.port))
        os.replace(tmp, a.port_file)
    env = client_env(srv.url, "<an empty folder>", next(iter(srv.hub.tokens)))
    print(json.dumps({"url": srv.url, "root": str(srv.root), "env": env}), flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a temporary folder is removed
    try:
        srv.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        srv.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
