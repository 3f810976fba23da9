"""Which rows stand in which batch, as a pure function of seed and position, and how a batch is laid out.

Each epoch is a seeded permutation of the rows, dealt to the processes in turn. A process takes the rows of `POOL`
micro-batches at
a time, never of two epochs, builds their sequences, sorts them by length, cuts them into micro-batches and shuffles
these: so rows of
like length stand together and little is padding, dropout of captions and merges included. Every row comes at least
once an epoch; the last batches
are filled up from the epoch's start. Nothing is kept between steps, so a resumed run goes on exactly where it stopped.

    input_ids   a  red  bird  SOI  c0 ... c31  EOI  pad  pad
    labels      a  red  bird  SOI  c0 ... c31  EOI  -100 -100
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ar_t2i.data.dataset import TokenizedDataset
from ar_t2i.data.streamed import StreamedDataset

IGNORED = -100
"""The label of a position without target, as in transformers."""
POOL = 32
"""Micro-batches sorted by length together: more leaves less padding and less chance in what stands together."""

Batch = dict[str, Tensor]


class BatchStream(torch.utils.data.Dataset):
    """The endless stream of micro-batches of one process; item j of this dataset is its j-th pool.

    Attributes:
        steps_per_epoch: optimizer steps in which every row comes at least once.
    """

    def __init__(
        self,
        dataset: TokenizedDataset | StreamedDataset,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ):
        """Deal the rows.

        Args:
            dataset: the rows.
            batch_size: rows of one micro-batch.
            accumulation: micro-batches of one process in an optimizer step.
            rank: this process.
            world: number of processes.
            seed: of the permutations.
        """
        self.dataset, self.batch_size, self.rank, self.world, self.seed = dataset, batch_size, rank, world, seed
        self.steps_per_epoch = -(-len(dataset) // (batch_size * accumulation * world))
        self.batches_per_epoch = self.steps_per_epoch * accumulation
        self._epoch, self._rows = -1, np.empty((0, batch_size), dtype=np.int64)

    def rows(self, epoch: int) -> np.ndarray:
        """The rows that this process reads in an epoch, (batches_per_epoch, batch_size), before sorting by length."""
        if epoch != self._epoch:
            order = self.dataset.order(np.random.default_rng((self.seed, epoch)))
            order = np.resize(order, self.batches_per_epoch * self.world * self.batch_size)
            self._epoch, self._rows = epoch, order.reshape(-1, self.world, self.batch_size)[:, self.rank]
        return self._rows

    def __getitem__(self, pool: int) -> list[Batch]:
        """The micro-batches of pool `pool`: at most `POOL`, all of one epoch."""
        epoch, part = divmod(pool, self._pools_per_epoch)
        rows = self.rows(epoch)[part * POOL : (part + 1) * POOL]
        sequences = sorted((self.dataset.sequence(row, epoch) for row in rows.flatten().tolist()), key=len)
        order = np.random.default_rng((self.seed, pool, self.rank)).permutation(len(rows))
        size, pad_id = self.batch_size, self.dataset.vocabulary.pad_id
        return [collate(sequences[number * size : (number + 1) * size], pad_id) for number in order]

    def read(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """Micro-batches start .. stop - 1 of this process, in order, fetched ahead by worker processes."""
        epoch, inside = divmod(start, self.batches_per_epoch)
        first = epoch * self._pools_per_epoch + inside // POOL
        pools = range(first, -(-stop // self.batches_per_epoch) * self._pools_per_epoch)
        loader = torch.utils.data.DataLoader(self, batch_size=None, sampler=pools, num_workers=workers)
        return islice((batch for pool in loader for batch in pool), inside % POOL, inside % POOL + stop - start)

    @property
    def _pools_per_epoch(self) -> int:
        return -(-self.batches_per_epoch // POOL)


def collate(sequences: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Sequences to right-padded `input_ids` and `labels`, both (B, T) int64."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        labels[row, : len(sequence)] = sequence
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
