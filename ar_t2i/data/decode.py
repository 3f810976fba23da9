"""Samples to squares of pixels in worker processes, in the samples' order.

A thread reads the shards and hands chunks of files to the workers; a bounded queue of chunks runs ahead of what the
caller takes, into the next shard too, so that sources are read and pictures decoded while the caller encodes.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Self

import numpy as np

from ar_t2i.data.captions import MAX_CAPTION_CHARS, clean_caption
from ar_t2i.data.images import DEFAULT_LIMITS, CropRule, ImageLimits, Pixels, prepare_many
from ar_t2i.data.sample import Reason, Sample, UnreadableShard

CHUNK = 8
"""Files that travel to a worker together."""
CHUNKS_AHEAD = 32
"""Chunks that wait beside the workers' own: about 256 pictures, 50 MB."""
CHUNK_BYTES = 64 * 2**20
"""Of the files of a chunk, unless one alone has more."""
BYTES_AHEAD = 512 * 2**20
"""Of all files that wait, unless one alone has more: hostile sources give nothing but the largest."""

Result = Callable[[], list[np.ndarray | Reason]]


@dataclass(slots=True, kw_only=True)
class Decoded:
    """A sample ready to be encoded, the reason why it is dropped, or the end of a shard."""

    shard: int
    """Number of its shard."""
    key: str = ""
    caption: str = ""
    picture: np.ndarray | None = None
    """(size, size, 3) uint8 RGB."""
    reason: Reason | None = None
    done: float = 0.0
    """Part of the shard that lies behind, 0 to 1."""
    ends: bool = False
    """This is no sample but the end of its shard."""
    error: UnreadableShard | None = None
    """At the end: the shard could not be read up to here."""


class Decoder:
    """A pool of workers; a context manager."""

    def __init__(
        self,
        workers: int,
        size: int,
        crop: CropRule = "center",
        limits: ImageLimits = DEFAULT_LIMITS,
        max_caption_chars: int = MAX_CAPTION_CHARS,
        pixels: Pixels = "exact",
    ):
        """Start no process yet; with 0 workers the pictures are decoded in this process."""
        self.workers, self.max_caption_chars = workers, max_caption_chars
        self.settings = (size, crop, limits, pixels)
        self.pool: ProcessPoolExecutor | None = None
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        if self.workers:
            context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks as they stand
            self.pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self.settings[-1],))
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, shards: Iterable[tuple[int, Iterable[Sample]]]) -> Iterator[tuple[int, Iterator[Decoded]]]:
        """Decode numbered shards, one for one and in order; the samples of one are taken before the next is asked for.

        The samples of a shard that cannot be read end with UnreadableShard; the next shard may still be asked for.

        Raises:
            ValueError: a worker was killed; the samples it may have died of are named.
        """
        for number, items in groupby(self._ahead(self._read(shards)), key=attrgetter("shard")):
            yield number, _samples(items)

    def _read(self, shards: Iterable[tuple[int, Iterable[Sample]]]) -> Iterator[tuple[Decoded, bytes | None]]:
        """Each sample with the file that is still to be decoded, and the end of each shard."""
        for number, samples in shards:
            end = Decoded(shard=number, ends=True)
            try:
                for sample in samples:
                    item = self._check(number, sample)
                    yield item, sample.image if item.reason is None else None
            except UnreadableShard as error:
                end.error = error
            yield end, None

    def _check(self, number: int, sample: Sample) -> Decoded:
        """The caption comes first: it is cheap, and without it the picture is not decoded."""
        item = Decoded(shard=number, key=sample.key, reason=sample.reason, done=sample.done)
        if item.reason is None:
            assert sample.image is not None and sample.caption is not None, "a sample has both or a reason"
            caption = clean_caption(sample.caption, self.max_caption_chars)
            if isinstance(caption, Reason):
                item.reason = caption
            else:
                item.caption = caption
        return item

    def _ahead(self, entries: Iterator[tuple[Decoded, bytes | None]]) -> Iterator[Decoded]:
        """The entries with their pictures; a thread reads on while the caller is busy or the source is slow."""
        arrivals: queue.Queue[tuple[list[Decoded], Result] | None] = queue.Queue(2 * self.workers + CHUNKS_AHEAD)
        room = _Room(self.stopped)

        def read() -> None:
            try:
                for chunk in _chunks(entries):
                    files = [file for _, file in chunk if file is not None]
                    size = sum(map(len, files))
                    room.take(size)
                    result = room.freed_by(self._start(files), size)
                    if not _put(arrivals, ([item for item, _ in chunk], result), self.stopped):
                        return
                _put(arrivals, None, self.stopped)
            except Exception as error:  # belongs to the caller, after what was read before it
                failed: Future[list[np.ndarray | Reason]] = Future()
                failed.set_exception(error)
                _put(arrivals, ([], failed.result), self.stopped)

        threading.Thread(target=read, daemon=True).start()  # daemon: a stuck download must not keep a run from ending
        while (chunk := arrivals.get()) is not None:
            try:
                yield from _finish(*chunk)
            except BrokenProcessPool as error:
                near = [chunk, *filter(None, list(arrivals.queue)[: 2 * self.workers])]
                raise _killed([item.key for items, _ in near for item in items if not item.ends]) from error

    def _start(self, files: list[bytes]) -> Result:
        if self.pool is None or not files:
            return lambda: prepare_many(files, *self.settings)
        packed, size = self.pool.submit(_prepare_packed, files, *self.settings), self.settings[0]
        return lambda: [
            picture if isinstance(picture, Reason) else np.frombuffer(picture, np.uint8).reshape(size, size, 3)
            for picture in packed.result()
        ]


