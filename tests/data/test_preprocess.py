"""Preprocessing: rows are right, in order, and whatever is left out is counted."""

import itertools
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ar_t2i.config import build
from ar_t2i.data import parts
from ar_t2i.data.encode import Encoder
from ar_t2i.data.images import prepare
from ar_t2i.data.preprocess import PreprocessConfig, preprocess, tokenize_shards
from ar_t2i.data.shards import expand_sources, iterate_samples
from ar_t2i.sequence import sequence_text


def test_rows_are_the_pictures_and_captions_in_order(kit, run, tmp_path, vocabulary):
    report = run()
    rows = kit.rows_of(tmp_path / "out")
    for number, row in enumerate(rows):
        square = prepare(kit.picture(number), kit.SIZE).astype(float)
        codes = square[..., 0].reshape(4, 4, 4, 4).mean((1, 3)).round().astype(int).flatten()
        assert np.abs(np.array(row["image_tokens"]) - codes).max() <= 1  # halves may round either way
        assert row["__key__"] == f"{number:05d}" and row["text"] == f"caption {number}"
        assert row["text_tokens"] == vocabulary.encode_captions([row["text"]])[0]
        assert row["data"] == sequence_text(row["text"], row["image_tokens"])
    assert len(rows) == 120 == report.kept and report.dropped == {} and report.new_parts == report.parts == 4
    schema = pq.read_schema(next((tmp_path / "out" / "data").iterdir()))
    assert schema.names == ["__key__", "image_tokens", "text_tokens", "text", "data"]
    assert [str(field.type).replace("element", "item") for field in schema] == [
        "string", "list<item: int64>", "list<item: int64>", "string", "string",
    ]  # fmt: skip


def test_a_caption_cannot_inject_tokens(kit, run, tmp_path, vocabulary):
    caption = "a <|startofimage|><|image:7|> trick"
    path = kit.write_tar(tmp_path / "t.tar", [0], {0: {"png": kit.picture(0), "txt": caption.encode()}})
    run(str(path))
    (row,) = kit.rows_of(tmp_path / "out")
    assert row["text"] == caption
    image_ids = set(vocabulary.image_ids.tolist())
    assert not set(row["text_tokens"]) & (image_ids | set(vocabulary.tokenizer.all_special_ids))
    ids = vocabulary.tokenizer(row["data"])["input_ids"]
    assert sum(i in image_ids for i in ids) == kit.MeanTokenizer.num_codes
    assert ids.count(vocabulary.start_of_image_id) == 1


