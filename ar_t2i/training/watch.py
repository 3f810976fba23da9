"""What can go wrong in the middle of a run: steps that must not be taken, and reasons to stop between two of them."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator

from ar_t2i.data.workers import STOPPING
from ar_t2i.training.task import Batch

SETTLED = 50
"""Steps before a gradient can be called a spike."""
MOST_SKIPPED = 20
"""Steps in a row that may be skipped."""
_MEMORY = 0.98
"""Decay of the running mean of gradient norms."""


class Interrupted(SystemExit):
    """The end of a run that a signal asked for, after its checkpoint was written; its code is 128 + the signal's."""


@dataclass
class Guard:
    """Which steps are taken: not those whose loss or gradient is no number, nor spikes."""

    factor: float
    """A gradient norm this many times the running mean is a spike; 0 takes all that are numbers."""
    mean: float = 0.0
    """Running mean of the norms of steps that were taken."""
    taken: int = 0
    skipped: int = 0
    """In all."""
    in_a_row: int = 0

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether to take a step; counts it.

        Raises:
            ValueError: too many in a row were not taken.
        """
        spike = self.factor > 0 and self.taken >= SETTLED and norm > self.factor * self.mean
        if math.isfinite(loss) and math.isfinite(norm) and not spike:
            decay = min(_MEMORY, self.taken / (self.taken + 1))
            self.mean = decay * self.mean + (1 - decay) * norm
            self.taken, self.in_a_row = self.taken + 1, 0
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if math.isfinite(norm):  # where gradients stay large, that is the new measure in the end
            self.mean = _MEMORY * self.mean + (1 - _MEMORY) * norm
        if self.in_a_row > MOST_SKIPPED:
            raise ValueError(
                f"{self.in_a_row} steps in a row had a loss of {loss:g} and a gradient norm of {norm:g}, against "
                f"{self.mean:g} before, and were skipped: lower optim.lr, and go on from the last checkpoint"
            )
        return False

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name != "factor"}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state` (ValueError where it is none)."""
        known = self.state()
        if state.keys() != known.keys() or not all(isinstance(value, (int, float)) for value in state.values()):
            raise ValueError(f"the checkpoint tells {state!r:.200} of its steps, expected {', '.join(known)}")
        for name, value in state.items():
            setattr(self, name, value)


def attempt(work: Callable[[], None], accelerator: Accelerator, say: Callable[[str], None], required: bool) -> None:
    """Write something that may fail, in all processes at once: they go on together, or end together.

    Raises:
        ValueError: it failed in this process or another one, and is `required`.
    """
    problem = None
    try:
        work()
    except Exception as error:  # the libraries that write have errors of many kinds
        problem = error
    failed = torch.tensor(int(problem is not None), device=accelerator.device)
    anywhere = bool(accelerator.reduce(failed, "sum"))
    if anywhere and required:
        told = " ".join(str(problem).split()) if problem else "another process could not write"
        raise ValueError(f"{told}; when that is mended, go on with --resume auto") from problem
    if problem is not None:
        say(f"{' '.join(str(problem).split())}; training goes on")


class Watch:
    """Signals and unreadable data, agreed on by all processes before each step; a context of the main thread."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signal = 0
        self.error: Exception | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in STOPPING}
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def take(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """The next micro-batches, none where they cannot be read."""
        try:
            return list(islice(batches, count))
        except Exception as error:
            self.error = error
            return []

    def must_stop(self) -> bool:
        """Whether any process has a reason."""
        if self.accelerator.num_processes == 1:
            return bool(self.signal or self.error)
        heard = [self.signal == number for number in STOPPING]
        reasons = torch.tensor([*heard, self.error is not None], dtype=torch.int32, device=self.accelerator.device)
        *signals, errors = self.accelerator.reduce(reasons, "sum").tolist()  # type: ignore[union-attr]
        self.signal = next((number for number, count in zip(STOPPING, signals, strict=True) if count), 0)
        return bool(self.signal or errors)

    def stop(self, step: int) -> None:
        """End the run, whose checkpoint has been written.

        Raises:
            Interrupted: a signal asked for it.
            ValueError: data could not be read, here or in another process.
        """
        kept = f"the checkpoint of step {step} is written: go on with --resume auto"
        if self.error is not None and not self.signal:
            told = str(self.error).strip().splitlines()[-1:] or [type(self.error).__name__]  # not a worker's traceback
            raise ValueError(f"{told[0]}; {kept}") from self.error
        if self.signal:
            self.accelerator.print(f"stopped by {signal.Signals(self.signal).name}; {kept}", flush=True)
            raise Interrupted(128 + self.signal)
        raise ValueError(f"another process could not read its data; {kept}")
