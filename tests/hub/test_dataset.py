"""A tokenized dataset on the Hub, pushed whole, in parts, by two at once; and trained from there."""

import json
import shutil
import threading
import time
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from filelock import FileLock
from hub_content import commits, content
from huggingface_hub import HfApi, constants

from ar_t2i import push as verb
from ar_t2i.data import hub_shards
from ar_t2i.data import push as dataset
from ar_t2i.data.dataset import load_rows
from ar_t2i.data.preprocess import PreprocessConfig, preprocess
from ar_t2i.push import PushConfig, push
from ar_t2i.slots import SlotConfig, SlotTokenizer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Six tars of ten small pictures, four to train on."""
    from ar_t2i.data.scenes import ScenesConfig, write_scenes

    out = tmp_path_factory.mktemp("scenes")
    write_scenes(ScenesConfig(out=str(out), count=40, shard_size=10))
    write_scenes(ScenesConfig(out=str(out), count=20, shard_size=10, split="validation"))
    return out


@pytest.fixture
def tokens(pictures, tmp_path, image_tokenizer_folder, vocabulary_folder):
    """Tokenize some of the shards into tokens/."""

    def run(split="train", out="tokens") -> Path:
        config = PreprocessConfig(
            sources=(str(pictures / f"scenes-{split}-*.tar"),), out=str(tmp_path / out), split=split, workers=0,
            image_tokenizer=str(image_tokenizer_folder), vocabulary=str(vocabulary_folder), dtype="float32",
        )  # fmt: skip
        preprocess(config)
        return tmp_path / out

    return run


def header(hub) -> dict:
    return yaml.safe_load(content(hub, "tester/tokens", "dataset")["README.md"].decode().split("---")[1])


def config_of(folder, **values) -> PushConfig:
    return PushConfig(**{"folder": str(folder), "to": "tester/tokens", "license": "cc0-1.0", **values})


def rows_of(folder: Path, split: str) -> list[dict]:
    return [row for path in sorted((folder / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def test_it_loads_as_it_was_whole_and_streaming(hub, tokens, capsys):
    folder = tokens()
    tokens("validation")
    push(config_of(folder, message="tokens"))
    loaded = datasets.load_dataset("tester/tokens")
    assert {split: list(rows) for split, rows in loaded.items()} == {
        split: rows_of(folder, split) for split in ("train", "validation")
    }
    streamed = datasets.load_dataset("tester/tokens", streaming=True, split="train")
    assert list(streamed) == rows_of(folder, "train")
    names = set(content(hub, "tester/tokens", "dataset"))
    assert {name for name in names if name.endswith(".parquet")} == {
        "data/train-00000-of-00004.parquet", "data/validation-00000-of-00002.parquet"
    }, "small parts are put together"  # fmt: skip
    assert "2 of 2 shards are there" in capsys.readouterr().out
    before = commits(hub, "tester/tokens", "dataset")
    hub.clear_log()
    push(config_of(folder, message="tokens"))
    assert commits(hub, "tester/tokens", "dataset") == before and not hub.requests("PUT")


def test_the_card_says_what_the_datasets_library_computes(hub, tokens, tmp_path):
    folder = tokens()
    tokens("validation")
    push(config_of(folder))
    card = header(hub)
    loaded = datasets.load_dataset("tester/tokens")
    info = loaded["train"].info
    for name, split in info.splits.items():
        told = next(entry for entry in card["dataset_info"]["splits"] if entry["name"] == name)
        assert told == {"name": name, "num_bytes": split.num_bytes, "num_examples": split.num_examples}
    assert card["dataset_info"]["download_size"] == info.download_size
    assert card["dataset_info"]["dataset_size"] == info.dataset_size
    loaded.push_to_hub("tester/by-datasets")
    theirs = content(hub, "tester/by-datasets", "dataset")["README.md"].decode()
    theirs = yaml.safe_load(theirs.split("---")[1])
    assert card["configs"] == theirs["configs"]
    assert card["dataset_info"]["features"] == theirs["dataset_info"]["features"]
    assert card["license"] == "cc0-1.0" and card["task_categories"] == ["text-to-image"]


def test_part_by_part_while_it_is_made_and_larger_than_the_disk(hub, tokens, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_shards, "SHARD_BYTES", 1)
    folder = tokens()
    hidden = [
        folder / kind / f"train-00002-of-00004.{end}" for kind, end in (("data", "parquet"), ("manifest", "json"))
    ]
    kept = [path.read_bytes() for path in hidden]
    expected = rows_of(folder, "train")
    [path.unlink() for path in hidden]  # not made yet
    push(config_of(folder, free=True))
    assert header(hub)["dataset_info"]["splits"][0]["num_examples"] == 30
    assert not list((folder / "data").iterdir()), "what is there was deleted here"
    [path.write_bytes(data) for path, data in zip(hidden, kept, strict=True)]
    assert tokens() == folder and len(list((folder / "data").iterdir())) == 1, "nothing is made twice"
    push(config_of(folder, free=True))
    assert header(hub)["dataset_info"]["splits"][0]["num_examples"] == 40
    assert list(datasets.load_dataset("tester/tokens", split="train")) == expected
    HfApi().delete_file("data/train-00001-of-00004.parquet", "tester/tokens", repo_type="dataset")
    with pytest.raises(ValueError, match="does not hold data/train-00001-of-00004.parquet, of which"):
        push(config_of(folder))


def test_two_pushes_at_once_both_end_complete(hub, tokens, monkeypatch):
    monkeypatch.setattr(hub_shards, "SHARD_BYTES", 1)
    folders = {split: tokens(split, out=split) for split in ("train", "validation")}
    errors = []

    def run(split):
        try:
            push(config_of(folders[split], message=split))
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(split,)) for split in folders]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors
    counts = {entry["name"]: entry["num_examples"] for entry in header(hub)["dataset_info"]["splits"]}
    assert counts == {"train": 40, "validation": 20}
    loaded = datasets.load_dataset("tester/tokens")
    assert {split: list(rows) for split, rows in loaded.items()} == {
        split: rows_of(folder, split) for split, folder in folders.items()
    }


def test_a_push_that_follows_preprocessing_sends_all_of_it(hub, pictures, tmp_path, monkeypatch, command,
                                                           image_tokenizer_folder, vocabulary_folder):  # fmt: skip
    monkeypatch.setattr(hub_shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(verb, "FOLLOW_PAUSE", 0.05)
    out, made = tmp_path / "tokens", []
    line = ("preprocess", str(pictures / "scenes-train-*.tar"), "--out", str(out), "--batch-size", "1")
    line += ("--image-tokenizer", str(image_tokenizer_folder), "--vocabulary", str(vocabulary_folder))
    maker = threading.Thread(target=lambda: made.append(command(*line)))
    maker.start()
    limit = time.monotonic() + 60
    while not list((out / "data").glob("*.parquet")) and time.monotonic() < limit:
        time.sleep(0.01)
    push(config_of(out, follow=True, free=True))
    maker.join()
    assert made[0].returncode == 0, made[0].stderr
    assert header(hub)["dataset_info"]["splits"][0]["num_examples"] == 40
    assert not list((out / "data").glob("*.parquet")), "what is there was deleted here"
    assert datasets.load_dataset("tester/tokens", split="train").num_rows == 40
    with pytest.raises(ValueError, match="--dataset has no meaning for a dataset"):
        push(config_of(out, dataset="tester/x"))


def test_parts_are_deleted_only_when_the_hub_holds_them(hub, tokens, monkeypatch):
    monkeypatch.setattr(hub_shards, "SHARD_BYTES", 1)
    folder = tokens()
    expected = rows_of(folder, "train")
    push(config_of(folder))
    HfApi().upload_file(
        path_or_fileobj=b"garbage", path_in_repo="data/train-00001-of-00004.parquet", repo_id="tester/tokens",
        repo_type="dataset",
    )  # fmt: skip
    for options in ({"free": True, "pull_request": True}, {"free": True, "to": "tester/tokens@refs/pr/1"}):
        with pytest.raises(ValueError, match="--free deletes what is there for good"):
            push(config_of(folder, **options))
    (folder / ".shard-dead").mkdir()
    with (
        FileLock(folder / "manifest" / ".push.lock"),
        pytest.raises(ValueError, match="another push of .* is at work"),
    ):
        push(config_of(folder, free=True))
    assert len(list((folder / "data").iterdir())) == 4
    push(config_of(folder, free=True))
    assert not list((folder / "data").iterdir()) and not (folder / ".shard-dead").exists()
    assert datasets.load_dataset("tester/tokens", split="train").to_list() == expected


def test_pushes_from_two_folders_cut_in_the_same_places(hub, tokens, monkeypatch):
    first, second = tokens(out="first"), tokens(out="second")
    (second / "manifest" / "shards.json").write_text('{"parts_per_shard": 3}')
    (first / "manifest" / "shards.json").write_text('{"parts_per_shard": 2}')
    push(config_of(first))
    push(config_of(second))
    names = {path for path in content(hub, "tester/tokens", "dataset") if path.startswith("data/")}
    assert names == {"data/train-00000-of-00004.parquet", "data/train-00002-of-00004.parquet"}
    assert datasets.load_dataset("tester/tokens", split="train").num_rows == 40
    records = {"train-00000-of-00004": {"parts": [0] * 3}, "train-00002-of-00004": {"parts": [0] * 2}}
    with pytest.raises(ValueError, match="holds parts of train-00002-of-00004 in train-00000-of-00004"):
        dataset._check_apart(records, "x")


def test_a_flipped_byte_does_not_reach_the_card(hub, tokens):
    folder = tokens()
    push(config_of(folder))
    card = content(hub, "tester/tokens", "dataset")["README.md"]
    tokens("validation")
    rule = hub.fail(method="GET", path="resolve/.*README.md", action="corrupt")
    push(config_of(folder))
    assert rule.hits == 1
    again = content(hub, "tester/tokens", "dataset")["README.md"]
    assert card.splitlines()[-1] == again.splitlines()[-1] and b"# Captioned pictures as tokens" in again


def test_a_dry_run_tells_what_the_push_will_do(hub, tokens, capsys):
    folder = tokens()
    with pytest.raises(ValueError, match="names no licence"):
        push(config_of(folder, license="", dry_run=True))

    def plan(**options) -> dict[str, str]:
        capsys.readouterr()
        push(config_of(folder, dry_run=True, **options))
        lines = [line.split() for line in capsys.readouterr().out.splitlines()[:-1]]
        return {line[2]: line[0] for line in lines}

    names = {"data/train-00000-of-00004.parquet", "manifest/train-00000-of-00004.json", "manifest.json", "rows.png"}
    assert plan() == dict.fromkeys({*names, "README.md"}, "new")
    push(config_of(folder))
    assert plan() == dict.fromkeys({*names, "README.md"}, "there") == plan(to="tester/tokens@branch")
    assert plan(license="mit")["README.md"] == "changed"
    assert set(content(hub, "tester/tokens", "dataset")) == {*names, "README.md"}


@pytest.mark.parametrize("streaming", [False, True])
def test_training_by_id_notices_a_flipped_byte(hub, tokens, train_run, streaming):
    folder = tokens()
    tokens("validation")
    push(config_of(folder))
    data = {"batch_size": 8, "validation_rows": 8, "dataset": "tester/tokens", "streaming": streaming}
    first = train_run(data=data, samples={"every": 0, "prompts": []})
    shutil.rmtree(constants.HF_HUB_CACHE)
    rule = hub.fail(method="GET", path="resolve/.*/data/train", action="corrupt")
    again = train_run(data=data, output=str(first.parent / "again"), samples={"every": 0, "prompts": []})
    assert rule.hits == 1
    weights = [(output / "bundle" / "model.safetensors").read_bytes() for output in (first, again)]
    assert weights[0] == weights[1]


def test_without_network_each_revision_is_its_own(hub, tokens, monkeypatch):
    folder = tokens()
    push(config_of(folder, tag="v1"))
    assert load_rows("tester/tokens@v1", "train").num_rows == 40
    (folder / "README.md").write_text((folder / "README.md").read_text() + "more")
    push(config_of(folder))
    assert load_rows("tester/tokens", "train").num_rows == 40
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_rows("tester/tokens@v1", "train").num_rows == 40
    with pytest.raises(ValueError, match="tester/tokens@v2 is neither a folder here nor in the cache"):
        load_rows("tester/tokens@v2", "train")


def test_an_interrupted_push_is_finished_by_the_next(hub, tokens, monkeypatch):
    monkeypatch.setattr(hub_shards, "SHARD_BYTES", 1)
    folder = tokens()
    monkeypatch.setattr(dataset, "SHARDS_AT_ONCE", 1)
    hub.fail(method="POST", path="/commit/", nth=3, status=401, times=1)
    with pytest.raises(ValueError, match="401"):
        push(config_of(folder))
    assert header(hub)["dataset_info"]["splits"][0]["num_examples"] == 20, "what is there can be used"
    hub.clear_log()
    push(config_of(folder))
    assert len(hub.requests("PUT")) <= 2, "only what is missing"
    assert datasets.load_dataset("tester/tokens", split="train").num_rows == 40


def test_what_people_wrote_into_the_card_stays(hub, tokens):
    folder = tokens()
    push(config_of(folder))
    card = content(hub, "tester/tokens", "dataset")["README.md"].decode()
    card = card.replace("task_categories:", "language: en\ntask_categories:") + "\nDrawn by code.\n"
    HfApi().upload_file(
        path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="tester/tokens", repo_type="dataset"
    )  # noqa: E501
    tokens("validation")
    push(config_of(folder))
    again = content(hub, "tester/tokens", "dataset")["README.md"].decode()
    assert "Drawn by code." in again and "language: en" in again and "| validation | 20 |" in again
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("please fill in, here", "by hand"))
    push(config_of(folder))
    again = content(hub, "tester/tokens", "dataset")["README.md"].decode()
    assert "by hand" in again and "language: en" in again, "what they write here goes there"


def test_the_card_shows_rows_and_says_how_they_were_made(hub, tokens):
    folder = tokens()
    (folder / "LICENSE").write_text("CC0")
    push(config_of(folder))
    there = content(hub, "tester/tokens", "dataset")
    card = there["README.md"].decode()
    assert there["rows.png"] == (folder / "rows.png").read_bytes() and there["LICENSE"] == b"CC0"
    assert "](rows.png)" in card and f"1. {rows_of(folder, 'train')[0]['text']}" in card
    assert f"4 shards, `{pictures_name(folder)}/scenes-train-0000.tar` to" in card
    facts = json.loads(there["manifest.json"])
    assert facts["image_tokenizer"] in card and facts["vocabulary"] in card and "torch 2" in card


def pictures_name(folder: Path) -> str:
    return json.loads(next((folder / "manifest").glob("train-*.json")).read_text())["shard"].split("/")[0]


def test_what_does_not_belong_together_is_refused(hub, tokens, tmp_path):
    folder = tokens()
    with pytest.raises(ValueError, match="names no licence: give --license, such as cc-by"):
        push(config_of(folder, license=""))
    push(config_of(folder))
    other = tokens(out="other")
    facts = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**facts, "vocabulary": "another"}))
    with pytest.raises(ValueError, match="was made with vocabulary="):
        push(config_of(other))
    damaged = next((folder / "data").glob("train-00001*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="train-00001-of-00004.parquet is damaged: run preprocess again"):
        push(config_of(folder, to="tester/fresh"))
    (tmp_path / "empty" / "data").mkdir(parents=True)
    (tmp_path / "empty" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="has no finished part yet"):
        push(config_of(tmp_path / "empty"))


def test_training_reads_an_id_and_a_revision(hub, tokens, train_run):
    folder = tokens()
    tokens("validation")
    push(config_of(folder, tag="v1"))
    data = {"batch_size": 8, "validation_rows": 8}
    first = train_run(data={**data, "dataset": "tester/tokens"}, samples={"every": 0, "prompts": []})
    again = train_run(
        data={**data, "dataset": "tester/tokens@v1"},
        output=str(first.parent / "v1"),
        samples={"every": 0, "prompts": []},
    )
    names = ("bundle/model.safetensors", "bundle/image_tokenizer/model.safetensors")
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    other = SlotConfig(image_size=64, code_dim=2, stage_widths=(8, 8, 8, 8), unmixer_width=16, regions=(2, 2))
    SlotTokenizer(other).save_pretrained(first.parent / "other")
    with pytest.raises(ValueError, match="the dataset tester/tokens was made with another image tokenizer"):
        train_run(
            data={**data, "dataset": "tester/tokens"},
            image_tokenizer=str(first.parent / "other"),
            output=str(first.parent / "new"),
        )
    with pytest.raises(ValueError, match="cannot download tester/tokens@v2: no such revision"):
        train_run(data={**data, "dataset": "tester/tokens@v2"}, output=str(first.parent / "v2"))
