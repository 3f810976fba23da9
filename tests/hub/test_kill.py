"""kill -9 in the middle of a push and of a pull: the same command ends it."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hub_content import commits, content
from safetensors.numpy import save_file


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
