import csv
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from ar_t2i.sequence import sequence_ids, sequence_text
from ar_t2i.vocabulary import SPECIAL_TOKENS, Vocabulary, image_token

HOSTILE = [
    "",
    " two  spaces, a tab\tand a line\nbreak ",
    "caf\u00e9, \u732b, \U0001f426 and a\u0300",
    "a <|image:5|> bird <|pad|><|startofimage|> <|endofimage|>",
    "<|endoftext|>",
    "don't 'quote' \"this\" 3.14 #@!",
]


@pytest.fixture(scope="session")
def shipped():
    return Vocabulary.from_pretrained(Path(__file__).parents[1] / "tokenizer")


def test_blocks_of_the_shipped_vocabulary(shipped):
    assert shipped.codebook_size == 4096
    assert shipped.size == 9 + 4096 + len(shipped.text_ids)
    names = shipped.tokenizer.convert_ids_to_tokens(shipped.image_ids.tolist())
    assert names == [image_token(code) for code in range(4096)]
    assert (np.diff(shipped.image_ids) == 1).all()


def test_captions_come_back_exactly(shipped, vocabulary):
    for one in (shipped, vocabulary):
        assert [one.decode_caption(ids) for ids in one.encode_captions(HOSTILE)] == HOSTILE


def test_reference_captions_come_back_exactly(shipped, shared):
    with (shared / "data/captions/coco_captions.csv").open() as file:
        captions = [row["Prompt"] for row in csv.DictReader(file)]
    with (shared / "data/captions/PartiPrompts.tsv").open() as file:
        captions += [row["Prompt"] for row in csv.DictReader(file, delimiter="\t")]
    assert len(captions) == 31_632
    wrong = [
        text
        for text, ids in zip(captions, shipped.encode_captions(captions), strict=True)
        if shipped.decode_caption(ids) != text
    ]
    assert wrong == []


def test_a_caption_cannot_inject_a_special_token(shipped):
    special = {shipped.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS} | set(
        shipped.image_ids.tolist()
    )
    checked = 0
    for token in (*SPECIAL_TOKENS, *map(image_token, range(0, 4096, 37))):
        ids = shipped.encode_captions([f"a {token} bird"])[0]
        assert not special & set(ids) and set(ids) <= set(shipped.text_ids.tolist())
        written = shipped.tokenizer(sequence_text(f"a {token} bird", [7] * 32)).input_ids
        assert sum(id in special for id in written) == 34
        checked += 1
    assert checked > 100


def test_text_of_a_sequence_tokenizes_to_its_ids(shipped):
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "tokenizer")
    codes = np.random.default_rng(0).integers(0, 4096, 32)
    for caption in ("a red bird on a green tree", "two  fish", ""):
        ids = sequence_ids(shipped, shipped.encode_captions([caption])[0], codes)
        assert tokenizer(sequence_text(caption, codes)).input_ids == ids.tolist()


def test_codes_and_ids(vocabulary):
    codes = np.arange(4096).reshape(128, 32)
    assert (vocabulary.ids_to_codes(vocabulary.codes_to_ids(codes)) == codes).all()
    for wrong in (4096, -1):
        with pytest.raises(ValueError, match=f"code {wrong} is out of range: expected 0..4095"):
            vocabulary.codes_to_ids([3, wrong])
    with pytest.raises(ValueError, match="is no image token"):
        vocabulary.ids_to_codes([vocabulary.pad_id])


def test_bpe_dropout(vocabulary):
    rng = np.random.default_rng(0)
    captions = ["a red bird by the sea", "a purple flower at night", " odd  \u732b text"]
    plain = vocabulary.encode_captions(captions)
    assert [vocabulary.encode_caption_with_dropout(text, 0.0, rng) for text in captions] == plain
    seen = {tuple(vocabulary.encode_caption_with_dropout(captions[0], 0.3, rng)) for _ in range(50)}
    assert len(seen) > 10 and {vocabulary.decode_caption(ids) for ids in seen} == {captions[0]}
    first, second = (
        vocabulary.encode_caption_with_dropout(captions[1], 0.5, np.random.default_rng(3)) for _ in range(2)
    )
    assert first == second
    letters = vocabulary.encode_caption_with_dropout("bird", 1.0, rng)
    assert len(letters) == 4


def random_words(count: int):
    """Words enough for every merge that 30,000 ids have room for."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(3, 9))) for _ in range(60_000)]
    for _ in range(count):
        yield " ".join(rng.choices(words, k=12))


def test_a_large_corpus_fills_30000_ids():
    vocabulary = Vocabulary.train(random_words(30_000))
    assert vocabulary.size == 30_000 and len(vocabulary.text_ids) == 25_895


def test_training_reads_once_and_keeps_no_captions():
    def peak(count: int) -> int:
        tracemalloc.start()
        Vocabulary.train(f"a bird number {number % 100} on a tree" for number in range(count))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(100)
    assert peak(40_000) < 1.2 * peak(2_000) + 2**20


def test_wrong_vocabularies_are_named(vocabulary, vocabulary_folder, tmp_path):
    with pytest.raises(ValueError, match="no vocabulary at"):
        Vocabulary.from_pretrained(tmp_path / "none")
    rules = json.loads((vocabulary_folder / "tokenizer.json").read_text())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["content"] != "<|image:17|>"]
    number = rules["model"]["vocab"].pop("<|image:17|>")
    rules["model"]["vocab"]["something"] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "tokenizer_config.json").write_text((vocabulary_folder / "tokenizer_config.json").read_text())
    with pytest.raises(ValueError, match=r"lacks <\|image:17\|>"):
        Vocabulary.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no caption to train"):
        Vocabulary.train([])
    with pytest.raises(ValueError, match="size=4200: expected at least 4361"):
        Vocabulary.train(["a"], size=4200)


def test_fingerprint_tells_vocabularies_apart(vocabulary, vocabulary_folder):
    again = Vocabulary.from_pretrained(vocabulary_folder)
    again.encode_captions(["a bird"])
    again.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=5)
    assert again.fingerprint == vocabulary.fingerprint
    assert Vocabulary.train(["a bird", "a bird"]).fingerprint != vocabulary.fingerprint


def test_files_give_what_transformers_reads_from_them(shipped):
    folder = Path(__file__).parents[1] / "tokenizer"
    stock = Vocabulary(AutoTokenizer.from_pretrained(folder))
    assert shipped.fingerprint == stock.fingerprint and shipped.size == stock.size
    for name in ("image_ids", "text_ids"):
        np.testing.assert_array_equal(getattr(shipped, name), getattr(stock, name))
    captions = [*HOSTILE, "a red bird on a tree"]
    assert shipped.encode_captions(captions) == stock.encode_captions(captions)
    assert shipped.tokenizer.get_vocab() == stock.tokenizer.get_vocab()


def test_files_with_rules_of_their_own_are_read_by_transformers(vocabulary_folder, tmp_path):
    for path in vocabulary_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "additional_special_tokens": ["red"]}))
    vocabulary = Vocabulary.from_pretrained(tmp_path)
    red = vocabulary.tokenizer.convert_tokens_to_ids("red")
    assert red in vocabulary.tokenizer.all_special_ids and red not in vocabulary.text_ids
