"""kill -9 in the middle of a push and of a pull: the same command ends it."""

import json
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_content import commits, content
from safetensors.numpy import save_file

from ar_t2i.data.parts import PartRecord
from ar_t2i.hub.remote import file_digest


@pytest.fixture
def folder(tmp_path, image_tokenizer_folder):
    """An image tokenizer's folder of 24 MB: the client writes 10 MB at a time."""
    made = tmp_path / "codes"
    made.mkdir()
    (made / "config.json").write_bytes((image_tokenizer_folder / "config.json").read_bytes())
    weights = {str(number): np.random.default_rng(number).random(750_000) for number in range(4)}
    save_file(weights, made / "model.safetensors")
    return made


def kill_when(arguments: list[str], ready) -> None:
    """Start `ar-t2i ...` and kill it once `ready()`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ar_t2i.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_push_is_ended_by_the_next(hub, folder, command):
    arguments = ["push", str(folder), "--to", "tester/codes", "--license", "mit"]
    hub.settings.bandwidth = 3e6
    kill_when(arguments, lambda: any((hub.root / "tmp").iterdir()))  # the weights are on their way
    hub.settings.bandwidth = 0
    assert set(content(hub, "tester/codes")) == set()
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    there = content(hub, "tester/codes")
    assert there["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert set(there) == {"README.md", "config.json", "model.safetensors"}
    assert commits(hub, "tester/codes") == ["image tokenizer by ar_t2i", "initial commit"]


def test_a_killed_push_of_a_dataset_is_ended_by_the_next(hub, command, tokenized, tmp_path):
    """Killed on the way of the second of four commits, when the parts of the first are deleted here."""
    folder = tmp_path / "tokens"
    rows = pq.read_table(next(tokenized.glob("data/train-*"))).slice(0, 160)
    for name in ("data", "manifest"):
        (folder / name).mkdir(parents=True)
    facts = ("max_pixels", "min_edge", "max_aspect", "max_caption_chars", "num_codes", "codebook_size", "image_size")
    known = {"image_tokenizer": "a", "vocabulary": "b", "crop": "center", "versions": {}, **dict.fromkeys(facts, 1)}
    (folder / "manifest.json").write_text(json.dumps(known))
    (folder / "manifest" / "shards.json").write_text('{"parts_per_shard": 1}')
    for number in range(16):
        stem = f"train-{number:05d}-of-00016"
        part = folder / "data" / f"{stem}.parquet"
        pq.write_table(rows.slice(10 * number, 10), part)
        PartRecord(
            shard=f"in/{number}.tar", source=None, checksum=None, sha256=file_digest(part, "sha256"), kept=10,
            bytes=part.stat().st_size, dropped={}, examples={}, arithmetic="cpu float32",
        ).write(folder / "manifest" / f"{stem}.json")  # fmt: skip
    arguments = ["push", str(folder), "--to", "tester/tokens", "--license", "mit", "--free"]
    hub.settings.latency = 0.1
    kill_when(arguments, lambda: not (folder / "data" / "train-00000-of-00016.parquet").exists())
    hub.settings.latency = 0
    assert len(list((folder / "data").iterdir())) >= 12, "what is not there yet is here"
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    names = {path for path in content(hub, "tester/tokens", "dataset") if path.startswith("data/")}
    assert names == {f"data/train-{number:05d}-of-00016.parquet" for number in range(16)}
    assert datasets.load_dataset("tester/tokens", split="train").to_list() == rows.to_pylist()
    titles = commits(hub, "tester/tokens", "dataset")
    assert len(titles) == 5 and not list((folder / "data").iterdir()), titles


def test_a_killed_pull_is_ended_by_the_next(hub, folder, command, tmp_path):
    assert command("push", str(folder), "--to", "tester/codes", "--license", "mit").returncode == 0
    out = tmp_path / "pulled"
    hub.settings.bandwidth = 4e6
    kill_when(
        ["pull", "tester/codes", "--out", str(out)],
        lambda: any(path.stat().st_size > 0 for path in out.rglob("*.incomplete")),
    )
    hub.settings.bandwidth = 0
    assert not (out / "model.safetensors").exists(), "nothing half lies under its name"
    done = command("pull", "tester/codes", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {"README.md", "config.json", "model.safetensors"}
