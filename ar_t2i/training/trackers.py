"""metrics.jsonl, always; and whatever trackers accelerate knows, by name."""

import json
import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from tqdm import tqdm

from ar_t2i.hub.remote import without_tokens

WAITING = 1000
"""Records that wait for a tracker."""
PATIENCE = 60.0
"""Seconds that a tracker has to end."""


class Metrics:
    """Writes records of one run; on every process but the first it does nothing."""

    def __init__(self, accelerator: Accelerator, output: Path, settings: dict[str, Any], done: int):
        """Open the log.

        Args:
            accelerator: with its trackers chosen.
            output: folder of the run.
            settings: flat options of the run, for the trackers.
            done: optimizer steps already done; later records, of a run that was cut off, are dropped.
        """
        self.main, self.path = accelerator.is_main_process, output / "metrics.jsonl"
        self.waiting, self.full = "", False
        self.trackers = _Trackers(accelerator, settings, self.say) if self.main and accelerator.log_with else None
        if self.main:
            records = read_metrics(self.path)  # those of validation at the last step come again
            kept = [record for record in records if record["step"] < done + ("loss" in record)] if done else []
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
            temporary.replace(self.path)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values after `step` optimizer steps; where the disk is full, records wait until it has room."""
        if not self.main:
            return
        if self.trackers:
            self.trackers.log(step, values)
        self.waiting += json.dumps({"step": step, **values}) + "\n"
        whole = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(self.waiting)
            self.waiting, self.full = "", False
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, whole)  # no half line
            if not self.full:
                self.say(f"cannot write {self.path}: {error.strerror}; records wait until it can be written")
            self.full = True

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            tqdm.write(text)

    def __enter__(self) -> Self:
        """Write."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the trackers, which may take a moment, but not for ever."""
        if self.trackers:
            self.trackers.close()


class _Trackers:
    """accelerate's trackers in a thread of their own: a service that fails or does not answer holds up nothing."""

    def __init__(self, accelerator: Accelerator, settings: dict[str, Any], say: Callable[[str], None]) -> None:
        self.accelerator, self.settings, self.say = accelerator, settings, say
        self.queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING)
        self.lost = 0
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        try:
            self.queue.put_nowait((step, values))
        except queue.Full:
            self.lost += 1
            if self.lost == 1:
                self.say(f"the trackers do not answer: {WAITING} records wait, others stand in metrics.jsonl alone")

    def close(self) -> None:
        with suppress(queue.Full):
            self.queue.put(None, timeout=PATIENCE)
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            self.accelerator.trackers = []  # so that nobody else waits for them
            self.say(f"the trackers did not end in {PATIENCE:.0f} s: what they lack stands in metrics.jsonl")

    def _work(self) -> None:
        try:
            self.accelerator.init_trackers("ar_t2i", config=self.settings)
            while (record := self.queue.get()) is not None:
                self.accelerator.log(record[1], step=record[0])
            for tracker in self.accelerator.trackers:
                tracker.finish()
        except Exception as error:  # of any service; the run does not depend on it
            self.say(f"a tracker failed: {without_tokens(str(error))} ({type(error).__name__}); training goes on")
            while self.queue.get() is not None:
                pass
        finally:
            self.accelerator.trackers = []


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that would log nothing; accelerate leaves them out without a word.

    Raises:
        ValueError: a tracker that accelerate does not know, or that is not installed.
    """
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"loop.trackers: {name!r} is not known; expected some of {', '.join(LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            raise ValueError(f"loop.trackers: {name} is not installed: pip install {name}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order; none if there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
