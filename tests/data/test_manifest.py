"""A tokenized dataset on disk: finished work is kept, and nothing that does not fit is mixed."""

import json
import os

import pytest
import yaml

from ar_t2i.data.preprocess import PreprocessConfig, tokenize_shards
from ar_t2i.data.shards import expand_sources


def test_a_second_run_changes_nothing(kit, run, tmp_path):
    run()
    before, contents = kit.stamps_of(tmp_path / "out"), kit.files_of(tmp_path / "out")
    report = run()
    assert kit.stamps_of(tmp_path / "out") == before and kit.files_of(tmp_path / "out") == contents
    assert report.kept == 120 and report.new_parts == 0 and report.parts == 4


@pytest.mark.parametrize("damage", ["byte", "size", "part", "record", "broken record"])
def test_only_a_damaged_part_is_redone(kit, run, tmp_path, damage):
    run()
    out = tmp_path / "out"
    whole, before = kit.files_of(out), kit.stamps_of(out)
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
    assert kit.files_of(out) == whole
    changed = {name for name, stamp in kit.stamps_of(out).items() if stamp != before[name]}
    assert changed == {part.name}


def test_a_changed_source_is_redone(kit, run, tmp_path, source, capsys):
    run()
    kit.write_tar(tmp_path / "in" / "a-2.tar", range(500, 530))
    assert run().new_parts == 1 and "1 its source changed" in capsys.readouterr().out
    assert kit.rows_of(tmp_path / "out")[60]["__key__"] == "00500"


def test_what_a_killed_run_left_is_cleared(kit, run, tmp_path, source):
    run(str(tmp_path / "in" / "a-{0,1}.tar"))
    data = tmp_path / "out" / "data"
    (data / ".train-00001-of-00002.parquet.tmp").write_bytes(b"half")
    (data / "train-00003-of-00004.parquet").write_bytes(b"without a record")
    (data / ".validation-00000-of-00001.parquet.tmp").write_bytes(b"of another split, perhaps at work")
    run()
    names = {path.name for path in data.iterdir()}
    assert names == {f"train-{i:05d}-of-00004.parquet" for i in range(4)} | {".validation-00000-of-00001.parquet.tmp"}
    assert len(kit.rows_of(tmp_path / "out")) == 120


def test_a_copied_source_is_known_again(kit, run, tmp_path, source, vocabulary):
    run()
    (tmp_path / "pets").mkdir()
    for number in range(5):
        (tmp_path / "pets" / f"{number}.png").write_bytes(kit.picture(number))
        (tmp_path / "pets" / f"{number}.txt").write_text(f"pet {number}")
    run(str(tmp_path / "pets"), split="pets")
    before = kit.stamps_of(tmp_path / "out")
    for path in (*(tmp_path / "in").iterdir(), *(tmp_path / "pets").iterdir()):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert run().new_parts == 0 and run(str(tmp_path / "pets"), split="pets").new_parts == 0
    assert kit.stamps_of(tmp_path / "out") == before
    (tmp_path / "pets" / "3.txt").write_text("cat 3")
    assert run(str(tmp_path / "pets"), split="pets").new_parts == 1
    assert kit.rows_of(tmp_path / "out", "pets")[3]["text"] == "cat 3"


def test_growth_renames_finished_parts(kit, run, tmp_path, source):
    run(str(tmp_path / "in" / "a-{1,3}.tar"))
    out = tmp_path / "out"
    before = {name: stamp for name, stamp in kit.stamps_of(out).items()}
    assert set(before) == {"train-00000-of-00002.parquet", "train-00001-of-00002.parquet"}
    report = run()
    after = kit.stamps_of(out)
    assert report.new_parts == 2 and report.parts == 4
    assert after["train-00001-of-00004.parquet"] == before["train-00000-of-00002.parquet"]
    assert after["train-00003-of-00004.parquet"] == before["train-00001-of-00002.parquet"]
    assert len(after) == 4 and len(list((out / "manifest").glob("*.json"))) == 4
    assert [row["__key__"] for row in kit.rows_of(out)] == [f"{i:05d}" for i in range(120)]
    with pytest.raises(ValueError, match="a-0.tar and 1 more"):
        run(str(tmp_path / "in" / "a-{1,3}.tar"))


def test_what_must_not_be_mixed_is_refused(kit, run, tmp_path, source):
    run()
    before = kit.files_of(tmp_path / "out")
    for options, name in (
        ({"tokenizer": kit.MeanTokenizer("others")}, "image_tokenizer"),
        ({"crop": "adm"}, "crop"),
        ({"pixels": "fast"}, "pixels"),
        ({"min_edge": 3}, "min_edge"),
    ):
        with pytest.raises(ValueError, match=f"was made with {name}=.*give another --out"):
            run(**options)
        with pytest.raises(ValueError, match=name):
            run(split="validation", **options)
    assert kit.files_of(tmp_path / "out") == before


def test_a_folder_from_before_pixels_could_be_chosen_has_exact_ones(kit, run, tmp_path):
    run()
    manifest = tmp_path / "out" / "manifest.json"
    facts = json.loads(manifest.read_text())
    assert facts.pop("pixels") == "exact"
    manifest.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="was made with pixels=exact, this run has fast"):
        run(pixels="fast")
    assert run().new_parts == 0


