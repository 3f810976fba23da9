"""A Hub of our own on loopback; the clients are the real ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from huggingface_hub import close_session, constants

sys.path.insert(0, str(Path(__file__).parent))
from hub_server import HubServer, client_env  # noqa: E402

from ar_t2i.hub import remote  # noqa: E402


@pytest.fixture
def hub(tmp_path_factory, monkeypatch) -> Iterator[HubServer]:
    """A Hub that this process talks to as `tester`, with an empty cache."""
    home = tmp_path_factory.mktemp("home")
    with HubServer() as server:
        for name, value in client_env(server.url, home).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # for processes that are started
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }
        for name, value in settings.items():
            assert hasattr(constants, name), name
            monkeypatch.setattr(constants, name, value)
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HUB_DATASETS_URL": server.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_HUB_OFFLINE": False,
        }.items():
            assert hasattr(datasets.config, name), name
            monkeypatch.setattr(datasets.config, name, value)
        monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(remote, "TIMEOUT", 5.0)
        close_session()
        yield server
        close_session()
        assert server.unknown == [], "the server knows each request of the clients"


@pytest.fixture
def command(hub, tmp_path_factory):
    """Run `ar-t2i ...` in a process of its own, with an empty cache of its own; returns the finished process."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        home = tmp_path_factory.mktemp("home")
        settings = {**os.environ, **client_env(hub.url, home), "HF_HUB_OFFLINE": "0", **environment}
        line = [sys.executable, "-m", "ar_t2i.cli", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=240, env=settings)

    return run
