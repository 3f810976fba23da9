"""Preprocessing: rows are right, finished work is kept whatever happens, and nothing that does not fit is mixed."""

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from ar_t2i.config import build
from ar_t2i.data import parts
from ar_t2i.data.decode import Decoder
from ar_t2i.data.encode import Encoder
from ar_t2i.data.images import prepare
from ar_t2i.data.preprocess import PreprocessConfig, preprocess, tokenize_shards
from ar_t2i.data.shards import expand_sources, iterate_samples
from ar_t2i.sequence import sequence_text

SIZE = 16


class MeanTokenizer(torch.nn.Module):
    """Codes are the means of 4x4 blocks of the red channel: a picture's codes can be told by eye."""

    num_codes, codebook_size, image_size = 16, 256, SIZE

    def __init__(self, name="means", wrong=0, rough=0.0):
        super().__init__()
        self.fingerprint, self.wrong, self.rough = hashlib.sha256(name.encode()).hexdigest(), wrong, rough

    def encode(self, pixels):
        codes = torch.nn.functional.avg_pool2d(pixels[:, 0] * 255, 4).flatten(1).round().long()
        if self.rough and torch.is_autocast_enabled("cpu"):
            codes[:, : round(self.rough * 16)] += 1
        return codes + self.wrong


def picture(number: int, kind: str = "PNG") -> bytes:
    red = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(red).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, numbers, bad: dict[int, dict[str, bytes]] | None = None) -> Path:
    """A tar of pictures; `bad` replaces the files of some numbers."""
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            files = (bad or {}).get(number, {"png": picture(number), "txt": f" caption {number}\n".encode()})
            for kind, data in files.items():
                info = tarfile.TarInfo(f"{number:05d}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def source(tmp_path):
    """Four tars of 30 pictures: their pattern."""
    (tmp_path / "in").mkdir()
    for shard in range(4):
        write_tar(tmp_path / "in" / f"a-{shard}.tar", range(shard * 30, shard * 30 + 30))
    return str(tmp_path / "in" / "a-{0..3}.tar")


@pytest.fixture
def run(tmp_path, source, vocabulary):
    """Preprocess with the tokenizer above, by default in this process; returns the report."""

    def run(*sources, tokenizer=None, **options):
        settings = {"out": str(tmp_path / "out"), "workers": 0, "batch_size": 8, "dtype": "float32", "min_edge": 2}
        config = PreprocessConfig(sources=sources or (source,), image_tokenizer="", **{**settings, **options})
        return tokenize_shards(expand_sources(config.sources), tokenizer or MeanTokenizer(), vocabulary, config)

    return run


def rows_of(out: Path, split: str = "train") -> list[dict]:
    paths = sorted((out / "data").glob(f"{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def records_of(out: Path, split: str = "train") -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out / "manifest").glob(f"{split}-*.json"))]


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def stamps_of(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out / "data").iterdir()}


def test_rows_are_the_pictures_and_captions_in_order(run, tmp_path, vocabulary):
    report = run()
    rows = rows_of(tmp_path / "out")
    for number, row in enumerate(rows):
        square = prepare(picture(number), SIZE).astype(float)
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


def test_a_caption_cannot_inject_tokens(run, tmp_path, vocabulary):
    caption = "a <|startofimage|><|image:7|> trick"
    path = write_tar(tmp_path / "t.tar", [0], {0: {"png": picture(0), "txt": caption.encode()}})
    run(str(path))
    (row,) = rows_of(tmp_path / "out")
    assert row["text"] == caption
    image_ids = set(vocabulary.image_ids.tolist())
    assert not set(row["text_tokens"]) & (image_ids | set(vocabulary.tokenizer.all_special_ids))
    ids = vocabulary.tokenizer(row["data"])["input_ids"]
    assert sum(i in image_ids for i in ids) == MeanTokenizer.num_codes
    assert ids.count(vocabulary.start_of_image_id) == 1


def test_load_dataset_just_works_with_two_splits(run, tmp_path, source):
    from datasets import load_dataset

    run()
    run(str(write_tar(tmp_path / "v.tar", range(900, 907))), split="validation")
    loaded = load_dataset(str(tmp_path / "out"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 120, "validation": 7}
    assert loaded["train"][77]["__key__"] == "00077" and loaded["validation"][0]["text"] == "caption 900"
    assert loaded["train"].column_names == ["__key__", "image_tokens", "text_tokens", "text", "data"]


def test_load_dataset_sees_every_change(run, tmp_path, source):
    from datasets import load_dataset

    run(str(tmp_path / "in" / "a-{0,1}.tar"))
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 60
    run()
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 120
    write_tar(tmp_path / "in" / "a-2.tar", range(500, 530))
    run()
    assert load_dataset(str(tmp_path / "out"), split="train")[60]["text"] == "caption 500"


def test_a_part_without_rows_still_loads(run, tmp_path, source):
    from datasets import load_dataset

    (tmp_path / "in" / "a-1.tar").write_bytes(b"<html>404</html>" * 1000)
    report = run()
    assert report.kept == 90 and report.dropped == {"damaged-tar": 1}
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 90


def hostile_files() -> dict[int, dict[str, bytes]]:
    text = b"a caption"
    return {
        1: {"png": b"", "txt": text},
        2: {"png": b"no picture", "txt": text},
        3: {"png": picture(3)[:100], "txt": text},
        4: {"png": picture(4)},
        5: {"txt": text},
        6: {"png": picture(6), "txt": b" \n"},
        7: {"png": picture(7), "txt": b"caf\xe9"},
        8: {"png": picture(8), "txt": b"a\0b"},
        9: {"png": picture(9), "txt": b"x" * 51},
        10: {"png": picture(10), "txt": b"x" * 52},
    }


EXPECTED_DROPS = {
    "caption-too-long": 2, "image-empty": 1, "not-an-image": 1, "image-broken": 1, "no-caption": 1, "no-image": 1,
    "caption-empty": 1, "caption-not-utf8": 1, "caption-has-nul": 1,
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_is_dropped_is_counted(run, tmp_path, workers):
    path = write_tar(tmp_path / "t.tar", range(30), hostile_files())
    report = run(str(path), workers=workers, max_caption_chars=50)
    (record,) = records_of(tmp_path / "out")
    assert report.dropped == record["dropped"] == EXPECTED_DROPS and report.kept == record["kept"] == 20
    assert record["examples"]["caption-too-long"] == ["00009", "00010"] and record["examples"]["no-image"] == ["00005"]
    assert [row["__key__"] for row in rows_of(tmp_path / "out")] == [f"{i:05d}" for i in (0, *range(11, 30))]
    seen = sum(1 for shard in expand_sources([str(path)]) for _ in iterate_samples(shard))
    assert record["kept"] + sum(record["dropped"].values()) == seen == 30


def test_a_file_that_goes_away_is_counted(tmp_path, vocabulary):
    folder = tmp_path / "pets"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text("pet")
    shards = expand_sources([str(folder)])
    (folder / "1.png").unlink()
    out = str(tmp_path / "out")
    config = PreprocessConfig(sources=("",), out=out, image_tokenizer="", workers=0, min_edge=2, dtype="float32")
    report = tokenize_shards(shards, MeanTokenizer(), vocabulary, config)
    assert report.kept == 2 and report.dropped == {"missing-file": 1}


def test_examples_of_drops_are_few(run, tmp_path):
    run(str(write_tar(tmp_path / "t.tar", range(50), {i: {"png": b"", "txt": b"x"} for i in range(50)})))
    (record,) = records_of(tmp_path / "out")
    assert record["dropped"] == {"image-empty": 50} and len(record["examples"]["image-empty"]) == 20


def test_workers_and_batches_do_not_change_a_byte(run, tmp_path, source):
    write_tar(tmp_path / "in" / "a-1.tar", range(30, 60), {i + 30: files for i, files in hostile_files().items()})
    outcomes = []
    for workers, batch_size in ((0, 64), (0, 7), (1, 64), (3, 1)):
        out = tmp_path / f"out-{workers}-{batch_size}"
        run(out=str(out), workers=workers, batch_size=batch_size)
        outcomes.append({name: data for name, data in files_of(out).items() if name.endswith((".parquet", ".json"))})
    assert len(outcomes[0]) == 9 and all(outcome == outcomes[0] for outcome in outcomes[1:])


def test_rows_beyond_a_row_group_stay_in_order(run, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_GROUP", 10)
    run(batch_size=7)
    assert [row["__key__"] for row in rows_of(tmp_path / "out")] == [f"{i:05d}" for i in range(120)]
    assert pq.ParquetFile(next((tmp_path / "out" / "data").iterdir())).num_row_groups == 3


def test_a_second_run_changes_nothing(run, tmp_path):
    run()
    before, contents = stamps_of(tmp_path / "out"), files_of(tmp_path / "out")
    report = run()
    assert stamps_of(tmp_path / "out") == before and files_of(tmp_path / "out") == contents
    assert report.kept == 120 and report.new_parts == 0 and report.parts == 4


@pytest.mark.parametrize("damage", ["byte", "size", "part", "record", "broken record"])
def test_only_a_damaged_part_is_redone(run, tmp_path, damage):
    run()
    out = tmp_path / "out"
    whole, before = files_of(out), stamps_of(out)
    part, record = out / "data" / "train-00002-of-00004.parquet", out / "manifest" / "train-00002-of-00004.json"
    data = part.read_bytes()
    {
        "byte": lambda: part.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:]),
        "size": lambda: part.write_bytes(data[:-1]),
        "part": part.unlink,
        "record": record.unlink,
        "broken record": lambda: record.write_text("{"),
    }[damage]()
    assert run().new_parts == 1
    assert files_of(out) == whole
    changed = {name for name, stamp in stamps_of(out).items() if stamp != before[name]}
    assert changed == {part.name}


def test_a_changed_source_is_redone(run, tmp_path, source, capsys):
    run()
    write_tar(tmp_path / "in" / "a-2.tar", range(500, 530))
    assert run().new_parts == 1 and "1 its source changed" in capsys.readouterr().out
    assert rows_of(tmp_path / "out")[60]["__key__"] == "00500"


def test_what_a_killed_run_left_is_cleared(run, tmp_path, source):
    run(str(tmp_path / "in" / "a-{0,1}.tar"))
    data = tmp_path / "out" / "data"
    (data / ".train-00001-of-00002.parquet.tmp").write_bytes(b"half")
    (data / "train-00003-of-00004.parquet").write_bytes(b"without a record")
    (data / ".validation-00000-of-00001.parquet.tmp").write_bytes(b"of another split, perhaps at work")
    run()
    names = {path.name for path in data.iterdir()}
    assert names == {f"train-{i:05d}-of-00004.parquet" for i in range(4)} | {".validation-00000-of-00001.parquet.tmp"}
    assert len(rows_of(tmp_path / "out")) == 120


def test_a_copied_source_is_known_again(run, tmp_path, source, vocabulary):
    run()
    (tmp_path / "pets").mkdir()
    for number in range(5):
        (tmp_path / "pets" / f"{number}.png").write_bytes(picture(number))
        (tmp_path / "pets" / f"{number}.txt").write_text(f"pet {number}")
    run(str(tmp_path / "pets"), split="pets")
    before = stamps_of(tmp_path / "out")
    for path in (*(tmp_path / "in").iterdir(), *(tmp_path / "pets").iterdir()):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert run().new_parts == 0 and run(str(tmp_path / "pets"), split="pets").new_parts == 0
    assert stamps_of(tmp_path / "out") == before
    (tmp_path / "pets" / "3.txt").write_text("cat 3")
    assert run(str(tmp_path / "pets"), split="pets").new_parts == 1
    assert rows_of(tmp_path / "out", "pets")[3]["text"] == "cat 3"


def test_growth_renames_finished_parts(run, tmp_path, source):
    run(str(tmp_path / "in" / "a-{1,3}.tar"))
    out = tmp_path / "out"
    before = {name: stamp for name, stamp in stamps_of(out).items()}
    assert set(before) == {"train-00000-of-00002.parquet", "train-00001-of-00002.parquet"}
    report = run()
    after = stamps_of(out)
    assert report.new_parts == 2 and report.parts == 4
    assert after["train-00001-of-00004.parquet"] == before["train-00000-of-00002.parquet"]
    assert after["train-00003-of-00004.parquet"] == before["train-00001-of-00002.parquet"]
    assert len(after) == 4 and len(list((out / "manifest").glob("*.json"))) == 4
    assert [row["__key__"] for row in rows_of(out)] == [f"{i:05d}" for i in range(120)]
    with pytest.raises(ValueError, match="a-0.tar and 1 more"):
        run(str(tmp_path / "in" / "a-{1,3}.tar"))


def test_what_must_not_be_mixed_is_refused(run, tmp_path, source):
    run()
    before = files_of(tmp_path / "out")
    for options, name in (
        ({"tokenizer": MeanTokenizer("others")}, "image_tokenizer"),
        ({"crop": "adm"}, "crop"),
        ({"min_edge": 3}, "min_edge"),
    ):
        with pytest.raises(ValueError, match=f"was made with {name}=.*give another --out"):
            run(**options)
        with pytest.raises(ValueError, match=name):
            run(split="validation", **options)
    assert files_of(tmp_path / "out") == before


def test_another_vocabulary_is_refused(run, tmp_path, vocabulary, source):
    from ar_t2i.vocabulary import Vocabulary

    run()
    other = Vocabulary.train(["some other words", "entirely other words"] * 5)
    config = PreprocessConfig(sources=(source,), out=str(tmp_path / "out"), image_tokenizer="", workers=0, min_edge=2)
    with pytest.raises(ValueError, match="was made with vocabulary="):
        tokenize_shards(expand_sources([source]), MeanTokenizer(), other, config)
    small = Vocabulary.train(["words"], codebook_size=10)
    with pytest.raises(ValueError, match="256 codes, the vocabulary ids for only 10"):
        tokenize_shards(expand_sources([source]), MeanTokenizer(), small, config)


def test_a_folder_of_something_else_is_refused(run, tmp_path, tokenized):
    before = files_of(tokenized)
    with pytest.raises(ValueError, match="was not written by this command"):
        run(out=str(tokenized))
    assert {name: data for name, data in files_of(tokenized).items() if name in before} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot write out="):
        run(out=str(tmp_path / "file"))


def test_codes_beyond_the_codebook_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="expected 0 to 255"):
        run(tokenizer=MeanTokenizer(wrong=200))
    assert not list((tmp_path / "out" / "data").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "my split"}, "split="), ({"split": "a/b"}, "split="), ({"batch_size": 0}, "batch_size=0"),
     ({"workers": -1}, "workers=-1"), ({"crop": "middle"}, "crop='middle'"), ({"max_pixels": 0}, "max_pixels=0")],
)  # fmt: skip
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(PreprocessConfig, {"sources": ["a.tar"], "out": "o", "image_tokenizer": "t", **options})