def batches(items: Iterable[Decoded], drop: Callable[[str, Reason], None], size: int) -> Iterator[list[Decoded]]:
    """Good samples in batches of `size`, the last one shorter; `drop` takes key and reason of each of the others."""
    batch = []
    for item in items:
        if item.reason is not None:
            drop(item.key, item.reason)
            continue
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def pictures(batch: Iterable[Decoded]) -> list[np.ndarray]:
    """Those of a batch of good samples."""
    return [item.picture for item in batch if item.picture is not None]


def _chunks(entries: Iterable[tuple[Decoded, bytes | None]]) -> Iterator[list[tuple[Decoded, bytes | None]]]:
    """Entries in lists of `CHUNK`; the end of a shard does not wait for the next one."""
    chunk, size = [], 0
    for entry in entries:
        chunk.append(entry)
        size += len(entry[1] or b"")
        if len(chunk) == CHUNK or size >= CHUNK_BYTES or entry[0].ends:
            yield chunk
            chunk, size = [], 0


class _Room:
    """Memory for files that wait to be decoded."""

    def __init__(self, stopped: threading.Event) -> None:
        self.stopped, self.taken, self.changed = stopped, 0, threading.Condition()

    def take(self, size: int) -> None:
        """Wait for room; a chunk that has none even alone waits until it is alone."""
        with self.changed:
            while self.taken and self.taken + size > BYTES_AHEAD and not self.stopped.is_set():
                self.changed.wait(0.1)
            self.taken += size

    def freed_by(self, result: Result, size: int) -> Result:
        """The result, which gives the room back when it is asked for."""

        def finish() -> list[np.ndarray | Reason]:
            try:
                return result()
            finally:
                with self.changed:
                    self.taken -= size
                    self.changed.notify()

        return finish


def _put(arrivals: queue.Queue, item: object, stopped: threading.Event) -> bool:
    """Wait for room; false if nobody wants the item any more."""
    while not stopped.is_set():
        with suppress(queue.Full):
            arrivals.put(item, timeout=0.1)
            return True
    return False


def _killed(keys: list[str]) -> ValueError:
    place = f" at a picture between {keys[0]} and {keys[-1]}" if keys else ""
    return ValueError(
        f"a decoding worker was killed, perhaps for memory,{place}; finished parts are kept: run again with "
        "fewer --workers or a lower --max-pixels, or take that picture out"
    )


def _finish(items: list[Decoded], result: Result) -> Iterator[Decoded]:
    prepared = iter(result())
    for item in items:
        if item.reason is None and not item.ends:
            picture = next(prepared)
            if isinstance(picture, Reason):
                item.reason = picture
            else:
                item.picture = picture
        yield item


def _samples(items: Iterable[Decoded]) -> Iterator[Decoded]:
    for item in items:
        if item.error is not None:
            raise item.error
        if item.ends:
            return  # without asking for the next item, which another shard may be slow to give
        yield item


def _prepare_packed(files: list[bytes], *settings: Any) -> list[bytes | Reason]:
    """What a worker does: `prepare_many`, with pictures as bytes, which travel in half the time of arrays."""
    return [item if isinstance(item, Reason) else item.tobytes() for item in prepare_many(files, *settings)]


def _start_worker(pixels: Pixels) -> None:
    """Leave Ctrl-C to the main process, and end when it is gone, which a pool's workers do not by themselves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if pixels != "exact":
        import torch

        torch.set_num_threads(1)  # each core has a worker
