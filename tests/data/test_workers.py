"""Processes that make batches ready: they outlive a scheduler's signals, and never the run that they read for."""

import multiprocessing
import os
import signal
from contextlib import closing, suppress

import pytest
import torch

from ar_t2i.data import workers
from ar_t2i.data.workers import fetch_ahead


class Numbers(torch.utils.data.Dataset):
    """Each item tells who made it; item 3 fails where that is asked for."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def __len__(self) -> int:
        return 50

    def __getitem__(self, number: int) -> tuple[int, int]:
        if self.fails and number == 3:
            raise ValueError("item 3 cannot be read")
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


def test_a_worker_reads_on_after_a_signal_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 5)
    with closing(fetch_ahead(Numbers(), 1)) as items:
        next(items)
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(worker.pid, number)
        assert [next(items)[0] for _ in range(20)] == list(range(1, 21)) and worker.is_alive()
        with suppress(RuntimeError):  # by which torch tells a run that still reads
            worker.join(30)
        worker.join(30)
        assert worker.exitcode == -signal.SIGALRM
