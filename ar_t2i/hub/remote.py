"""A repository on the Hub, spoken to with patience: what fails for a moment is tried again.

huggingface_hub itself waits for ever for an answer that does not come, gives up on a 503 to a commit, does not know
whether a commit landed whose answer was lost, and does not look at the content of what it has downloaded.
"""

import errno
import hashlib
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")
RepoType = Literal["model", "dataset"]
ATTEMPTS = 6
"""Calls of one request before it counts as failed."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
TIMEOUT = 120.0
"""Seconds without a byte after which a request counts as failed."""
FILES_PER_COMMIT = 100

_MOMENTARY = {408, 409, 412, 425, 429, 500, 502, 503, 504}


def bound_waiting() -> None:
    """Make requests of huggingface_hub in this process wait at most `TIMEOUT` for a byte; its own limit is none."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    before = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    if before.__name__ == "bounded":
        return

    def bounded() -> Any:
        client = before()
        client.timeout = TIMEOUT
        return client

    set_client_factory(bounded)


def patiently(call: Callable[[], T], what: str) -> T:
    """The result of a call that is repeated while it fails for reasons that may pass.

    Args:
        call: safe to repeat.
        what: the words for a message: "cannot {what}: ...".

    Raises:
        ValueError: it failed for good, or too often; the message says what to do.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            if not is_momentary(error) or attempt == ATTEMPTS:
                advice = explain(error)
                raise ValueError(f"cannot {what}: {advice}") from (None if has_token(error) else error)
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause *= 2
    raise AssertionError("unreachable")


def is_momentary(error: BaseException) -> bool:
    """Whether a request that failed so may succeed a moment later."""
    error = _first(error)
    status = _status(error)
    if status is not None:
        return status in _MOMENTARY
    names = {kind.__name__ for kind in type(error).__mro__}
    passing = isinstance(error, (ConnectionError, TimeoutError)) or "TransportError" in names
    return passing and not _is_offline(error)


def explain(error: BaseException) -> str:
    """What happened and what to do, without any token."""
    error = _first(error)
    text = without_tokens(" ".join(str(error).split()))[:400]
    status, name = _status(error), type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'no file named'}): free some space, then run it again"
    if _is_offline(error):
        return "the network is switched off by HF_HUB_OFFLINE: unset it"
    if status == 401 or name == "LocalTokenNotFoundError":
        return "the Hub knows no such token (401): log in with `hf auth login`, or set HF_TOKEN"
    if status == 403 or name == "GatedRepoError":
        return f"this token may not do that (403): take one with write access, or another namespace. {text}"
    if name in ("RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"):
        what = "revision" if name == "RevisionNotFoundError" else "file" if "Entry" in name else "repository"
        return f"no such {what} (404), or it is private and the token may not see it: check the name"
    if is_momentary(error):
        return f"the Hub did not answer properly in {ATTEMPTS} attempts ({status or name}): run it again later. {text}"
    return f"{text} ({name})"


def answered(error: BaseException) -> bool:
    """Whether a request failed by what the Hub said, not for lack of an answer."""
    return _status(_first(error)) is not None


def without_tokens(text: str) -> str:
    """The text with every access token blacked out: those that look like one, and the one in use."""
    from huggingface_hub import get_token

    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_***", text)
    token = get_token()
    return text.replace(token, "***") if token else text


def has_token(error: BaseException) -> bool:
    """Whether a token stands in the message of an error or of one that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        if without_tokens(str(seen)) != str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_offline(error: BaseException) -> bool:
    """Whether the user has switched the network off; the datasets library says so in the text alone."""
    return "OfflineModeIsEnabled" in f"{type(error).__name__} {error}"


def _first(error: BaseException) -> BaseException:
    """The error behind a RuntimeError of huggingface_hub's uploads, or behind its "not in the cache either"."""
    cause = error.__cause__
    if cause is None:
        return error
    refused = type(error).__name__ == "LocalEntryNotFoundError" and _status(cause) is not None
    return cause if refused or isinstance(error, RuntimeError) else error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@dataclass
