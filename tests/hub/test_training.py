"""A run is published while it goes on, and goes on from what was published."""

import errno
import os
import socket
from pathlib import Path

import pytest
import torch
from hub_content import content
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file

from ar_t2i.bundles import load_bundle, shipped_bundle
from ar_t2i.hub.names import CHECKPOINT_FILES, resolve_checkpoint
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.training import publish
from ar_t2i.training.publish import HubConfig

REPO = {"repo": "tester/birds", "license": "apache-2.0", "every": 4}


def weights(output):
    return load_file(output / "bundle" / "model.safetensors")


def test_a_run_is_published_and_goes_on_from_there(hub, train_run, tmp_path, capsys):
    output = train_run(hub=REPO, loop={"steps": 8, "checkpoint_every": 4})
    assert f"pushed {output / 'bundle'} to tester/birds" in capsys.readouterr().out
    there = content(hub, "tester/birds")
    assert there["model.safetensors"] == (output / "bundle" / "model.safetensors").read_bytes()
    assert b"license: apache-2.0" in there["README.md"] and b"steps: 8" in there["README.md"]
    on_the_way = content(hub, "tester/birds", revision="training")
    steps = {path.split("/")[1] for path in on_the_way if path.startswith("checkpoints/")}
    assert steps == {"step-000004"} and "ar_t2i.json" in on_the_way
    again = train_run(resume="tester/birds@training", output=str(tmp_path / "again"), hub={})
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(output).items())
    draw = {"generator": torch.Generator().manual_seed(3)}
    codes = TextToImagePipeline.from_pretrained("tester/birds")("a red bird", **draw).codes
    draw = {"generator": torch.Generator().manual_seed(3)}
    assert torch.equal(codes, TextToImagePipeline.from_pretrained(output / "bundle")("a red bird", **draw).codes)


def test_a_hub_that_fails_harms_nothing(hub, train_run, capsys, monkeypatch):
    monkeypatch.setattr(publish, "ATTEMPTS", 2)
    monkeypatch.setattr(publish, "FIRST_PAUSE", 0.1)
    hub.fail(method="POST", path="/api/repos/create", status=403, times=0)
    output = train_run(hub=REPO)
    told = capsys.readouterr().out
    assert "training goes on, the next push tries again" in told and "next attempt in 0 s" in told
    assert f"push it by: ar-t2i push {output / 'bundle'} --to tester/birds --license apache-2.0" in told
    assert load_bundle(output / "bundle").words and not hub.hub.repos


def test_a_checkpoint_of_the_hub_is_found_again_without_network(hub, monkeypatch):
    api = HfApi()
    api.create_repo("tester/run")
    for step in (4, 12, 8):
        for name in CHECKPOINT_FILES:
            path = f"checkpoints/step-{step:06d}/{name}"
            api.upload_file(path_or_fileobj=str(step).encode(), path_in_repo=path, repo_id="tester/run")
    folder = resolve_checkpoint("tester/run")
    assert folder.name == "step-000012" and (folder / "optimizer.safetensors").read_text() == "12"
    hub.stop()
    assert resolve_checkpoint("tester/run") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_checkpoint("tester/run") == folder


def test_a_push_that_never_ends_is_given_up(tmp_path, monkeypatch):
    told = []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(publish, "LONGEST", 12.0)
        monkeypatch.setattr(publish.Publisher, "_try", lambda self: None)
        assert not publish.Publisher(HubConfig(**REPO), tmp_path, told.append).finish(shipped_bundle())
        silent.settimeout(0)
        silent.accept()[0].close()
    assert len(told) == 1 and told[0].startswith("a push did not end in 12 s\nthe bundle is complete in")


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(publish.Publisher, "_try", lambda self: None)
    publisher = publish.Publisher(HubConfig(**REPO), tmp_path, told.append)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text("{}")

    def full(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publish, "_link", full)
    publisher.offer(tmp_path / "bundle", tmp_path / "bundle")
    assert len(told) == 1 and "No space left" in told[0] and "training goes on" in told[0]
    assert publisher.thread is None


def test_while_one_push_is_under_way_only_the_newest_state_waits(tmp_path, monkeypatch):
    import threading

    begun, go_on, pushed = threading.Event(), threading.Event(), []

    def slow(self, arguments, longest=0):
        pushed.append((arguments[0].rsplit("/", 1)[-1], Path(arguments[0], "state.json").read_text()))
        begun.set()
        assert go_on.wait(10)
        return ""

    monkeypatch.setattr(publish.Publisher, "_push", slow)
    monkeypatch.setattr(publish.Publisher, "_try", lambda self: None)
    publisher = publish.Publisher(HubConfig(**REPO), tmp_path, print)
    for number in range(4):
        for name in ("bundle", f"step-{number}"):
            (tmp_path / str(number) / name).mkdir(parents=True)
            (tmp_path / str(number) / name / "state.json").write_text(str(number))

    def offer(number):
        publisher.offer(tmp_path / str(number) / "bundle", tmp_path / str(number) / f"step-{number}")

    offer(0)
    assert begun.wait(10)
    [offer(number) for number in (1, 2, 3)]
    (tmp_path / "3" / "bundle" / "state.json").unlink()
    go_on.set()
    thread = publisher.thread
    if thread is not None:
        thread.join(10)
    assert pushed == [("bundle", "0"), ("step-0", "0"), ("bundle", "3"), ("step-3", "3")]
    assert publisher.finish(tmp_path / "0" / "bundle") and not publisher.folder.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repo": "birds", "license": "mit"}, "expected owner/name"),
        ({"repo": "a/b@c", "license": "mit"}, "expected owner/name"),
        ({"repo": "a/b"}, "hub.license is not set"),
        ({"every": -1}, "hub.every=-1"),
    ],
)
def test_wrong_options(values, message):
    with pytest.raises(ValueError, match=message):
        HubConfig(**values)


def test_pushes_come_with_checkpoints(train_run):
    with pytest.raises(ValueError, match="hub.every=6: expected a multiple of loop.checkpoint_every=4"):
        train_run(hub={**REPO, "every": 6})
