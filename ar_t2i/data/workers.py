"""Processes that make batches ready."""

import signal

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that ask a run for a checkpoint and an end: what schedulers send before they take the machine away."""


def ignore_signals(worker: int) -> None:
    """Go on reading until the main process ends: schedulers send their signals to all processes of a job."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