def test_another_vocabulary_is_refused(kit, run, tmp_path, vocabulary, source):
    from ar_t2i.vocabulary import Vocabulary

    run()
    other = Vocabulary.train(["some other words", "entirely other words"] * 5)
    config = PreprocessConfig(sources=(source,), out=str(tmp_path / "out"), image_tokenizer="", workers=0, min_edge=2)
    with pytest.raises(ValueError, match="was made with vocabulary="):
        tokenize_shards(expand_sources([source]), kit.MeanTokenizer(), other, config)
    small = Vocabulary.train(["words"], codebook_size=10)
    with pytest.raises(ValueError, match="256 codes, the vocabulary ids for only 10"):
        tokenize_shards(expand_sources([source]), kit.MeanTokenizer(), small, config)


def test_a_folder_of_something_else_is_refused(kit, run, tmp_path, tokenized):
    before = kit.files_of(tokenized)
    with pytest.raises(ValueError, match="was not written by this command"):
        run(out=str(tokenized))
    assert {name: data for name, data in kit.files_of(tokenized).items() if name in before} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot write out="):
        run(out=str(tmp_path / "file"))


def test_the_card_keeps_what_people_write(kit, run, tmp_path, source):
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
    run(str(kit.write_tar(tmp_path / "v.tar", range(7))), split="validation")
    header, text = yaml.safe_load(card.read_text().split("---")[1]), card.read_text()
    assert header["license"] == "cc0-1.0" and "# My captioned" in text and text.endswith("The end.\n")
    assert [files["split"] for files in header["configs"][0]["data_files"]] == ["train", "validation"]
    assert "| train | 120 | 0 | 4 |" in text and "| validation | 7 | 0 | 1 |" in text


def test_ranks_share_the_shards(kit, run, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    run(out=str(whole))
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert run().new_parts == (2 if rank == 0 else 1)
    assert kit.files_of(tmp_path / "out") == kit.files_of(whole)


def test_two_runs_at_once_are_refused(run, tmp_path, source, vocabulary):
    from ar_t2i.data.manifest import TokenizedFolder

    run()
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    folder = TokenizedFolder(tmp_path / "out", "train", expand_sources([source]), facts, facts.pop("versions"))
    with folder.claim(0, 1), pytest.raises(ValueError, match="another run writes the split 'train'"):
        run()
    run()


@pytest.fixture
def folder_of(run, tmp_path, source):
    """The folder of a finished run as another process sees it."""
    from ar_t2i.data.manifest import TokenizedFolder

    def folder_of(*sources, out="out"):
        facts = json.loads((tmp_path / out / "manifest.json").read_text())
        return TokenizedFolder(tmp_path / out, "train", expand_sources(sources or [source]), facts, facts["versions"])

    run()
    return folder_of


def test_a_run_of_another_number_of_processes_is_refused(folder_of, run, monkeypatch):
    refused = 0
    with folder_of().claim(1, 3):
        for rank, world, fits in ((0, 1, False), (0, 2, False), (1, 2, False), (1, 3, False), (0, 3, True)):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            if fits:
                assert run().parts == 2
                continue
            with pytest.raises(ValueError, match="another run writes the split 'train'"):
                run()
            refused += 1
    assert refused == 4
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run().parts == 2


def test_parts_are_not_renamed_under_a_process_at_work(kit, folder_of, run, tmp_path, source, monkeypatch):
    kit.write_tar(tmp_path / "in" / "Z.tar", range(5))  # sorts first, so every part would get another number
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with folder_of().claim(1, 3):
        before = kit.files_of(tmp_path / "out" / "data")
        with pytest.raises(ValueError, match="another run writes the split 'train'"):
            run(source, str(tmp_path / "in" / "Z.tar"))
        assert kit.files_of(tmp_path / "out" / "data") == before


def test_a_process_reads_the_records_of_its_own_parts(folder_of):
    folder = folder_of()
    with folder.claim(1, 3):
        assert set(folder.records) == {1} and not list(folder.unfinished([1]))
    (folder.out / "manifest" / ".train.layout").write_text("of other sources")
    folder = folder_of()
    with folder.claim(1, 3):
        assert set(folder.records) == {0, 1, 2, 3}  # all are looked at once before any is trusted to its name


def test_all_processes_take_the_arithmetic_that_the_first_chose(folder_of):
    first, second = folder_of(), folder_of()
    with first.claim(0, 2), second.claim(1, 2):
        assert first.settle("cuda bfloat16") == "cuda bfloat16"
        assert second.settle("cuda float32") == "cuda bfloat16"
        assert second.settle("mps float32") == "mps float32" == first.settle("mps bfloat16")
        assert first.arithmetics() == second.arithmetics() == {"cpu float32", "cuda bfloat16", "mps float32"}


def test_the_card_is_written_for_those_who_come_meanwhile(folder_of, monkeypatch):
    from ar_t2i.data import manifest

    folder, written = folder_of(), []

    def write_card(out):
        written.append(out)
        if len(written) == 1:
            folder._update_card()  # another process comes while this one writes: it returns at once

    monkeypatch.setattr(manifest, "write_card", write_card)
    folder._update_card()
    assert len(written) == 2
