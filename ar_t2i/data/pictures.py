"""Pictures without captions, without end: what an image tokenizer trains on."""

import copy
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ar_t2i.data import scenes
from ar_t2i.data.images import prepare
from ar_t2i.data.sample import UnreadableShard
from ar_t2i.data.shards import Shard, expand_sources, iterate_samples
from ar_t2i.data.workers import fetch_ahead

SCENES = ("scenes",)
"""The data that stands for the embedded scenes, drawn afresh for every batch."""
HELD_OUT_ONE_IN = 20
"""Of the pictures in files, one in so many is never trained on; its key decides."""
_BUFFER = 1024


class PictureBatch(NamedTuple):
    """A batch, and what had to be dropped on the way to it."""

    pixels: Tensor
    """(B, S, S, 3) uint8."""
    dropped: dict[str, int]
    """Pictures that could not be read since the batch before of the same worker, by reason."""


class PictureStream(IterableDataset):
    """Endless batches of pictures from the scenes or from files, in an order that the seed decides."""

    def __init__(
        self,
        data: Sequence[str],
        *,
        batch_size: int,
        size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        """Find the sources.

        Args:
            data: `SCENES`, or sources as `ar_t2i.data.shards.expand_sources` takes them.
            batch_size: pictures in a batch.
            size: height and width, pixels.
            seed: of the scenes, or of the order of the files.
            start: batches to pass over; files start in a new order instead.
            rank: number of this process; processes take turns at the scenes, files are in another order in each.
            ranks: processes.

        Raises:
            ValueError: a source that matches nothing, or a size that scenes cannot be had in.
        """
        self.shards = None if tuple(data) == SCENES else expand_sources(data)
        if self.shards is None:
            check_scenes_size(size)
        self.batch_size, self.size, self.seed, self.start = batch_size, size, seed, start
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[PictureBatch]:
        """Batches of this worker."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if self.shards is None:
            return self._scenes(self.start + number, workers)
        return self._files(self.shards, np.random.default_rng((self.seed, self.start, self.rank * workers + number)))

    def _scenes(self, batch: int, step: int) -> Iterator[PictureBatch]:
        while True:
            first = (batch * self.ranks + self.rank) * self.batch_size
            pixels, _ = scenes.batch(self.seed, first, self.batch_size, "train")
            yield PictureBatch(torch.from_numpy(shrunk(pixels, self.size)), {})
            batch += step

    def _files(self, shards: Sequence[Shard], rng: np.random.Generator) -> Iterator[PictureBatch]:
        """Mix the pictures in a buffer; every worker goes through all files in an order of its own."""
        buffer: list[np.ndarray] = []
        dropped: Counter[str] = Counter()
        order = rng.permutation(len(shards))
        skip = _somewhere(shards[order[0]], rng)  # a short run would else see the beginnings of shards alone
        while True:
            ordered = [shards[i] for i in order]
            for picture in decoded(ordered, self.size, dropped, chosen=lambda key: not held_out(key), skip=skip):
                buffer.append(picture)
                if len(buffer) >= max(_BUFFER, self.batch_size):
                    yield self._draw(buffer, rng, dropped)
            if not buffer:  # nothing was ever drawn, so nothing of `dropped` was given away
                raise ValueError(f"no picture to train on in {len(shards)} shards; dropped: {dict(dropped) or 'none'}")
            # Fewer pictures than the buffer holds: one batch, with repetition if need be, and on with the next epoch.
            yield self._draw(buffer, rng, dropped)
            order, skip = rng.permutation(len(shards)), 0

    def _draw(self, buffer: list[np.ndarray], rng: np.random.Generator, dropped: Counter[str]) -> PictureBatch:
        pixels = []
        for _ in range(self.batch_size):
            chosen = int(rng.integers(len(buffer)))
            pixels.append(buffer[chosen])
            if len(buffer) > self.batch_size:
                buffer[chosen] = buffer[-1]
                buffer.pop()
        counts = dict(dropped)
        dropped.clear()
        return PictureBatch(torch.from_numpy(np.stack(pixels)), counts)


def picture_batches(stream: PictureStream, workers: int) -> Generator[PictureBatch]:
    """The stream's batches, made ready by `workers` processes, 0 for none."""
    return fetch_ahead(stream, workers, prefetch_factor=8 if workers else None)


def read_pictures(stream: PictureStream, stop: int, workers: int, segment: int) -> Generator[PictureBatch]:
    """Batches `stream.start` .. `stop` - 1 of a stream.

    A run that starts again at a multiple of `segment` gets what an uninterrupted one gets: scenes are a function of
    their number, and of files a new order starts at each multiple (0: never), a function of the seed and the start.
    """
    start = stream.start
    while start < stop:
        end = stop if stream.shards is None or not segment else min(stop, (start // segment + 1) * segment)
        part = copy.copy(stream)
        part.start = start
        with closing(picture_batches(part, workers)) as batches:
            yield from islice(batches, end - start)
        start = end


def unseen_pictures(data: Sequence[str], count: int, size: int, seed: int) -> Tensor:
    """Up to `count` pictures (N, S, S, 3) uint8 that a `PictureStream` over the same data never yields.

    Raises:
        ValueError: the files hold none.
    """
    if tuple(data) == SCENES:
        check_scenes_size(size)
        return torch.from_numpy(shrunk(scenes.batch(seed, 0, count, "validation")[0], size))
    dropped: Counter[str] = Counter()
    found = list(islice(decoded(expand_sources(data), size, dropped, chosen=held_out), count))
    if not found:
        raise ValueError(
            f"no picture to measure on in {', '.join(data)}: one in {HELD_OUT_ONE_IN} is held out, so give more; "
            f"dropped: {dict(dropped) or 'none'}"
        )
    return torch.from_numpy(np.stack(found))


def _somewhere(shard: Shard, rng: np.random.Generator) -> int:
    """The number of one of its samples, drawn by lot; 0 where it cannot be read."""
    try:
        count = sum(1 for _ in iterate_samples(shard, images=False, captions=False))
    except UnreadableShard:
        count = 0
    return int(rng.integers(max(count, 1)))


def decoded(
    shards: Sequence[Shard],
    size: int,
    dropped: Counter[str],
    *,
    chosen: Callable[[str], bool] = lambda key: True,
    skip: int = 0,
) -> Iterator[np.ndarray]:
    """Pictures (S, S, 3) uint8 of shards, in order; what cannot be read is counted by reason, whole shards too.

    Args:
        shards: from `expand_sources`.
        size: height and width, pixels.
        dropped: the counts; added to.
        chosen: whether a key's picture is wanted; the others are not decoded.
        skip: so many samples of the first shard come last.
    """
    parts = [(shard, 0, None) for shard in shards]
    if skip:
        parts = [(shards[0], skip, None), *parts[1:], (shards[0], 0, skip)]
    for shard, start, stop in parts:
        try:
            for sample in islice(iterate_samples(shard, captions=False), start, stop):
                if sample.image is not None and not chosen(sample.key):
                    continue
                picture = sample.reason if sample.image is None else prepare(sample.image, size)
                if isinstance(picture, np.ndarray):
                    yield picture
                else:
                    dropped[str(picture)] += 1
        except UnreadableShard as error:
            dropped["unreadable-shard"] += 1
            warnings.warn(f"{error}; going on with the other shards", stacklevel=2)


def held_out(key: str) -> bool:
    """Whether a picture in files is one that nothing trains on."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def check_scenes_size(size: int) -> None:
    """Raise ValueError for a size that scenes cannot be had in."""
    if size not in (scenes.SIZE, scenes.SIZE // 2, scenes.SIZE // 4):
        raise ValueError(
            f"image_size={size} with data=scenes: expected {scenes.SIZE}, the size they are drawn in, or its half or "
            "quarter"
        )


def shrunk(pictures_NSS3: np.ndarray, size: int) -> np.ndarray:
    """Pictures with sides of `size`, each pixel the mean of those it stands for."""
    factor = pictures_NSS3.shape[1] // size
    if factor == 1:
        return pictures_NSS3
    parts = pictures_NSS3.reshape(len(pictures_NSS3), size, factor, size, factor, 3)
    return parts.mean((2, 4), dtype=np.float32).round().astype(np.uint8)
