import csv

import datasets
import numpy as np
import pytest
import torch

from ar_t2i.data.batching import IGNORED, POOL, BatchStream, collate
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


@pytest.mark.parametrize(("batch_size", "accumulation", "world"), [(16, 1, 1), (7, 1, 1), (8, 2, 3), (64, 1, 2)])
def test_every_row_comes_each_epoch_on_some_process(dataset, batch_size, accumulation, world):
    streams = [BatchStream(dataset, batch_size, accumulation, rank, world) for rank in range(world)]
    count = streams[0].batches_per_epoch
    assert count % accumulation == 0 and count == streams[0].steps_per_epoch * accumulation
    for epoch in (0, 1):
        seen = [rows_of(stream.read(epoch * count, (epoch + 1) * count), dataset) for stream in streams]
        assert {len(rows) for rows in seen} == {count * batch_size}
        together = [row for rows in seen for row in rows]
        assert set(together) == set(range(len(dataset)))
        assert len(together) - len(dataset) < batch_size * accumulation * world


def test_any_position_can_be_read_alone(dataset):
    stream = BatchStream(dataset, 2, seed=3)
    stop = 2 * stream.batches_per_epoch + POOL + 5
    whole = list(stream.read(0, stop))
    for start in (1, POOL, stream.batches_per_epoch - 1, stream.batches_per_epoch + POOL + 3, stop):
        part = list(BatchStream(dataset, 2, seed=3).read(start, stop))
        assert len(part) == stop - start
        for mine, other in zip(part, whole[start:], strict=True):
            assert torch.equal(mine["input_ids"], other["input_ids"])


def test_workers_change_nothing(dataset):
    stream = BatchStream(dataset, 4)
    for mine, other in zip(stream.read(3, 40, workers=2), stream.read(3, 40), strict=True):
        assert torch.equal(mine["input_ids"], other["input_ids"])


def test_epochs_and_seeds_differ(dataset):
    stream = BatchStream(dataset, 16)
    first, second = stream.rows(0).tolist(), stream.rows(1).tolist()
    assert first != second and BatchStream(dataset, 16, seed=1).rows(0).tolist() != first


def test_layout_of_a_batch():
    batch = collate([np.array([5, 6, 7]), np.array([8])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]


@pytest.mark.parametrize("bpe_dropout", [0.0, 0.1])
def test_little_is_padding_on_real_captions(shared, vocabulary, bpe_dropout):
    with (shared / "data/captions/coco_captions.csv").open() as file:
        captions = [row["Prompt"] for row in csv.DictReader(file)][:8000]
    rows = datasets.Dataset.from_dict({"text": captions, "image_tokens": [[0] * 32] * len(captions)})
    dataset = TokenizedDataset(rows, vocabulary, max_caption_length=96, caption_dropout=0.1, bpe_dropout=bpe_dropout)
    labels = [batch["labels"] for batch in BatchStream(dataset, 64).read(0, 64)]
    padding = 1 - sum(int((part != IGNORED).sum()) for part in labels) / sum(part.numel() for part in labels)
    assert padding <= 0.05
