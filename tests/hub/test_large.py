"""A file of 200 MB, with the connection reset in the middle; and a disk that is too small for it."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hub_content import commits, content
from huggingface_hub import HfApi, constants
from safetensors.numpy import save_file

from ar_t2i.hub.names import resolve
from ar_t2i.hub.pull import PullConfig, pull
from ar_t2i.push import PushConfig, push

NAMES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def large(image_tokenizer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_bytes((image_tokenizer_folder / "config.json").read_bytes())
    save_file({"0": np.frombuffer(os.urandom(200_000_000), np.uint8)}, folder / "model.safetensors")
    return folder


def upload(folder: Path) -> None:
    api = HfApi()
    api.create_repo("tester/large")
    api.upload_folder(repo_id="tester/large", folder_path=folder)


def same(left: Path, right: Path) -> bool:
    """Compared by another program, so that no test holds 400 MB."""
    return subprocess.run(["cmp", str(left), str(right)], check=False).returncode == 0


def test_a_push_that_is_cut_in_the_middle_starts_again(hub, large):
    rule = hub.fail(method="PUT", action="reset-half", times=2)
    push(PushConfig(folder=str(large), to="tester/large", license="mit"))
    assert rule.hits == 2 and len(hub.requests("PUT")) == 3
    assert set(content(hub, "tester/large")) == NAMES
    assert commits(hub, "tester/large") == ["image tokenizer by ar_t2i", "initial commit"]
    assert same(large / "model.safetensors", pull(PullConfig(repo="tester/large")) / "model.safetensors")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("how", ["folder", "cache"])
@pytest.mark.parametrize("action", ["truncate", "truncate-rst"])
def test_a_pull_that_is_cut_in_the_middle_ends_well(hub, large, how, action):
    upload(large)
    rule = hub.fail(method="GET", path="resolve/.*model.safetensors", action=action, times=2)
    hub.clear_log()
    folder = pull(PullConfig(repo="tester/large")) if how == "folder" else resolve("tester/large")
    assert rule.hits == 2 and same(large / "model.safetensors", folder / "model.safetensors")
    sent = [entry["out"] for entry in hub.requests("GET", "resolve/.*model.safetensors")]
    if action == "truncate":  # after a reset huggingface_hub starts the file again
        assert sum(sent) < 1.1 * 200e6, "what had come was not fetched again"


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
@pytest.mark.parametrize("how", ["folder", "cache"])
def test_a_disk_that_is_too_small_is_told_and_a_larger_one_ends_it(hub, large, how, small_disk, monkeypatch):
    upload(large)
    disk = small_disk(100_000_000)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk / "cache"))
    out = str(disk / "pulled")

    def fetch() -> Path:
        return pull(PullConfig(repo="tester/large", out=out)) if how == "folder" else resolve("tester/large")

    with pytest.raises(ValueError, match="the disk is full .*free some space, then run it again"):
        fetch()
    assert not [path for path in disk.rglob("model.safetensors") if path.is_file()], "nothing half has its name"
    subprocess.run(["mount", "-o", "remount,size=300000000", str(disk)], check=True)
    folder = fetch()
    assert same(large / "model.safetensors", folder / "model.safetensors")
