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
from dataclasses import dataclass, replace
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
LONGEST_PAUSE = 300.0
"""Seconds that a busy Hub is waited for at once."""
FILES_PER_COMMIT = 100

_MOMENTARY = {408, 409, 412, 425, 429, 500, 502, 503, 504}


class Unavailable(ValueError):
    """A request that failed for reasons that may pass, more often than there is patience for."""


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
    bound_waiting()
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            if not is_momentary(error) or attempt == ATTEMPTS:
                kind = Unavailable if is_momentary(error) or is_unreachable(error) else ValueError
                raise kind(f"cannot {what}: {explain(error)}") from (None if has_token(error) else error)
            time.sleep(max(pause * random.uniform(0.5, 1.5), _asked_pause(error)))
            pause *= 2
    raise AssertionError("unreachable")


def is_momentary(error: BaseException) -> bool:
    """Whether a request that failed so may succeed a moment later."""
    error = _first(error)
    status = _status(error)
    if status is not None:
        return status in _MOMENTARY
    passing = isinstance(error, (ConnectionError, TimeoutError)) or "TransportError" in _kinds(error)
    return passing and not is_unreachable(error)


def is_unreachable(error: BaseException) -> bool:
    """Whether there is no way to the Hub at all: no network, or it is switched off."""
    error = _first(error)
    return _is_offline(error) or "ConnectError" in _kinds(error)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _asked_pause(error: BaseException) -> float:
    """Seconds that a Hub which is asked too often wants to be left alone."""
    headers = getattr(getattr(_first(error), "response", None), "headers", {})
    asked = f"{headers.get('Retry-After', '')} {headers.get('ratelimit', '')}"  # "30", or "...;r=0;t=30"
    seconds = re.match(r"\d+", asked) or re.search(r"(?<=t=)\d+", asked)
    return min(float(seconds[0]), LONGEST_PAUSE) if seconds else 0.0


def explain(error: BaseException) -> str:
    """What happened and what to do, without any token."""
    error = _first(error)
    text = without_tokens(" ".join(str(error).split()))[:400]
    status, name = _status(error), type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'no file named'}): free some space, then run it again"
    if _is_offline(error):
        return "the network is switched off by HF_HUB_OFFLINE: unset it"
    if name == "GatedRepoError":
        return "its terms have to be accepted first, on its page, by the owner of this token"
    if status == 401 and name == "RepositoryNotFoundError":
        return "no such repository, or it is private: check the name, or log in with `hf auth login`"
    if status == 401 or name == "LocalTokenNotFoundError":
        return "the Hub knows no such token (401): log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"this token may not do that (403): take one with write access, or another namespace. {text}"
    if name in ("RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"):
        what = "revision" if name == "RevisionNotFoundError" else "file" if "Entry" in name else "repository"
        return f"no such {what} (404), or it is private and the token may not see it: check the name"
    if is_unreachable(error):
        return f"there is no way to the Hub: check the network. {text}"
    if is_momentary(error):
        return f"the Hub did not answer properly in {ATTEMPTS} attempts ({status or name}): run it again later. {text}"
    return f"{text} ({name})"


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
    """The error behind those that tell nothing: of huggingface_hub's uploads, of what datasets generates."""
    cause = error.__cause__
    wrapped = isinstance(error, RuntimeError) or type(error).__name__ in ("DatasetGenerationError", "Unavailable")
    return _first(cause) if wrapped and cause else error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@dataclass
class Remote:
    """One repository at one revision."""

    repo_id: str
    revision: str = "main"
    repo_type: RepoType = "model"

    @cached_property
    def api(self) -> "HfApi":
        """The client."""
        from huggingface_hub import HfApi

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
        """Make the repository, and the branch, where they are missing.

        Raises:
            ValueError: it may not be made, is public although `private` is asked for, or the revision is no branch.
        """
        self.ask("create", lambda: self.api.create_repo(**self._where, private=private, exist_ok=True))
        if private and not self.ask("read", lambda: self.api.repo_info(**self._where).private):
            raise ValueError(f"{self.repo_id} is there and public: make it private on its page, or take another name")
        if self.revision != "main" and not self.revision.startswith("refs/"):
            if re.fullmatch(r"[0-9a-f]{40}", self.revision) or self.revision in self._tags():
                raise ValueError(f"{self} is a tag or a commit, to which nothing can be pushed: name a branch")
            self.ask("create", lambda: self.api.create_branch(**self._where, branch=self.revision, exist_ok=True))

    def open_pull_request(self, title: str) -> str:
        """Open a pull request, or take one's own draft of this title, and go on in it; returns its address."""

        def draft() -> Any:
            me = self.api.whoami()["name"]
            found = self.api.get_repo_discussions(**self._where, discussion_type="pull_request")
            own = (one for one in found if (one.title, one.status, one.author) == (title, "draft", me))
            return next(own, None) or self.api.create_pull_request(**self._where, title=title)

        made = self.ask("open a pull request in", draft)
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
        """Name the head of this revision."""
        head = self.head()
        self.check_tag(name, head)
        where: dict[str, Any] = {**self._where, "tag": name, "revision": head, "exist_ok": True}
        self.ask("tag", lambda: self.api.create_tag(**where))

    def check_tag(self, name: str, commit: str) -> None:
        """Raise ValueError for a name that a tag cannot have, or that one of another commit has."""
        if not re.fullmatch(r"\w[\w./-]*", name):
            raise ValueError(f"tag {name!r}: expected letters, digits, dots, slashes and dashes, such as v1.0")
        known = self._tags().get(name, commit)
        if known != commit:
            raise ValueError(f"{self.repo_id} has a tag {name!r} already, at {known[:8]}: take another name")

    def _tags(self) -> dict[str, str]:
        """Commits of the tags."""
        refs = self.ask("read the tags of", lambda: self.api.list_repo_refs(**self._where))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def head(self) -> str:
        """The commit that the revision means now."""
        found = self.ask("read", lambda: self.api.repo_info(**self._where, revision=self.revision).sha)
        assert found is not None
        return found

    def before(self) -> "Remote | None":
        """What a push will find: this revision, main where it is a branch that is still to be made, None."""
        if not self.exists():
            return None
        found = self.ask("look for", lambda: self.api.revision_exists(**self._where, revision=self.revision))
        return self if found else replace(self, revision="main")

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
        amend: Callable[[Mapping[str, "RepoFile"], str], Mapping[str, bytes]] = lambda there, commit: {},
    ) -> str:
        """Make the repository hold these files; what it holds already is not sent, and all is compared in the end.

        A push that was broken off is finished by another call.

        Args:
            files: path in the repository -> file here, or its content.
            message: of the commits.
            digests: sha256 that some of the files must have; they are read once, on their way.
            replaced: paths there for which this is true are deleted if they are not among `files`.
            amend: given the files there and their commit, gives more to write; asked again when another push came in
                between.

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
        amend: Callable[[Mapping[str, "RepoFile"], str], Mapping[str, bytes]] | None = None,
    ) -> None:
        """One attempt: look at what is there, send what is missing, on top of just that state."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        where: dict[str, Any] = {**self._where, "revision": self.revision}
        head = self.api.repo_info(**where).sha
        assert head is not None
        there = self.files(head)
        more = amend(there, head) if amend else {}
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