def test_the_card_keeps_what_people_write(run, tmp_path, source):
    run()
    card = tmp_path / "out" / "README.md"
    text = card.read_text()
    assert yaml.safe_load(text.split("---")[1])["configs"] == [
        {
            "config_name": "default",
            "description": yaml.safe_load(text.split("---")[1])["configs"][0]["description"],
            "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
        }
    ]
    edited = text.replace("tags:", "license: cc0-1.0\ntags:").replace("# Captioned", "# My captioned")
    card.write_text(edited + "The end.\n")
    run(str(write_tar(tmp_path / "v.tar", range(7))), split="validation")
    header, text = yaml.safe_load(card.read_text().split("---")[1]), card.read_text()
    assert header["license"] == "cc0-1.0" and "# My captioned" in text and text.endswith("The end.\n")
    assert [files["split"] for files in header["configs"][0]["data_files"]] == ["train", "validation"]
    assert "| train | 120 | 0 | 4 |" in text and "| validation | 7 | 0 | 1 |" in text


def test_ranks_share_the_shards(run, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    run(out=str(whole))
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert run().new_parts == (2 if rank == 0 else 1)
    assert files_of(tmp_path / "out") == files_of(whole)


class Crash(BaseException):
    """Stands for a power cut: nothing catches it."""


def test_a_crash_at_any_write_is_made_good(run, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    run(out=str(whole))
    expected, crashes = files_of(whole), 0
    for last in itertools.count():
        calls = itertools.count()
        out = tmp_path / f"out-{last}"

        def crashing(function, calls=calls, last=last):
            def call(*arguments, **options):
                if next(calls) == last:
                    raise Crash
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crashing(os.replace))
            patch.setattr(os, "fsync", crashing(os.fsync))
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # a power cut cleans nothing up
            try:
                run(out=str(out))
                break
            except Crash:
                crashes += 1
        run(out=str(out))
        found = {name: data for name, data in files_of(out).items() if not Path(name).name.startswith(".")}
        assert found == {name: data for name, data in expected.items() if not Path(name).name.startswith(".")}
        assert not list((out / "data").glob(".*"))
    assert crashes > 20


def test_an_unreadable_shard_stops_nothing_else(run, tmp_path, source, capsys):
    sources = (source, f"pipe:cat {tmp_path}/in/b.tar 2>/dev/null")
    with pytest.raises(ValueError, match="1 of 5 shards have no part yet.*run the same command again"):
        run(*sources)
    assert len(rows_of(tmp_path / "out")) == 120 and "120 kept" in capsys.readouterr().out
    write_tar(tmp_path / "in" / "b.tar", range(200, 210))
    assert run(*sources).new_parts == 1 and len(rows_of(tmp_path / "out")) == 130


def test_two_runs_at_once_are_refused(run, tmp_path, source, vocabulary):
    from ar_t2i.data.manifest import TokenizedFolder

    run()
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    folder = TokenizedFolder(tmp_path / "out", "train", expand_sources([source]), facts, facts.pop("versions"))
    with folder.claim(0, 1), pytest.raises(ValueError, match="another run writes the split 'train'"):
        run()
    run()


def test_a_killed_worker_is_told(source):
    shard = expand_sources([source])[0]
    with Decoder(1, SIZE) as decode:
        def samples():
            for number, sample in enumerate(itertools.islice(itertools.cycle(iterate_samples(shard)), 4000)):
                if number == 2000:
                    for child in multiprocessing.active_children():
                        os.kill(child.pid, signal.SIGKILL)
                yield sample

        with pytest.raises(ValueError, match="a decoding worker was killed.* between 000"):
            for _, decoded in decode([(0, samples())]):
                list(decoded)


COMMAND = "import sys; from ar_t2i.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def command(image_tokenizer_folder, vocabulary_folder, tmp_path):
    """Start `ar-t2i preprocess` as a process of its own, in its own group."""
    started = []

    def start(*sources, out="out"):
        log = open(tmp_path / f"{out}.log", "a")  # no pipe: it would stay open as long as any child lives
        options = ["--image-tokenizer", image_tokenizer_folder, "--vocabulary", vocabulary_folder, "--workers", "1"]
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "preprocess", *sources, "--out", tmp_path / out, *map(str, options)],
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        log.close()
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_run_struck_in_the_middle_goes_on_later(command, tmp_path, source, blow):
    last = tmp_path / "in" / "a-3.tar"
    halting = f"pipe:head -c 20000 {last}; sleep 60; tail -c +20001 {last}"  # the process is struck inside this shard
    first = [str(tmp_path / "in" / f"a-{i}.tar") for i in range(3)]
    process = command(*first, halting)
    wait_for(lambda: len(list((tmp_path / "out" / "data").glob("*.parquet"))) == 3)
    (os.kill if blow == signal.SIGKILL else os.killpg)(process.pid, blow)
    assert process.wait(timeout=30) == (-9 if blow == signal.SIGKILL else 130)
    assert "Traceback" not in (tmp_path / "out.log").read_text()
    left = ["pgrep", "-g", str(process.pid), "-f", "python"]  # no worker outlives the run
    wait_for(lambda: subprocess.run(left, capture_output=True).returncode == 1)
    before = stamps_of(tmp_path / "out")
    assert len(before) == 3
    finish, uninterrupted = command(*first, f"pipe:cat {last}"), command(*first, f"pipe:cat {last}", out="whole")
    for process in (finish, uninterrupted):
        assert process.wait(timeout=120) == 0, (tmp_path / "out.log").read_text()
    after = stamps_of(tmp_path / "out")
    assert len(after) == 4 and all(after[name] == stamp for name, stamp in before.items())
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole") and len(rows_of(tmp_path / "out")) == 120


