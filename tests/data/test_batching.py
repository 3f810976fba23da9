import csv

import datasets
import numpy as np
import pytest
import torch

from ar_t2i.data.batching import IGNORED, BatchStream, collate
from ar_t2i.data.dataset import TokenizedDataset, load_rows


@pytest.fixture
def dataset(tokenized, vocabulary):
    return TokenizedDataset(load_rows(tokenized, "train"), vocabulary, max_caption_length=64, caption_dropout=0.2)


def rows_of(batches, dataset):
    """Which rows stand in batches, found by their codes, which are all distinct."""
    known = {tuple(dataset.sequence(index)[-33:-1].tolist()): index for index in range(len(dataset))}
    found = []
    for batch in batches:
        lengths = (batch["labels"] != IGNORED).sum(1).tolist()
        for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True):
            found.append(known[tuple(ids[length - 33 : length - 1])])
    return found


def read_by_all(dataset, batch_size, accumulation, world, first, last) -> list[list[int]]:
    """The rows of optimizer steps first .. last - 1, all processes together."""
    streams = [BatchStream(dataset, batch_size, accumulation, rank, world, seed=3) for rank in range(world)]
    read = [list(stream.read(first * accumulation, last * accumulation)) for stream in streams]
    steps = []
    for step in range(last - first):
        parts = [part for batches in read for part in batches[step * accumulation : (step + 1) * accumulation]]
        steps.append(sorted(rows_of(parts, dataset)))
    return steps


@pytest.mark.parametrize(("batch_size", "accumulation", "world"), [(16, 1, 1), (7, 1, 1), (8, 2, 3), (64, 1, 2)])
def test_every_row_comes_once_an_epoch(dataset, batch_size, accumulation, world):
    size = batch_size * accumulation * world
    steps = 2 * len(dataset) // size
    seen = [row for rows in read_by_all(dataset, batch_size, accumulation, world, 0, steps) for row in rows]
    counts = np.bincount(seen, minlength=len(dataset))
    assert len(seen) == steps * size and counts.max() <= 2, "two epochs, of which the second may lack some"
    if 2 * len(dataset) % size == 0:
        assert counts.min() == 2


def test_a_step_holds_the_same_rows_however_they_are_dealt(dataset):
    """So a run can go on with another number of processes: no row is seen twice or missed within the epoch."""
    ways = {(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (2, 1, 4), (1, 1, 8)}
    whole = read_by_all(dataset, 8, 1, 1, 0, 60)
    assert all(read_by_all(dataset, *way, 0, 60) == whole for way in ways)
    changed = read_by_all(dataset, 8, 1, 1, 0, 7)
    changed += read_by_all(dataset, 4, 1, 2, 7, 15) + read_by_all(dataset, 4, 2, 1, 15, 24)
    assert sorted(row for rows in changed for row in rows) == list(range(192))


def test_any_position_can_be_read_alone(dataset):
    stream = BatchStream(dataset, 2, 2, seed=3)
    pool = stream.steps_per_pool * 2
    stop = 3 * pool + 5
    whole = list(stream.read(0, stop))
    for start in (1, pool - 1, pool, 2 * pool + 3, stop):
        part = list(BatchStream(dataset, 2, 2, seed=3).read(start, stop))
        assert len(part) == stop - start
        for mine, other in zip(part, whole[start:], strict=True):
            assert torch.equal(mine["input_ids"], other["input_ids"])


def test_workers_change_nothing(dataset):
    stream = BatchStream(dataset, 4)
    for mine, other in zip(stream.read(3, 40, workers=2), stream.read(3, 40), strict=True):
        assert torch.equal(mine["input_ids"], other["input_ids"])


def test_epochs_and_seeds_differ(dataset):
    rows, epochs = BatchStream(dataset, 16).rows(0, 2 * len(dataset))
    first, second = rows[:192].tolist(), rows[192:].tolist()
    assert sorted(first) == sorted(second) and first != second and epochs.tolist() == [0] * 192 + [1] * 192
    assert BatchStream(dataset, 16, seed=1).rows(0, 192)[0].tolist() != first


def test_lengths_are_those_of_the_sequences(dataset):
    for epoch in range(3):
        told = dataset.lengths_of(np.arange(192), np.full(192, epoch))
        assert told.tolist() == [len(dataset.sequence(row, epoch)) for row in range(192)]
        assert 0.1 < dataset.has_no_caption(np.arange(192), np.full(192, epoch)).mean() < 0.3


def test_layout_of_a_batch():
    batch = collate([np.array([5, 6, 7]), np.array([8])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]


@pytest.mark.parametrize(("bpe_dropout", "most"), [(0.0, 0.05), (0.1, 0.08)])
def test_little_is_padding_on_real_captions(shared, vocabulary, bpe_dropout, most):
    with (shared / "data/captions/coco_captions.csv").open() as file:
        captions = [row["Prompt"] for row in csv.DictReader(file)][:8000]
    rows = datasets.Dataset.from_dict({"text": captions, "image_tokens": [[0] * 32] * len(captions)})
    dataset = TokenizedDataset(rows, vocabulary, max_caption_length=96, caption_dropout=0.1, bpe_dropout=bpe_dropout)
    labels = [batch["labels"] for batch in BatchStream(dataset, 64).read(0, 64)]
    padding = 1 - sum(int((part != IGNORED).sum()) for part in labels) / sum(part.numel() for part in labels)
    assert padding <= most
