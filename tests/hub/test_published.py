"""The published dataset, the way its author uses a checkpoint, and the way there and back by the command line."""

import shutil

import datasets
import pytest
from hub_content import content
from hub_server import User
from PIL import ImageChops
from PIL.Image import open as open_picture

from ar_t2i.infer import InferConfig, infer
from ar_t2i.push import PushConfig, push

PUBLISHED = "darshanmakwana/cc3m_tokenized"


@pytest.fixture
def published(hub, tokenized, monkeypatch):
    """A small dataset in the published one's layout: data/train-*.parquet, int64 lists, dataset_info in the card."""
    hub.hub.tokens["hf_localauthor00000000000000000000000"] = User("darshanmakwana")
    with monkeypatch.context() as author:
        author.setenv("HF_TOKEN", "hf_localauthor00000000000000000000000")
        datasets.load_dataset(str(tokenized)).push_to_hub(PUBLISHED, num_shards={"train": 2, "validation": 1})
    names = {name for name in content(hub, PUBLISHED, "dataset") if name.endswith(".parquet")}
    assert names == {
        f"data/{n}.parquet" for n in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001")
    }  # noqa: E501
    return PUBLISHED


def test_the_published_dataset_trains_by_its_id(published, train_run, tokenized, tmp_path):
    by_id = train_run(data={"dataset": published})
    by_folder = train_run(output=str(tmp_path / "folder"), data={"dataset": str(tokenized)})
    assert (by_id / "bundle" / "model.safetensors").read_bytes() == (
        by_folder / "bundle" / "model.safetensors"
    ).read_bytes()


def test_a_checkpoint_beside_an_image_tokenizer_draws(model, vocabulary, image_tokenizer_folder, tmp_path, train_run):
    checkpoint, shelf = tmp_path / "checkpoint-20000", tmp_path / "image_tokenizer"
    model.save_pretrained(checkpoint)
    vocabulary.save_pretrained(checkpoint)
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):  # as a trainer leaves them
        (checkpoint / name).write_bytes(b"\x80\x05never read")
    shutil.copytree(image_tokenizer_folder, shelf)
    options = {"prompt": ("a red bird",), "bundle": str(checkpoint), "seed": 3}
    (path,) = infer(InferConfig(**options, image_tokenizer=str(shelf), out=str(tmp_path / "out")))
    with open_picture(path) as picture:
        assert picture.size == (64, 64)
    with pytest.raises(ValueError, match="checkpoint-20000 is no bundle"):
        infer(InferConfig(**options, out=str(tmp_path / "out")))


def test_another_image_tokenizer_than_the_bundles_is_refused(train_run, tmp_path):
    from ar_t2i.slots import SlotConfig, SlotTokenizer

    bundle = train_run() / "bundle"
    SlotTokenizer(
        SlotConfig(image_size=64, code_dim=2, stage_widths=(8, 8, 8, 8), unmixer_width=16, regions=(2, 2))
    ).save_pretrained(tmp_path / "other")  # noqa: E501
    with pytest.raises(ValueError, match="the image_tokenizer is not the one this bundle was made with"):
        infer(InferConfig(prompt=("a bird",), bundle=str(bundle), image_tokenizer=str(tmp_path / "other")))


def test_there_and_back_by_the_command_line(command, hub, tokenized, train_run, tmp_path, monkeypatch):
    """Train by id, push, pull into an empty folder with an empty cache, draw: the same picture for the same seed."""
    datasets.load_dataset(str(tokenized)).push_to_hub("tester/tokens")
    output = train_run(data={"dataset": "tester/tokens"}, loop={"steps": 20, "checkpoint_every": 20})
    infer(InferConfig(prompt=("a red bird",), bundle=str(output / "bundle"), seed=5, out=str(tmp_path / "before")))
    done = command("push", str(output / "bundle"), "--to", "tester/birds", "--license", "apache-2.0")
    assert done.returncode == 0 and "compared with their checksums" in done.stdout, done.stderr
    done = command("pull", "tester/birds", "--out", str(tmp_path / "pulled"))
    assert done.returncode == 0 and "compared with their checksums" in done.stdout, done.stderr
    draw = ("infer", "a red bird", "--seed", "5", "--out")
    assert command(*draw, str(tmp_path / "after"), "--bundle", str(tmp_path / "pulled")).returncode == 0
    assert command(*draw, str(tmp_path / "by-id"), "--bundle", "tester/birds@main").returncode == 0
    before, *others = (pixels(tmp_path / place) for place in ("before", "after", "by-id"))
    assert all(ImageChops.difference(before, after).getbbox() is None for after in others)
    told = command("push", str(output / "bundle"), "--to", "stranger/birds", "--license", "apache-2.0")
    assert told.returncode == 2 and told.stderr.count("\n") == 1 and "may not do that (403)" in told.stderr
    assert "hf_local" not in told.stderr + told.stdout


def pixels(folder):
    with open_picture(next(folder.glob("*.png"))) as picture:
        return picture.convert("RGB")


def test_a_dry_run_of_a_dataset_lists_it(hub, tmp_path, capsys):
    from ar_t2i.data.parts import PartRecord

    folder = tmp_path / "tokens"
    (folder / "data").mkdir(parents=True)
    (folder / "manifest").mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "README.md").write_text("")
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"12345")
    record = PartRecord(
        shard="a", source=None, checksum=None, sha256="", bytes=5, kept=1, dropped={}, examples={}, arithmetic="cpu"
    )
    record.write(folder / "manifest" / "train-00000-of-00001.json")
    push(PushConfig(folder=str(folder), to="tester/tokens", license="mit", dry_run=True))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["new", "5", "data/train-00000-of-00001.parquet"] and not hub.hub.repos
    assert [line[-1] for line in lines[:4]] == [
        "data/train-00000-of-00001.parquet", "manifest/train-00000-of-00001.json", "manifest.json", "README.md"
    ]  # fmt: skip
    assert not (folder / "manifest" / "shards.json").exists(), "nothing is settled by it"
