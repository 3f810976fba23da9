"""Which rows stand in which step, as a pure function of seed and position, and how a batch is laid out.

    stream   all rows of epoch 0 in a seeded order, then those of epoch 1, ...; step k takes rows k G .. (k + 1) G - 1
    pool     the rows of `POOL` steps, sorted by length and cut into these steps again, which are then shuffled
    step     G rows of like length, cut into micro-batches, dealt to the processes in turn

So rows of like length stand together and little is padding, and every row comes once an epoch. G, the rows of one
optimizer step over all processes, is all that matters for what stands in a step: a run can go on with another number
of processes. Nothing is kept between steps, so a resumed run goes on exactly where it stopped.

    input_ids   a  red  bird  SOI  c0 ... c31  EOI  pad  pad
    labels      a  red  bird  SOI  c0 ... c31  EOI  -100 -100
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from ar_t2i.data.dataset import TokenizedDataset
from ar_t2i.data.streamed import StreamedDataset
from ar_t2i.data.workers import fetch_ahead

IGNORED = -100
"""The label of a position without target, as in transformers."""
POOL = 32
"""Steps sorted by length together, less where an epoch is shorter: more leaves less padding, and less chance in what
stands together."""

Batch = dict[str, Tensor]


class BatchStream(torch.utils.data.Dataset):
    """The endless stream of micro-batches of one process; item j of this dataset is its j-th pool.

    Attributes:
        rows_per_step: G, over all processes.
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
            seed: of the order.
        """
        self.dataset, self.batch_size, self.accumulation = dataset, batch_size, accumulation
        self.rank, self.world, self.seed = rank, world, seed
        self.rows_per_step = batch_size * accumulation * world
        self.steps_per_pool = max(1, min(POOL, dataset.window // self.rows_per_step))

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions start .. stop - 1 of the stream: the rows and their epochs, (stop - start,) int64 each."""
        epochs, inside = np.divmod(np.arange(start, stop), len(self.dataset))
        rows = np.empty_like(inside)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            rows[chosen] = self.dataset.shuffled(inside[chosen], (self.seed, epoch))
        return rows, epochs

    def __getitem__(self, pool: int) -> list[Batch]:
        """The micro-batches of this process in pool `pool`, step after step."""
        size = self.steps_per_pool * self.rows_per_step
        rows, epochs = self.rows(pool * size, (pool + 1) * size)
        by_length = self.dataset.lengths_of(rows, epochs).argsort(kind="stable")
        steps = np.random.default_rng((self.seed, pool)).permutation(by_length.reshape(-1, self.rows_per_step))
        mine = steps.reshape(-1, self.world, self.batch_size)[:, self.rank]
        pad_id = self.dataset.vocabulary.pad_id
        return [collate(self.dataset.sequences(rows[places], epochs[places]), pad_id) for places in mine]

    def read(self, start: int, stop: int, workers: int = 0) -> Generator[Batch]:
        """Micro-batches start .. stop - 1 of this process, in order, fetched ahead by worker processes."""
        size = self.steps_per_pool * self.accumulation
        first, inside = divmod(start, size)
        pools = range(first, -(-stop // size))
        with closing(fetch_ahead(self, workers, sampler=pools, collate_fn=_as_arrays)) as fetched:
            for batch in islice(chain.from_iterable(fetched), inside, inside + stop - start):
                yield {name: torch.from_numpy(array) for name, array in batch.items()}


def _as_arrays(pool: Sequence[Batch]) -> list[dict[str, np.ndarray]]:
    """What a worker sends: each tensor would take an open file of both processes."""
    return [{name: tensor.numpy() for name, tensor in batch.items()} for batch in pool]


def collate(sequences: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Sequences to right-padded `input_ids` and `labels`, both (B, T) int64."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        labels[row, : len(sequence)] = sequence
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
