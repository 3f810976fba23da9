"""Pictures without captions, without end: what an image tokenizer trains on."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ar_t2i.data import scenes
from ar_t2i.data.images import prepare
from ar_t2i.data.shards import Shard, expand_sources, iterate_samples

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
    """Pictures that could not be read since the start, by reason."""


class PictureStream(IterableDataset):
    """Endless batches of pictures from the scenes or from files, in an order that the seed decides."""

    def __init__(self, data: Sequence[str], *, batch_size: int, size: int, seed: int, start: int = 0):
        """Find the sources.

        Args:
            data: `SCENES`, or sources as `ar_t2i.data.shards.expand_sources` takes them.
            batch_size: pictures in a batch.
            size: height and width, pixels.
            seed: of the scenes, or of the order of the files.
            start: batches to pass over; files start in a new order instead.

        Raises:
            ValueError: a source that matches nothing, or scenes of another size than they are drawn in.
        """
        self.shards = None if tuple(data) == SCENES else expand_sources(data)
        if self.shards is None and size != scenes.SIZE:
            raise ValueError(f"image_size={size} with data=scenes: expected {scenes.SIZE}, the size they are drawn in")
        self.batch_size, self.size, self.seed, self.start = batch_size, size, seed, start

    def __iter__(self) -> Iterator[PictureBatch]:
        """Batches of this worker."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if self.shards is None:
            return self._scenes(self.start + number, workers)
        return self._files(self.shards, np.random.default_rng((self.seed, self.start, number)))

    def _scenes(self, batch: int, step: int) -> Iterator[PictureBatch]:
        while True:
            pixels, _ = scenes.batch(self.seed, batch * self.batch_size, self.batch_size, "train")
            yield PictureBatch(torch.from_numpy(pixels), {})
            batch += step

    def _files(self, shards: Sequence[Shard], rng: np.random.Generator) -> Iterator[PictureBatch]:
        """Mix the pictures in a buffer; every worker goes through all files in an order of its own."""
        buffer: list[np.ndarray] = []
        dropped: Counter[str] = Counter()
        while True:
            for picture in _read(
                [shards[i] for i in rng.permutation(len(shards))], self.size, dropped, held_out=False
            ):
                buffer.append(picture)
                if len(buffer) >= max(_BUFFER, self.batch_size):
                    yield self._draw(buffer, rng, dropped)
            if not buffer:
                raise ValueError(f"no picture to train on in {len(shards)} shards; dropped: {dict(dropped) or 'none'}")
            # Fewer pictures than the buffer holds: one batch, with repetition if need be, and on with the next epoch.
            yield self._draw(buffer, rng, dropped)

    def _draw(self, buffer: list[np.ndarray], rng: np.random.Generator, dropped: Counter[str]) -> PictureBatch:
        pixels = []
        for _ in range(self.batch_size):
            chosen = int(rng.integers(len(buffer)))
            pixels.append(buffer[chosen])
            if len(buffer) > self.batch_size:
                buffer[chosen] = buffer[-1]
                buffer.pop()
        return PictureBatch(torch.from_numpy(np.stack(pixels)), dict(dropped))


def picture_batches(stream: PictureStream, workers: int) -> Iterator[PictureBatch]:
    """The stream's batches, made ready by `workers` processes, 0 for none."""
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None))


def unseen_pictures(data: Sequence[str], count: int, size: int, seed: int) -> Tensor:
    """Up to `count` pictures (N, S, S, 3) uint8 that a `PictureStream` over the same data never yields.

    Raises:
        ValueError: the files hold none.
    """
    if tuple(data) == SCENES:
        return torch.from_numpy(scenes.batch(seed, 0, count, "validation")[0])
    dropped: Counter[str] = Counter()
    found = list(islice(_read(expand_sources(data), size, dropped, held_out=True), count))
    if not found:
        raise ValueError(
            f"no picture to measure on in {', '.join(data)}: one in {HELD_OUT_ONE_IN} is held out, so give more; "
            f"dropped: {dict(dropped) or 'none'}"
        )
    return torch.from_numpy(np.stack(found))


def _read(shards: Sequence[Shard], size: int, dropped: Counter[str], held_out: bool) -> Iterator[np.ndarray]:
    for shard in shards:
        for sample in iterate_samples(shard, captions=False):
            if sample.image is None:
                dropped[str(sample.reason)] += 1
            elif (zlib.crc32(sample.key.encode()) % HELD_OUT_ONE_IN == 0) == held_out:
                picture = prepare(sample.image, size)
                if isinstance(picture, np.ndarray):
                    yield picture
                else:
                    dropped[str(picture)] += 1
