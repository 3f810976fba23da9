import errno
import os
from pathlib import Path

import pytest
from hub_server import OTHER_TOKEN
from huggingface_hub import HfApi, constants

from ar_t2i.bundles import load_bundle
from ar_t2i.hub import remote
from ar_t2i.hub.names import resolve, split_id
from ar_t2i.hub.pull import PullConfig, pull


@pytest.fixture
def repo(hub, image_tokenizer_folder) -> str:
    """A small repository with an image tokenizer, and things that nobody asked for."""
    api = HfApi()
    api.create_repo("tester/codes")
    api.upload_folder(repo_id="tester/codes", folder_path=image_tokenizer_folder)
    api.upload_file(path_or_fileobj=b"raise SystemExit", path_in_repo="modeling_codes.py", repo_id="tester/codes")
    api.upload_file(path_or_fileobj=b"\x80", path_in_repo="optimizer.pt", repo_id="tester/codes")
    hub.clear_log()
    return "tester/codes"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_data_comes_down(repo, tmp_path):
    out = pull(PullConfig(repo=repo, out=str(tmp_path / "codes")))
    assert names(out) == {"config.json", "model.safetensors"}
    assert {path.name for path in resolve(repo).iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("how", ["folder", "cache"])
def test_a_flipped_byte_is_caught_and_fetched_again(hub, repo, tmp_path, how, image_tokenizer_folder):
    rule = hub.fail(method="GET", path="resolve/.*model.safetensors", action="corrupt")
    folder = pull(PullConfig(repo=repo, out=str(tmp_path / "codes"))) if how == "folder" else resolve(repo)
    assert rule.hits == 1
    assert (folder / "model.safetensors").read_bytes() == (image_tokenizer_folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", ["folder", "cache"])
def test_bytes_that_stay_damaged_are_refused(hub, repo, tmp_path, how):
    hub.fail(method="GET", path="resolve/.*model.safetensors", action="corrupt", times=0)
    with pytest.raises(ValueError, match="model.safetensors came damaged from the Hub twice"):
        pull(PullConfig(repo=repo, out=str(tmp_path / "codes"))) if how == "folder" else resolve(repo)
    assert not (tmp_path / "codes" / "model.safetensors").exists(), "nobody takes it for whole"


@pytest.mark.parametrize("how", ["folder", "cache"])
@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"action": "reset"}, {"action": "truncate"}, {"action": "truncate-rst"}]
)
def test_a_fault_on_the_way_is_got_over(hub, repo, tmp_path, how, fault, image_tokenizer_folder):
    rule = hub.fail(method="GET", path="resolve/.*model.safetensors", **fault)
    folder = pull(PullConfig(repo=repo, out=str(tmp_path / "codes"))) if how == "folder" else resolve(repo)
    assert rule.hits == 1
    assert (folder / "model.safetensors").read_bytes() == (image_tokenizer_folder / "model.safetensors").read_bytes()


def test_the_cache_serves_without_network_and_is_checked_once(hub, repo, monkeypatch):
    folder = resolve(repo)
    looked = []
    from ar_t2i.hub import names as module

    digest = module.file_digest
    monkeypatch.setattr(module, "file_digest", lambda *args: looked.append(args) or digest(*args))
    hub.stop()
    assert resolve(repo) == folder and not looked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(repo) == folder and not looked
    blob = Path(os.path.realpath(folder / "model.safetensors"))
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="neither a folder here nor in the cache|damaged"):
        resolve(repo)
    assert looked


def test_a_pull_is_not_mixed_with_an_older_one(hub, repo, tmp_path):
    out = tmp_path / "codes"
    pull(PullConfig(repo=repo, out=str(out)))
    pull(PullConfig(repo=repo, out=str(out)))
    HfApi().delete_file("config.json", repo)
    with pytest.raises(ValueError, match=r"config.json is not of tester/codes \(1 such files\)"):
        pull(PullConfig(repo=repo, out=str(out)))
    with pytest.raises(ValueError, match="is a model: give --type model"):
        pull(PullConfig(repo=repo, out=str(out), type="dataset"))


