"""Samples to squares of pixels in worker processes, in the samples' order.

The main process reads the shard and hands chunks of files to the workers; a bounded queue of chunks runs ahead of what
the caller takes, so that workers decode while the caller encodes.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np

from ar_t2i.data.captions import MAX_CAPTION_CHARS, clean_caption
from ar_t2i.data.images import DEFAULT_LIMITS, CropRule, ImageLimits, prepare_many
from ar_t2i.data.sample import Reason, Sample

CHUNK = 8
"""Files that travel to a worker together."""
CHUNKS_AHEAD = 32
"""Chunks that wait beside the workers' own: about 256 pictures, 50 MB."""


@dataclass(slots=True, kw_only=True)
class Decoded:
    """A sample ready to be encoded, or the reason why it is dropped."""

    key: str
    caption: str = ""
    picture: np.ndarray | None = None
    """(size, size, 3) uint8 RGB."""
    reason: Reason | None = None
    done: float = 0.0
    """Part of the shard that lies behind, 0 to 1."""


class Decoder:
    """A pool of workers; a context manager. Calling it turns samples into `Decoded` ones, one for one and in order."""

    def __init__(
        self,
        workers: int,
        size: int,
        crop: CropRule = "center",
        limits: ImageLimits = DEFAULT_LIMITS,
        max_caption_chars: int = MAX_CAPTION_CHARS,
    ):
        """Start no process yet; with 0 workers the pictures are decoded in this process."""
        self.workers, self.max_caption_chars = workers, max_caption_chars
        self.settings = (size, crop, limits)
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.workers:
            context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks as they stand
            self.pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Decoded]:
        """Decode a shard.

        Raises:
            ValueError: a worker was killed; the samples it may have died of are named.
        """
        waiting: deque[tuple[list[Decoded], Callable[[], list[np.ndarray | Reason]]]] = deque()
        samples = iter(samples)
        try:
            while chunk := list(islice(samples, CHUNK)):
                checked = [self._check(sample) for sample in chunk]
                good = [sample.image for sample, item in zip(chunk, checked, strict=True) if item.reason is None]
                waiting.append((checked, self._start([image for image in good if image is not None])))
                if len(waiting) > 2 * self.workers + CHUNKS_AHEAD * bool(self.workers):
                    yield from _finish(*waiting[0])
                    waiting.popleft()
            while waiting:
                yield from _finish(*waiting[0])
                waiting.popleft()
        except BrokenProcessPool as error:
            keys = [item.key for checked, _ in list(waiting)[: 2 * self.workers] for item in checked]
            raise ValueError(
                f"a decoding worker was killed, perhaps for memory, at a picture between {keys[0]} and {keys[-1]}; "
                "finished parts are kept: run again with fewer --workers or a lower --max-pixels, or take it out"
            ) from error

    def _check(self, sample: Sample) -> Decoded:
        """The caption comes first: it is cheap, and without it the picture is not decoded."""
        item = Decoded(key=sample.key, reason=sample.reason, done=sample.done)
        if item.reason is None:
            assert sample.image is not None and sample.caption is not None, "a sample has both or a reason"
            caption = clean_caption(sample.caption, self.max_caption_chars)
            if isinstance(caption, Reason):
                item.reason = caption
            else:
                item.caption = caption
        return item

    def _start(self, files: list[bytes]) -> Callable[[], list[np.ndarray | Reason]]:
        if self.pool is None or not files:
            return lambda: prepare_many(files, *self.settings)
        return self.pool.submit(prepare_many, files, *self.settings).result


def _finish(checked: list[Decoded], result: Callable[[], list[np.ndarray | Reason]]) -> Iterator[Decoded]:
    prepared = iter(result())
    for item in checked:
        if item.reason is None:
            picture = next(prepared)
            if isinstance(picture, Reason):
                item.reason = picture
            else:
                item.picture = picture
        yield item


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end when it is gone, which a pool's workers do not by themselves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
