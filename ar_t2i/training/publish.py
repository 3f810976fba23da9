"""Push a run's bundle and newest checkpoint to the Hub while training goes on, in a process of their own.

That process can fail, hang or be killed without touching the run; what it sends are copies that nobody changes. While
one push is under way, newer states wait, and only the newest of them is sent next.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ar_t2i.hub.names import link_to
from ar_t2i.hub.remote import Remote, without_tokens

ATTEMPTS = 4
"""Pushes of the last state before a run gives up."""
FIRST_PAUSE = 10.0
"""Seconds before the second of them; twice as long before each further one."""
LONGEST = 6 * 3600.0
"""Seconds after which a push is given up, and all pushes at the end of a run together: enough for tens of GB."""
BRANCH = "training"
"""Where the state of a run that is not finished lies."""


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Where a run is published."""

    repo: str = ""
    """Id on the Hub, owner/name; empty publishes nothing. The finished bundle goes to main; on the way, bundle and
    newest checkpoint go to the branch `training`, from where `--resume owner/name@training` goes on."""
    every: int = 0
    """Steps between pushes, a multiple of loop.checkpoint_every; 0 pushes at the end alone."""
    license: str = ""
    """Licence of the model for its card, such as apache-2.0."""
    private: bool = False
    """Make a new repository private."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.every < 0:
            raise ValueError(f"hub.every={self.every}: expected 0 or more steps")
        if self.repo and (self.repo != link_to(self.repo) or without_tokens(self.repo) != self.repo):
            raise ValueError(f"hub.repo={without_tokens(self.repo)!r}: expected owner/name")
        if self.repo and not self.license:
            raise ValueError("hub.license is not set: a published model needs one, such as apache-2.0")


class Publisher:
    """Pushes in the background."""

    def __init__(self, config: HubConfig, output: Path, say: Callable[[str], None]) -> None:
        """Publish the run in `output` as `config` says; `say` prints a line."""
        self.config, self.say = config, say
        self.folder = Path(tempfile.mkdtemp(prefix=".push-", dir=output))
        self.waiting: list[Path] = []
        self.thread: threading.Thread | None = None
        self.lock = threading.Lock()
        self.count = 0
        threading.Thread(target=self._try, daemon=True).start()

    def _try(self) -> None:
        """Make the repository now: whoever lacks the right to is told hours before the first push."""
        try:
            Remote(self.config.repo).create(self.config.private)
        except ValueError as error:
            self.say(f"{error}; training goes on, and pushes will be tried")

    def offer(self, bundle: Path, checkpoint: Path) -> None:
        """Push this state when the one before is through, unless a newer one comes in the meantime."""
        try:
            copies = [self._copy(bundle), self._copy(checkpoint)]
        except OSError as error:
            return self.say(f"{bundle} could not be copied for its push: {error}; training goes on")
        with self.lock:
            old, self.waiting = self.waiting, copies
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, daemon=True)
                self.thread.start()
        for path in old:
            shutil.rmtree(path.parent, ignore_errors=True)

    def finish(self, bundle: Path) -> bool:
        """Push the finished bundle to main, after what is under way; True if it is there.

        A push that fails is repeated; if all fail, the command that pushes by hand is printed.
        """
        with self.lock:
            thread, self.waiting = self.thread, []
        deadline = time.monotonic() + LONGEST
        if thread is not None:
            thread.join(LONGEST)
        try:
            pause, arguments = FIRST_PAUSE, [str(bundle), "--to", self.config.repo, *self._options()]
            for attempt in range(1, ATTEMPTS + 1):
                problem = self._push(arguments, max(1.0, deadline - time.monotonic()))
                if not problem:
                    self.say(f"pushed {bundle} to {self.config.repo}")
                    return True
                if time.monotonic() + pause >= deadline:
                    break
                if attempt < ATTEMPTS:
                    self.say(f"{problem}; next attempt in {pause:.0f} s")
                    time.sleep(pause)
                    pause *= 2
            self.say(f"{problem}\nthe bundle is complete in {bundle}; push it by: ar-t2i push {' '.join(arguments)}")
            return False
        finally:
            self.close()

    def close(self) -> None:
        """Give up what waits, and delete the copies."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self.lock:
                paths, self.waiting = self.waiting, []
                if not paths:
                    self.thread = None
                    return
            for path in paths:
                problem = self._push([str(path), "--to", f"{self.config.repo}@{BRANCH}", *self._options()])
                if problem:
                    self.say(f"{problem}; training goes on, the next push tries again")
                    break
            for path in paths:
                shutil.rmtree(path.parent, ignore_errors=True)

    def _push(self, arguments: list[str], longest: float = LONGEST) -> str:
        """Run one push of at most so many seconds; returns what went wrong, or ""."""
        line = [sys.executable, "-m", "ar_t2i.cli", "push", *arguments]
        quiet = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        try:
            done = subprocess.run(line, capture_output=True, text=True, check=False, env=quiet, timeout=longest)
        except subprocess.TimeoutExpired:
            return f"a push did not end in {longest:,.0f} s"
        said = done.stderr.strip().splitlines() or [f"a push ended with code {done.returncode}"]
        return "" if done.returncode == 0 else said[-1]

    def _options(self) -> list[str]:
        return ["--license", self.config.license, *(["--private"] if self.config.private else [])]

    def _copy(self, folder: Path) -> Path:
        """A copy that takes no room: finished folders are replaced, never written into."""
        self.count += 1
        target = self.folder / str(self.count) / folder.name
        shutil.copytree(folder, target, copy_function=_link)
        return target


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target