def test_bfloat16_must_give_the_same_codes(monkeypatch, capsys):
    monkeypatch.setattr("ar_t2i.data.encode.has_fast_bf16", lambda device: True)
    pictures = [prepare(picture(number), SIZE) for number in range(4)]
    for rough, dtype, told in ((0.0, "bfloat16", "100.0%"), (1 / 16, "float32", "93.8%")):
        encode = Encoder(MeanTokenizer(rough=rough), "cpu")
        assert encode.dtype == "auto"
        exact = Encoder(MeanTokenizer(), "cpu", "float32")(pictures)
        assert (encode(pictures) == exact).all() and encode.arithmetic == f"cpu {dtype}"
        assert told in capsys.readouterr().out
    assert Encoder(MeanTokenizer(), "cpu", used={"cpu float32", "cuda bfloat16"}).dtype == "float32"
    assert Encoder(MeanTokenizer(), "cpu", used={"cpu bfloat16"}).dtype == "bfloat16"
    monkeypatch.setattr("ar_t2i.data.encode.has_fast_bf16", lambda device: False)
    assert Encoder(MeanTokenizer(), "cpu").dtype == "float32"


def test_the_whole_command_on_folders(tmp_path, image_tokenizer_folder, vocabulary_folder, image_tokenizer):
    folder = tmp_path / "pets"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"pet {number}")
    config = PreprocessConfig(
        sources=(str(folder),), out=str(tmp_path / "out"), image_tokenizer=str(image_tokenizer_folder),
        vocabulary=str(vocabulary_folder), workers=0, dtype="float32",
    )  # fmt: skip
    assert preprocess(config).kept == 5
    rows = rows_of(tmp_path / "out")
    squares = np.stack([prepare(picture(number), image_tokenizer.image_size) for number in range(5)])
    with torch.inference_mode():
        codes = image_tokenizer.encode(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255)
    assert [row["image_tokens"] for row in rows] == codes.tolist()
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
