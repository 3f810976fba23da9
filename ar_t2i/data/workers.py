"""Processes that make batches ready."""

import atexit
import signal
import sys
from collections.abc import Generator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that ask a run for a checkpoint and an end: what schedulers send before they take the machine away."""


def fetch_ahead(dataset: Any, workers: int, **options: Any) -> Generator[Any]:
    """The items of a dataset in order, made ready by worker processes, 0 for none; they end when it is closed.

    `options` are those of torch's DataLoader.
    """
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, worker_init_fn=_ignore_signals,
        generator=torch.Generator(), **options,  # it would draw from the one that dropout reads
    )  # fmt: skip
    items = iter(loader)
    end, finalizing = partial(_end, items), sys.is_finalizing
    if workers:  # an error's traceback may hold `items`, and the interpreter would wait for workers at its end
        atexit.register(end)
    try:
        yield from items
    finally:
        if workers and not finalizing():  # when the interpreter has ended them, and taken its modules apart
            atexit.unregister(end)
            end()


def _ignore_signals(worker: int) -> None:
    """Go on reading until the main process says otherwise: schedulers send their signals to all processes of a job."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _end(items: Any) -> None:
    """End the workers of torch's iterator at once; its own way waits seconds for each that is at work."""
    if items._shutdown:
        return
    items._shutdown = True
    items._workers_done_event.set()
    # Or torch would raise an error for each of them.
    signal_handling._remove_worker_pids(id(items))  # pyright: ignore[reportPrivateImportUsage]
    items._worker_pids_set = False
    for worker in items._workers:
        worker.kill()
        worker.join()
    for waiting in items._index_queues:
        waiting.cancel_join_thread()
        waiting.close()
