"""Processes that make batches ready: they outlive a scheduler's signals, and never the run that they read for."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from ar_t2i.data.workers import fetch_ahead


class Numbers(torch.utils.data.Dataset):
    """Each item tells who made it; item 3 fails, or all after item 0 take so many seconds, where that is asked for."""

    def __init__(self, fails: bool = False, slow: float = 0) -> None:
        self.fails, self.slow = fails, slow

    def __len__(self) -> int:
        return 50

    def __getitem__(self, number: int) -> tuple[int, int]:
        if self.fails and number == 3:
            raise ValueError("item 3 cannot be read")
        if number:
            time.sleep(self.slow)
        return number, os.getpid()


@pytest.mark.parametrize("count", [0, 2])
def test_all_items_come_in_order_and_no_worker_stays(count):
    with closing(fetch_ahead(Numbers(), count)) as items:
        found = list(items)
    assert [number for number, _ in found] == list(range(50))
    assert len({pid for _, pid in found} - {os.getpid()}) == count and not multiprocessing.active_children()


def test_workers_end_when_reading_stops_in_the_middle():
    items = fetch_ahead(Numbers(), 2)
    next(items)
    assert len(multiprocessing.active_children()) == 2
    items.close()
    assert not multiprocessing.active_children()


def test_workers_end_though_an_error_holds_what_they_were_read_with():
    """The interpreter would wait for them at its end."""
    with pytest.raises(ValueError, match="item 3 cannot be read") as error:
        list(fetch_ahead(Numbers(fails=True), 2))
    assert error.traceback and not multiprocessing.active_children()


def test_a_worker_reads_on_after_a_scheduler_signals_it():
    with closing(fetch_ahead(Numbers(), 1)) as items:
        next(items)
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(worker.pid, number)
        assert [number for number, _ in items] == list(range(1, 50))


def test_workers_that_are_busy_end_at_once():
    """A run that is told to stop has seconds for its checkpoint."""
    items = fetch_ahead(Numbers(slow=60), 2)
    next(items)
    started = time.monotonic()
    items.close()
    assert not multiprocessing.active_children() and time.monotonic() - started < 30


def test_the_interpreter_ends_though_nobody_closed_the_reading(tmp_path):
    script = """
import test_workers
items = test_workers.fetch_ahead(test_workers.Numbers(slow=600), 2)
next(items)
print("read")
"""
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", script], env=path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout == "read\n" and not done.stderr
