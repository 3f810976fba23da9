"""Processes that make batches ready."""

import signal
from collections.abc import Generator
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that ask a run for a checkpoint and an end: what schedulers send before they take the machine away."""
GRACE = 60
"""Seconds that a worker goes on after SIGTERM: more than the last step of its run takes."""


def fetch_ahead(dataset: Any, workers: int, **options: Any) -> Generator[Any]:
    """The items of a dataset in order, made ready by worker processes, 0 for none; they end when it is closed.

    `options` are those of torch's DataLoader.
    """
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, worker_init_fn=_outlive_signals,
        generator=torch.Generator(), **options,  # it would draw from the one that dropout reads
    )  # fmt: skip
    items = iter(loader)
    try:
        yield from items
    finally:
        if workers:  # an error's traceback may hold `items`, and the interpreter would wait for its workers at the end
            items._shutdown_workers()  # type: ignore[attr-defined]


def _outlive_signals(worker: int) -> None:
    """Go on reading for a while: schedulers send their signals to all processes of a job."""

    def hear(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.alarm(GRACE)  # whose signal ends the process

    for number in STOPPING:
        signal.signal(number, hear)
