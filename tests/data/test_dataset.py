import datasets
import numpy as np
import pytest

from ar_t2i.data.dataset import TokenizedDataset, load_rows
from ar_t2i.sequence import sequence_ids
from ar_t2i.words import words_of


def make(rows, vocabulary, **options):
    return TokenizedDataset(rows, vocabulary, **{"max_caption_length": 64, **options})


def test_the_published_schema_loads_unchanged(tokenized, vocabulary):
    rows = load_rows(tokenized, "train")
    assert rows.column_names == ["__key__", "image_tokens", "text_tokens", "text", "data"]
    dataset = make(rows, vocabulary)
    for index in (0, 5, 191):
        ids = dataset.sequence(index)
        assert vocabulary.tokenizer.decode(ids) == rows[index]["data"]
        assert len(ids) == dataset.lengths[index]
    assert len(load_rows(tokenized, "validation")) == 64
    assert len(load_rows(tokenized / "data" / "train-00000-of-00001.parquet", "train")) == 192


def test_codes_above_2048_survive(vocabulary):
    """Codes read through float16 would come back as even numbers."""
    codes = [list(range(4064, 4096)), list(range(2049, 2081))]
    dataset = make(datasets.Dataset.from_dict({"text": ["a", "b"], "image_tokens": codes}), vocabulary)
    for index in (0, 1):
        assert vocabulary.ids_to_codes(dataset.sequence(index)[-33:-1]).tolist() == codes[index]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0] * 32, [5] * 31 + [4096]], "row 1 has the code 4096, expected 0..4095"),
        ([[0] * 32, [5] * 31 + [-1]], "row 1 has the code -1"),
        ([[0] * 32, [5] * 31], "row 1 has 31 codes, expected 32"),
    ],
)
def test_wrong_codes_are_refused(vocabulary, codes, message):
    with pytest.raises(ValueError, match=message):
        make(datasets.Dataset.from_dict({"text": ["a", "b"], "image_tokens": codes}), vocabulary)


def test_a_missing_caption_is_an_empty_one_and_missing_codes_are_refused(vocabulary):
    rows = datasets.Dataset.from_dict({"text": [None, "a"], "image_tokens": [[1] * 32] * 2})
    assert len(make(rows, vocabulary, bpe_dropout=0.1).sequence(0)) == 34
    with pytest.raises(ValueError, match="row 1 has 0 codes"):
        make(datasets.Dataset.from_dict({"text": ["a", "b"], "image_tokens": [[1] * 32, None]}), vocabulary)


def test_missing_columns_rows_and_splits(vocabulary, tokenized, tmp_path):
    with pytest.raises(ValueError, match=r"lacks the columns \['text'\]"):
        make(datasets.Dataset.from_dict({"image_tokens": [[0] * 32]}), vocabulary)
    with pytest.raises(ValueError, match="no rows"):
        make(datasets.Dataset.from_dict({"text": [], "image_tokens": []}), vocabulary)
    with pytest.raises(ValueError, match="cannot load the split 'test'"):
        load_rows(tokenized, "test")
    with pytest.raises(ValueError, match="cannot load the split 'train' of the dataset"):
        load_rows(tmp_path / "none", "train")


def test_dropouts_depend_on_seed_epoch_and_row_alone(tokenized, vocabulary):
    rows = load_rows(tokenized, "train")
    one, two = (make(rows, vocabulary, caption_dropout=0.3, bpe_dropout=0.2, seed=4) for _ in range(2))
    epochs = [[one.sequence(index, epoch).tolist() for index in range(50)] for epoch in (0, 1)]
    assert epochs[0] == [two.sequence(index, 0).tolist() for index in reversed(range(50))][::-1]
    assert epochs[0] != epochs[1]


def test_caption_dropout_is_wired(tokenized, vocabulary):
    """Guidance needs sequences without caption; DALLE-pytorch offered it and never trained it."""
    dataset = make(load_rows(tokenized, "train"), vocabulary, caption_dropout=0.1)
    bare = sum(len(dataset.sequence(index, epoch)) == 34 for index in range(192) for epoch in range(20))
    assert 0.08 < bare / (192 * 20) < 0.12
    assert all(len(make(load_rows(tokenized, "train"), vocabulary).sequence(index)) > 34 for index in range(192))


def test_long_captions_are_cut_and_counted(vocabulary):
    rows = datasets.Dataset.from_dict({"text": ["a red bird " * 20, "a bird"], "image_tokens": [[1] * 32] * 2})
    dataset = make(rows, vocabulary, max_caption_length=8)
    assert dataset.truncated == 1 and dataset.lengths.tolist()[0] == 8 + 34
    expected = sequence_ids(vocabulary, vocabulary.encode_captions(rows["text"][:])[0][:8], [1] * 32)
    assert dataset.sequence(0).tolist() == expected.tolist()


def test_words_of_all_captions(tokenized, vocabulary):
    dataset = make(load_rows(tokenized, "train"), vocabulary)
    assert dataset.words() == words_of(dataset.texts["text"][:]) and {"red", "bird", "night"} < dataset.words()
    assert make(load_rows(tokenized, "train", limit=1), vocabulary).words() == {"a", "red", "bird", "at", "night"}
    rows = datasets.Dataset.from_dict({"text": [None, "\u00c9t\u00e9!", ""], "image_tokens": [[1] * 32] * 3})
    assert make(rows, vocabulary).words() == {"\u00e9t\u00e9"}
    assert make(rows.select([0]), vocabulary).words() == frozenset()


def test_words_are_collected_once(tokenized, vocabulary, monkeypatch):
    first = make(load_rows(tokenized, "train"), vocabulary).words()
    monkeypatch.setattr("ar_t2i.data.dataset.words_of", None)
    assert make(load_rows(tokenized, "train"), vocabulary).words() == first


def test_entropy_of_the_codes(vocabulary):
    rows = datasets.Dataset.from_dict({"text": ["a"] * 4, "image_tokens": [[0] * 32, [1] * 32, [2] * 32, [3] * 32]})
    assert make(rows, vocabulary).code_entropy() == pytest.approx(np.log(4))