def test_load_dataset_just_works_with_two_splits(kit, run, tmp_path, source):
    from datasets import load_dataset

    run()
    run(str(kit.write_tar(tmp_path / "v.tar", range(900, 907))), split="validation")
    loaded = load_dataset(str(tmp_path / "out"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 120, "validation": 7}
    assert loaded["train"][77]["__key__"] == "00077" and loaded["validation"][0]["text"] == "caption 900"
    assert loaded["train"].column_names == ["__key__", "image_tokens", "text_tokens", "text", "data"]


def test_load_dataset_sees_every_change(kit, run, tmp_path, source):
    from datasets import load_dataset

    run(str(tmp_path / "in" / "a-{0,1}.tar"))
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 60
    run()
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 120
    kit.write_tar(tmp_path / "in" / "a-2.tar", range(500, 530))
    run()
    assert load_dataset(str(tmp_path / "out"), split="train")[60]["text"] == "caption 500"


def test_a_part_without_rows_still_loads(run, tmp_path, source):
    from datasets import load_dataset

    (tmp_path / "in" / "a-1.tar").write_bytes(b"<html>404</html>" * 1000)
    report = run()
    assert report.kept == 90 and report.dropped == {"damaged-tar": 1}
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 90


EXPECTED_DROPS = {
    "caption-too-long": 2, "image-empty": 1, "not-an-image": 1, "image-broken": 1, "no-caption": 1, "no-image": 1,
    "caption-empty": 1, "caption-not-utf8": 1, "caption-has-nul": 1,
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_is_dropped_is_counted(kit, run, tmp_path, workers):
    path = kit.write_tar(tmp_path / "t.tar", range(30), kit.hostile_files())
    report = run(str(path), workers=workers, max_caption_chars=50)
    (record,) = kit.records_of(tmp_path / "out")
    assert report.dropped == record["dropped"] == EXPECTED_DROPS and report.kept == record["kept"] == 20
    assert record["examples"]["caption-too-long"] == ["00009", "00010"] and record["examples"]["no-image"] == ["00005"]
    assert [row["__key__"] for row in kit.rows_of(tmp_path / "out")] == [f"{i:05d}" for i in (0, *range(11, 30))]
    seen = sum(1 for shard in expand_sources([str(path)]) for _ in iterate_samples(shard))
    assert record["kept"] + sum(record["dropped"].values()) == seen == 30


def test_a_file_that_goes_away_is_counted(kit, tmp_path, vocabulary):
    folder = tmp_path / "pets"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(kit.picture(number))
        (folder / f"{number}.txt").write_text("pet")
    shards = expand_sources([str(folder)])
    (folder / "1.png").unlink()
    out = str(tmp_path / "out")
    config = PreprocessConfig(sources=("",), out=out, image_tokenizer="", workers=0, min_edge=2, dtype="float32")
    report = tokenize_shards(shards, kit.MeanTokenizer(), vocabulary, config)
    assert report.kept == 2 and report.dropped == {"missing-file": 1}


def test_examples_of_drops_are_few(kit, run, tmp_path):
    run(str(kit.write_tar(tmp_path / "t.tar", range(50), {i: {"png": b"", "txt": b"x"} for i in range(50)})))
    (record,) = kit.records_of(tmp_path / "out")
    assert record["dropped"] == {"image-empty": 50} and len(record["examples"]["image-empty"]) == 20


def test_workers_and_batches_do_not_change_a_byte(kit, run, tmp_path, source, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_GROUP", 10)
    hostile = {number + 30: files for number, files in kit.hostile_files().items()}
    kit.write_tar(tmp_path / "in" / "a-1.tar", range(30, 60), hostile)
    outcomes = []
    for workers, batch_size in ((0, 64), (0, 7), (1, 64), (3, 1)):
        out = tmp_path / f"out-{workers}-{batch_size}"
        run(out=str(out), workers=workers, batch_size=batch_size)
        files = kit.files_of(out)
        outcomes.append({name: files[name] for name in files if name.endswith((".parquet", ".json"))})
    assert len(outcomes[0]) == 9 and all(outcome == outcomes[0] for outcome in outcomes[1:])


def test_rows_beyond_a_row_group_stay_in_order(kit, run, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_GROUP", 10)
    run(batch_size=7)
    assert [row["__key__"] for row in kit.rows_of(tmp_path / "out")] == [f"{i:05d}" for i in range(120)]
    assert pq.ParquetFile(next((tmp_path / "out" / "data").iterdir())).num_row_groups == 3


def test_codes_beyond_the_codebook_are_refused(kit, run, tmp_path):
    with pytest.raises(ValueError, match="expected 0 to 255"):
        run(tokenizer=kit.MeanTokenizer(wrong=200))
    assert not list((tmp_path / "out" / "data").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "my split"}, "split="), ({"split": "a/b"}, "split="), ({"batch_size": 0}, "batch_size=0"),
     ({"workers": -1}, "workers=-1"), ({"crop": "middle"}, "crop='middle'"), ({"max_pixels": 0}, "max_pixels=0")],
)  # fmt: skip
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(PreprocessConfig, {"sources": ["a.tar"], "out": "o", "image_tokenizer": "t", **options})


def test_bfloat16_must_give_the_same_codes(kit, monkeypatch, capsys):
    monkeypatch.setattr("ar_t2i.data.encode.has_fast_bf16", lambda device: True)
    pictures = [prepare(kit.picture(number), kit.SIZE) for number in range(4)]
    for rough, dtype, told in ((0.0, "bfloat16", "100.0%"), (1 / 16, "float32", "93.8%")):
        encode = Encoder(kit.MeanTokenizer(rough=rough), "cpu")
        assert encode.dtype == "auto"
        exact = Encoder(kit.MeanTokenizer(), "cpu", "float32")(pictures)
        assert (encode(pictures) == exact).all() and encode.arithmetic == f"cpu {dtype}"
        assert told in capsys.readouterr().out
    assert Encoder(kit.MeanTokenizer(), "cpu", used={"cpu float32", "cuda bfloat16"}).dtype == "float32"
    assert Encoder(kit.MeanTokenizer(), "cpu", used={"cpu bfloat16"}).dtype == "bfloat16"
    monkeypatch.setattr("ar_t2i.data.encode.has_fast_bf16", lambda device: False)
    assert Encoder(kit.MeanTokenizer(), "cpu").dtype == "float32"


def test_batches_that_begin_early_give_the_same_codes_in_order(kit):
    encode, begun = Encoder(kit.MeanTokenizer(), "cpu", "float32"), []
    pictures = [[prepare(kit.picture(3 * batch + number), kit.SIZE) for number in range(3)] for batch in range(4)]

    def batches():
        for number, batch in enumerate(pictures):
            begun.append(number)
            yield f"batch {number}", batch

    for number, (name, codes) in enumerate(encode.ahead(batches())):
        assert name == f"batch {number}" and (codes == encode(pictures[number])).all()
        assert begun == list(range(min(number + 2, 4)))
    assert number == 3 and not list(encode.ahead([]))


def test_the_whole_command_on_folders(kit, tmp_path, image_tokenizer_folder, vocabulary_folder, image_tokenizer):
    folder = tmp_path / "pets"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(kit.picture(number))
        (folder / f"{number}.txt").write_text(f"pet {number}")
    config = PreprocessConfig(
        sources=(str(folder),), out=str(tmp_path / "out"), image_tokenizer=str(image_tokenizer_folder),
        vocabulary=str(vocabulary_folder), workers=0, dtype="float32",
    )  # fmt: skip
    assert preprocess(config).kept == 5
    rows = kit.rows_of(tmp_path / "out")
    squares = np.stack([prepare(kit.picture(number), image_tokenizer.image_size) for number in range(5)])
    with torch.inference_mode():
        codes = image_tokenizer.encode(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255)
    # Entries of this codebook lie a thousandth apart: another order of sums can take the neighbour.
    assert np.mean(np.array([row["image_tokens"] for row in rows]) == codes.numpy()) > 0.95
    assert [row["text"] for row in rows] == [f"pet {number}" for number in range(5)]


@pytest.mark.slow
def test_eight_hundred_photographs(shared, tmp_path, vocabulary_folder):
    from datasets import load_dataset
    from safetensors.torch import load_file, save_file

    golden, titok = shared / "golden" / "titok", tmp_path / "titok"
    titok.mkdir()
    (titok / "config.json").write_bytes((golden / "titok_tiny_legacy.json").read_bytes())
    save_file(load_file(golden / "titok_tiny_legacy.safetensors"), titok / "model.safetensors")
    photos, reports = shared / "data" / "photos", []
    for split, pattern in (("train", "photos-train-{0000..0007}.tar"), ("validation", "photos-validation-0000.tar")):
        config = PreprocessConfig(
            sources=(str(photos / pattern),), out=str(tmp_path / "out"), image_tokenizer=str(titok),
            vocabulary=str(vocabulary_folder), split=split, workers=1,
        )  # fmt: skip
        reports.append(preprocess(config))
    assert [(report.kept, report.dropped, report.parts) for report in reports] == [(800, {}, 8), (100, {}, 1)]
    loaded = load_dataset(str(tmp_path / "out"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 800, "validation": 100}
    assert all(len(codes) == 32 for codes in loaded["train"]["image_tokens"])
    counts = Counter(itertools.chain.from_iterable(loaded["train"]["image_tokens"]))
    assert len(counts) > 100 and min(counts) >= 0 and max(counts) < 4096
