"""Training on a dataset that is read from the Hub as it is needed."""

import pickle

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ar_t2i.data import streamed
from ar_t2i.data.batching import IGNORED, BatchStream
from ar_t2i.data.dataset import TokenizedDataset, load_rows
from ar_t2i.data.streamed import StreamedDataset

OPTIONS = {"max_caption_length": 12, "num_codes": 32, "seed": 5}


@pytest.fixture
def grouped(tokenized, tmp_path):
    """The training split in two files of row groups of 20."""
    table = pq.read_table(tokenized / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "grouped" / "data").mkdir(parents=True)
    for number in range(2):
        part = table.slice(number * 96, 96)
        pq.write_table(part, tmp_path / "grouped" / "data" / f"train-0000{number}-of-00002.parquet", row_group_size=20)
    return tmp_path / "grouped"


@pytest.mark.parametrize(
    "dropouts", [{}, {"caption_dropout": 0.4}, {"bpe_dropout": 0.3}, {"caption_dropout": 0.2, "bpe_dropout": 0.3}]
)  # noqa: E501
def test_rows_are_those_of_a_stored_dataset(grouped, vocabulary, dropouts):
    rows = StreamedDataset(str(grouped), "train", vocabulary, **OPTIONS, **dropouts)
    stored = TokenizedDataset(load_rows(grouped, "train"), vocabulary, **OPTIONS, **dropouts)
    assert len(rows) == len(stored) == 192
    for epoch in range(2):
        for index in range(192):
            np.testing.assert_array_equal(rows.sequence(index, epoch), stored.sequence(index, epoch))
    assert 5 < rows.code_entropy() < np.log(4096)


def test_an_epoch_has_each_row_once_and_reads_few_groups_at_a_time(grouped, vocabulary, monkeypatch):
    monkeypatch.setattr(streamed, "WINDOW_ROWS", 40)
    rows = StreamedDataset(str(grouped), "train", vocabulary, **OPTIONS)
    order, other = (rows.shuffled(np.arange(192), (0, epoch)) for epoch in range(2))
    assert sorted(order) == sorted(other) == list(range(192)) and not np.array_equal(order, other)
    some = np.array([191, 3, 40, 41, 3])
    np.testing.assert_array_equal(rows.shuffled(some, (0, 0)), order[some])
    groups = np.searchsorted(rows.starts, order, side="right") - 1
    assert len(set(groups[:40].tolist())) <= 4, "two windows of two or three groups at most"
    assert (np.diff(order) == 1).mean() < 0.2, "rows of a window are shuffled"
    read = []
    monkeypatch.setattr(
        StreamedDataset,
        "_read",
        lambda self, group, start, own=StreamedDataset._read: read.append(group) or own(self, group, start),
    )  # noqa: E501
    for row in order.tolist():
        rows.sequence(row)
    assert len(read) == len(rows.groups) == 10, "each group is read once"
    assert sum(len(texts) for _, texts in rows._held.values()) <= 80
    copy = pickle.loads(pickle.dumps(rows))
    assert not copy._held and not copy._files and copy.sequence(3).tolist() == rows.sequence(3).tolist()


def test_batches_of_all_processes_together_are_the_epoch(grouped, vocabulary):
    rows = StreamedDataset(str(grouped), "train", vocabulary, **OPTIONS)
    streams = [BatchStream(rows, 8, 1, rank, 2, seed=3) for rank in range(2)]
    seen = [tuple(ids[-33:-1]) for stream in streams for batch in stream.read(0, 12) for ids in real(batch)]
    assert len(set(seen)) == len(seen) == 192


def real(batch) -> list[list[int]]:
    """The sequences of a batch without padding."""
    lengths = (batch["labels"] != IGNORED).sum(1).tolist()
    return [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)]


def test_a_run_by_id_streams_and_goes_on_exactly(hub, tokenized, train_run, tmp_path):
    datasets.load_dataset(str(tokenized)).push_to_hub("tester/tokens")
    data = {"dataset": "tester/tokens", "streaming": True}
    rule = hub.fail(method="GET", path="resolve/.*train.*parquet", status=503, nth=2)
    whole = train_run(data=data, output=str(tmp_path / "whole"))
    assert rule.hits == 1
    assert not (whole / "bundle" / "words.txt").exists()
    half = train_run(data=data, output=str(tmp_path / "half"), loop={"keep_checkpoints": 9})
    for path in (half / "checkpoints" / "step-000008").iterdir():
        path.unlink()
    (half / "checkpoints" / "step-000008").rmdir()
    train_run(data=data, output=str(half), resume="auto", loop={"keep_checkpoints": 9})
    weights = [load_file(output / "bundle" / "model.safetensors") for output in (whole, half)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_what_cannot_be_streamed_is_told(hub, tokenized, train_run):
    with pytest.raises(ValueError, match="cannot find the dataset 'tester/nothing'"):
        train_run(data={"dataset": "tester/nothing", "streaming": True})
    with pytest.raises(ValueError, match="has no split 'tain'; it has train, validation"):
        train_run(data={"dataset": str(tokenized), "streaming": True, "train_split": "tain"})
    with pytest.raises(ValueError, match="data.limit=5 with data.streaming"):
        train_run(data={"dataset": str(tokenized), "streaming": True, "limit": 5})