class Remote:
    """One repository at one revision."""

    repo_id: str
    repo_type: RepoType
    revision: str = "main"

    @cached_property
    def api(self) -> "HfApi":
        """The client."""
        from huggingface_hub import HfApi

        bound_waiting()
        return HfApi()

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """The result of a request, with patience; errors as in `patiently`."""
        return patiently(call, f"{what} {self}")

    def __str__(self) -> str:
        """The id, with the revision where it is not main."""
        return self.repo_id if self.revision == "main" else f"{self.repo_id}@{self.revision}"

    @property
    def _where(self) -> dict[str, Any]:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    def exists(self) -> bool:
        """Whether the repository is there and can be seen."""
        return self.ask("look for", lambda: self.api.repo_exists(**self._where))

    def create(self, private: bool) -> None:
        """Make the repository, and the branch, where they are missing."""
        self.ask("create", lambda: self.api.create_repo(**self._where, private=private, exist_ok=True))
        if self.revision != "main" and not self.revision.startswith("refs/"):
            self.ask("create", lambda: self.api.create_branch(**self._where, branch=self.revision, exist_ok=True))

    def open_pull_request(self, title: str) -> str:
        """Open a pull request and go on in it; returns its address."""
        made = self.ask("open a pull request in", lambda: self.api.create_pull_request(**self._where, title=title))
        self.revision = made.git_reference or f"refs/pr/{made.num}"
        return made.url

    def publish_pull_request(self) -> None:
        """Turn the draft into one that is open."""
        number = int(self.revision.rsplit("/", 1)[-1])
        self.ask(
            "open the pull request in",
            lambda: self.api.change_discussion_status(**self._where, discussion_num=number, new_status="open"),
        )

    def tag(self, name: str) -> None:
        """Name the head of this revision; a tag of that name elsewhere is an error."""
        refs = self.ask("read the tags of", lambda: self.api.list_repo_refs(**self._where))
        head = self.head()
        for tag in refs.tags:
            if tag.name == name and tag.target_commit != head:
                raise ValueError(
                    f"{self.repo_id} has a tag {name!r} already, at {tag.target_commit[:8]}: take another name"
                )
        where: dict[str, Any] = {**self._where, "tag": name, "revision": head, "exist_ok": True}
        self.ask("tag", lambda: self.api.create_tag(**where))

    def head(self) -> str:
        """The commit that the revision means now."""
        found = self.ask("read", lambda: self.api.repo_info(**self._where, revision=self.revision).sha)
        assert found is not None
        return found

    def files(self, revision: str | None = None) -> dict[str, "RepoFile"]:
        """All files at a revision, by path."""
        from huggingface_hub.hf_api import RepoFile

        def read() -> dict[str, RepoFile]:
            tree = self.api.list_repo_tree(**self._where, revision=revision or self.revision, recursive=True)
            return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

        return self.ask("list the files of", read)

    def push(
        self,
        files: Mapping[str, Path | bytes],
        message: str,
        *,
        digests: Mapping[str, str] | None = None,
        replaced: Callable[[str], bool] = lambda path: False,
        amend: Callable[[Mapping[str, "RepoFile"]], Mapping[str, bytes]] = lambda remote: {},
    ) -> str:
        """Make the repository hold these files; what it holds already is not sent, and all is compared in the end.

        A push that was broken off is finished by another call.

        Args:
            files: path in the repository -> file here, or its content.
            message: of the commits.
            digests: sha256 that some of the files must have; they are read once, on their way.
            replaced: paths there for which this is true are deleted if they are not among `files`.
            amend: given the files there, gives more to write; asked again when another push came in between.

        Returns:
            the commit.

        Raises:
            ValueError: the push failed; the message says what to do.
        """
        from huggingface_hub import CommitOperationAdd

        additions = {path: CommitOperationAdd(path, source) for path, source in files.items()}
        paths = list(additions)
        for start in range(0, max(len(paths), 1), FILES_PER_COMMIT):
            done = min(start + FILES_PER_COMMIT, len(paths))
            part = {path: additions[path] for path in paths[start:done]}
            send = partial(self._commit, part, digests or {})
            if done < len(paths):
                send = partial(send, f"{message} ({done} of {len(paths)} files)")
            else:
                send = partial(send, message, lambda path: replaced(path) and path not in files, amend)
            self.ask("push to", send)
        head = self.head()
        self._compare(additions, head)
        return head

    def _commit(
        self,
        additions: Mapping[str, "CommitOperationAdd"],
        digests: Mapping[str, str],
        message: str,
        superfluous: Callable[[str], bool] | None = None,
        amend: Callable[[Mapping[str, "RepoFile"]], Mapping[str, bytes]] | None = None,
    ) -> None:
        """One attempt: look at what is there, send what is missing, on top of just that state."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        where: dict[str, Any] = {**self._where, "revision": self.revision}
        head = self.api.repo_info(**where).sha
        there = self.files(head)
        more = amend(there) if amend else {}
        wanted = {**additions, **{path: CommitOperationAdd(path, content) for path, content in more.items()}}
        operations: list[Any] = [op for path, op in wanted.items() if not self.holds(there.get(path), op)]
        if superfluous:
            operations += [CommitOperationDelete(path) for path in there if superfluous(path) and path not in wanted]
        if not operations:
            return
        sent = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        self.api.preupload_lfs_files(additions=sent, free_memory=False, **where)
        for addition in sent:
            digest = digests.get(addition.path_in_repo)
            if digest is not None and digest != addition.upload_info.sha256.hex():
                raise ValueError(f"{addition.path_or_fileobj} is damaged: run preprocess again, which makes it anew")
        self.api.create_commit(**where, operations=operations, commit_message=message, parent_commit=head)

    def _compare(self, additions: Mapping[str, "CommitOperationAdd"], commit: str) -> None:
        there = self.files(commit)
        wrong = [path for path, operation in additions.items() if not self.holds(there.get(path), operation)]
        if wrong:
            raise ValueError(
                f"{self} holds another {wrong[0]!r} than was pushed ({len(wrong)} files differ): another push came in "
                "between, or the Hub lost bytes; push again"
            )

    @staticmethod
    def holds(there: "RepoFile | None", here: "CommitOperationAdd") -> bool:
        """Whether a file of the repository has the content that would be sent."""
        if there is None or there.size != here.upload_info.size:
            return False
        if there.lfs is not None:
            return there.lfs.sha256 == here.upload_info.sha256.hex()
        with here.as_file() as file:
            return there.blob_id == git_digest(file.read())


def git_digest(content: bytes) -> str:
    """The name that git gives a file: sha1 of a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def file_digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file's content: "sha256", or "git-sha1"."""
    if algorithm == "git-sha1":
        return git_digest(path.read_bytes())
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