def test_a_busy_hub_does_not_mean_an_old_revision(hub, repo):
    resolve(repo)
    HfApi().upload_file(path_or_fileobj=b'{"new": 1}', path_in_repo="config.json", repo_id=repo)
    rule = hub.fail(method="GET", path="/api/models/tester/codes", status=503, times=2)
    assert (resolve(repo) / "config.json").read_text() == '{"new": 1}' and rule.hits == 2


def test_no_way_to_the_hub_is_said_at_once(hub, repo, monkeypatch, capsys, vocabulary_folder):
    api = HfApi()
    api.create_repo("tester/words")
    api.upload_folder(repo_id="tester/words", folder_path=vocabulary_folder)
    folders = [resolve(name) for name in (repo, "tester/words")]
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    hub.stop()
    assert [resolve(name) for name in (repo, "tester/words")] == folders
    told = [line for line in capsys.readouterr().err.splitlines() if "is taken from the cache" in line]
    assert len(told) == 2 and all("check the network" in line for line in told)
    with pytest.raises(ValueError, match="neither a folder here nor in the cache, and cannot download .*the network"):
        resolve("tester/nothing")


def test_pickles_are_refused_by_name(hub, tmp_path):
    api = HfApi()
    api.create_repo("tester/pickled")
    for name in ("config.json", "pytorch_model.bin"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="tester/pickled")
    for call in (
        lambda: pull(PullConfig(repo="tester/pickled", out=str(tmp_path / "x"))),
        lambda: resolve("tester/pickled"),
    ):
        with pytest.raises(ValueError, match="weights as pytorch_model.bin, a pickle"):
            call()


@pytest.mark.parametrize("how", ["folder", "cache"])
@pytest.mark.parametrize(
    ("status", "message"),
    [(401, r"\(401\): log in with `hf auth login`, or set HF_TOKEN"), (403, r"may not do that \(403\)")],
)
def test_a_repository_that_this_token_may_not_read_is_told(hub, repo, tmp_path, how, status, message):
    hub.fail(method="GET", path="/api/models/tester/codes|resolve/", status=status, times=0)
    with pytest.raises(ValueError, match=message) as error:
        pull(PullConfig(repo=repo, out=str(tmp_path / "codes"))) if how == "folder" else resolve(repo)
    assert "hf_local" not in str(error.value) and not (tmp_path / "codes").exists()
    hub.clear_faults()
    assert names(pull(PullConfig(repo=repo, out=str(tmp_path / "codes")))) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("path", ["/api/models/tester/codes", "resolve/"])
def test_a_hub_that_is_busy_is_asked_again(hub, repo, path):
    rule = hub.fail(method="GET|HEAD", path=path, status=503, times=2)
    assert (resolve(repo) / "model.safetensors").is_file() and rule.hits == 2


def test_a_private_repository_of_somebody_else_is_told(hub, repo, monkeypatch):
    HfApi().update_repo_settings(repo, private=True)
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    with pytest.raises(ValueError, match="or it is private and the token may not see it"):
        resolve(repo)


def test_a_full_disk_is_said_and_a_rerun_ends_it(hub, repo, tmp_path, monkeypatch):
    import huggingface_hub.file_download as download

    get = download.http_get

    def full(*args, **values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    monkeypatch.setattr(download, "http_get", full)
    with pytest.raises(ValueError, match="the disk is full .*free some space, then run it again"):
        pull(PullConfig(repo=repo, out=str(tmp_path / "codes")))
    monkeypatch.setattr(download, "http_get", get)
    assert names(pull(PullConfig(repo=repo, out=str(tmp_path / "codes")))) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["birds", "a/b/c", "no such/folder", "../up", "owner/na me", ""])
def test_names_that_can_mean_nothing(name):
    with pytest.raises(ValueError, match="neither a folder here nor an id of the Hub"):
        split_id(name)


def test_names_and_revisions():
    assert split_id("owner/name") == ("owner/name", "main")
    assert split_id("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")


def test_what_is_not_there_is_told(hub):
    with pytest.raises(ValueError, match=r"no such repository \(404\)"):
        load_bundle("tester/nothing")


def test_a_network_that_is_switched_off_is_told_at_once(monkeypatch):
    from ar_t2i.data.dataset import load_rows

    monkeypatch.setattr(remote.time, "sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    with pytest.raises(ValueError, match=r"in the cache, and the network is switched off \(HF_HUB_OFFLINE\)"):
        load_rows("tester/nothing", "train")
