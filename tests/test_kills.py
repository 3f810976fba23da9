"""200 kill -9, at times drawn from a seed, over training, preprocessing and push: it ends as if nothing had happened.

Children are forked from this process, which has everything imported, so that kills come at all stages of the work and
not of the start of Python.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, close_session, constants
from safetensors.torch import load_file

from ar_t2i.config import build
from ar_t2i.data import hub_shards
from ar_t2i.data import push as dataset_push
from ar_t2i.data.preprocess import PreprocessConfig, preprocess
from ar_t2i.data.scenes import ScenesConfig, write_scenes
from ar_t2i.hub.pull import PullConfig, pull
from ar_t2i.push import PushConfig, push
from ar_t2i.training.decoder import TrainConfig, train_decoder

pytestmark = pytest.mark.slow
HUB = Path(__file__).parent / "hub" / "hub_server.py"


def killed(work: Callable[[], object], times: int, longest: float, seed: int) -> int:
    """Run `work` in children that are killed so many times, then in one that is not; returns how many came through.

    A child that ends before its time has nothing left to do: its work is begun again by the next.
    """
    moments, through = random.Random(seed), 0
    for number in range(times + 1):
        child = os.fork()
        if child == 0:
            try:
                with open(os.devnull, "w") as sink:
                    os.dup2(sink.fileno(), 1)
                    if number < times:
                        os.dup2(sink.fileno(), 2)
                    work()
                os._exit(0)
            except BaseException as error:
                print(type(error).__name__, error, file=sys.stderr, flush=True)
                os._exit(1)
        if number < times:
            time.sleep(moments.uniform(0, longest))
            ended, code = os.waitpid(child, os.WNOHANG)
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        else:
            _, code = os.waitpid(child, 0)
            ended = child
        if ended:
            assert code == 0, f"child {number} failed by itself"
            through += 1
    return through


def test_training_ends_with_the_same_weights(run_options, tmp_path):
    options = {**run_options, "data": {**run_options["data"], "workers": 0}}
    options["loop"] = {**options["loop"], "steps": 60, "checkpoint_every": 2, "evaluate_every": 20, "trackers": []}
    outputs = {name: tmp_path / name for name in ("whole", "killed")}

    def work(name: str) -> None:
        train_decoder(build(TrainConfig, {**options, "output": str(outputs[name])}), "auto")

    killed(lambda: work("whole"), 0, 0.0, 0)
    killed(lambda: work("killed"), 100, 2.5, 1)
    for name in ("bundle/model.safetensors", "checkpoints/step-000060/ema.safetensors"):
        left, right = (load_file(output / name) for output in outputs.values())
        assert all((tensor == right[key]).all() for key, tensor in left.items()) and left.keys() == right.keys()
    left, right = ((output / "metrics.jsonl").read_text().splitlines() for output in outputs.values())
    assert len(left) == len(right), "each record once"
    assert not list(outputs["killed"].glob("**/.*-*")), "half folders were cleared away"
    assert [json.loads(line)["step"] for line in left] == [json.loads(line)["step"] for line in right]


def test_preprocessing_ends_with_the_same_rows(tmp_path, image_tokenizer_folder, vocabulary_folder):
    write_scenes(ScenesConfig(out=str(tmp_path / "in"), count=600, shard_size=20))

    def work(name: str) -> None:
        preprocess(
            PreprocessConfig(
                sources=(str(tmp_path / "in" / "*.tar"),),
                out=str(tmp_path / name),
                workers=0,
                dtype="float32",
                image_tokenizer=str(image_tokenizer_folder),
                vocabulary=str(vocabulary_folder),
                batch_size=8,
            )  # fmt: skip
        )

    killed(lambda: work("whole"), 0, 0.0, 0)
    killed(lambda: work("killed"), 50, 0.6, 2)
    for part in sorted((tmp_path / "whole" / "data").iterdir()):
        other = tmp_path / "killed" / "data" / part.name
        assert pq.read_table(other).equals(pq.read_table(part)) and other.read_bytes() == part.read_bytes()
    names = [sorted(path.name for path in (tmp_path / name / "data").iterdir()) for name in ("whole", "killed")]
    assert names[0] == names[1] and len(names[0]) == 30


def test_a_push_ends_with_the_same_files(tmp_path, monkeypatch, image_tokenizer_folder, vocabulary_folder):
    write_scenes(ScenesConfig(out=str(tmp_path / "in"), count=200, shard_size=10))
    folder = tmp_path / "tokens"
    preprocess(
        PreprocessConfig(
            sources=(str(tmp_path / "in" / "*.tar"),),
            out=str(folder),
            workers=0,
            dtype="float32",
            image_tokenizer=str(image_tokenizer_folder),
            vocabulary=str(vocabulary_folder),
        )  # fmt: skip
    )
    monkeypatch.setattr(hub_shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(dataset_push, "SHARDS_AT_ONCE", 1)
    (tmp_path / "hub").mkdir()
    server = subprocess.Popen(
        [sys.executable, str(HUB), "--root", str(tmp_path / "hub")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        settings = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}"}
        settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(tmp_path / "cache")}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_localwrite000000000000000000000000")
        close_session()

        def work() -> None:
            close_session()
            push(PushConfig(folder=str(folder), to="tester/tokens", license="cc0-1.0"))

        killed(work, 50, 1.2, 3)
        there = {file.path for file in HfApi().list_repo_tree("tester/tokens", repo_type="dataset", recursive=True)}
        stems = [path.stem for path in sorted((folder / "data").iterdir())]
        expected = {f"data/{stem}.parquet" for stem in stems} | {f"manifest/{stem}.json" for stem in stems}
        beside = {"README.md", "manifest.json", "rows.png", ".gitattributes", "data", "manifest"}
        assert there == expected | beside and len(stems) == 20
        again = pull(PullConfig(repo="tester/tokens", out=str(tmp_path / "again"), type="dataset"))
        for stem in stems:
            name = f"data/{stem}.parquet"
            assert (again / name).read_bytes() == (folder / name).read_bytes()
        titles = [commit.title for commit in HfApi().list_repo_commits("tester/tokens", repo_type="dataset")]
        assert len(titles) <= 1 + 20 + 1, "each shard was committed once"
    finally:
        server.kill()
        server.communicate()
        close_session()
