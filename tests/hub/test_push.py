import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_content import commits, content
from hub_server import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN
from huggingface_hub import HfApi, close_session

from ar_t2i.bundles import load_bundle, save_bundle
from ar_t2i.hub import remote
from ar_t2i.hub.names import resolve
from ar_t2i.hub.pull import PullConfig, pull
from ar_t2i.push import PushConfig, push
from ar_t2i.sampling.logits import SamplingConfig

CARD = '---\nlicense: apache-2.0\n---\n\n# Birds\n\n`from_pretrained("path/to/this/folder")`\n'


@pytest.fixture(scope="module")
def bundle(model, vocabulary, image_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bundle"
    return save_bundle(folder, model, vocabulary, image_tokenizer, SamplingConfig(), CARD, words=["a", "bird"])


def test_a_bundle_goes_up_whole_and_comes_down_whole(hub, bundle, tmp_path, capsys):
    push(PushConfig(folder=str(bundle), to="tester/birds", dataset="tester/scenes"))
    there = content(hub, "tester/birds")
    here = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    card = there.pop("README.md").decode()
    here.pop("README.md")
    assert there == here and len(here) > 8
    assert "license: apache-2.0" in card and "- tester/scenes" in card and "text-to-image" in card
    assert 'from_pretrained("tester/birds")' in card and "path/to" not in card
    assert pull(PullConfig(repo="tester/birds", out=str(tmp_path / "again"))) == tmp_path / "again"
    again = {p.relative_to(tmp_path / "again").as_posix() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert again == {*here, "README.md"}
    ids = torch.arange(9)[None]
    expected = load_bundle(bundle).model(ids).logits
    assert torch.equal(load_bundle(tmp_path / "again").model(ids).logits, expected)
    assert torch.equal(load_bundle("tester/birds").model(ids).logits, expected)
    assert "compared with their checksums" in capsys.readouterr().out


def test_what_is_there_is_not_sent_again_and_what_is_gone_goes(hub, bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    push(PushConfig(folder=str(copy), to="tester/birds"))
    hub.clear_log()
    push(PushConfig(folder=str(copy), to="tester/birds"))
    assert not hub.requests("PUT") and not hub.requests("POST", "/commit/")
    (copy / "words.txt").unlink()
    facts = json.loads((copy / "ar_t2i.json").read_text())
    facts["fingerprints"].pop("words.txt")
    (copy / "ar_t2i.json").write_text(json.dumps(facts))
    api = HfApi()
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.rst", repo_id="tester/birds")
    push(PushConfig(folder=str(copy), to="tester/birds"))
    names = set(content(hub, "tester/birds"))
    assert "words.txt" not in names and "notes.rst" in names, "what is not ours stays"
    assert not hub.requests("PUT"), "the weights were there"


def test_branches_tags_pull_requests_and_private(hub, bundle):
    push(PushConfig(folder=str(bundle), to="acme/birds", private=True, tag="v1"))
    assert hub.hub.repos["model", "acme/birds"].private
    push(PushConfig(folder=str(bundle), to="acme/birds@trial", message="a trial"))
    assert b'("acme/birds@trial")' in content(hub, "acme/birds", revision="trial")["README.md"]
    changed = CARD.replace("Birds", "More birds")
    (bundle / "README.md").write_text(changed)
    push(PushConfig(folder=str(bundle), to="acme/birds", pull_request=True, message="more birds"))
    (bundle / "README.md").write_text(CARD)
    assert b"More birds" in content(hub, "acme/birds", revision="refs/pr/1")["README.md"]
    assert b"More birds" not in content(hub, "acme/birds")["README.md"]
    assert hub.hub.repos["model", "acme/birds"].pr_info["1"]["status"] == "open"
    for revision in ("v1", "trial", "refs/pr/1", commit_of(hub, "acme/birds")):
        assert load_bundle(f"acme/birds@{revision}").words == {"a", "bird"}
    with pytest.raises(ValueError, match="no such revision"):
        resolve("acme/birds@nowhere")
    push(PushConfig(folder=str(bundle), to="acme/birds", message="x", tag="v1"))
    (bundle / "README.md").write_text(changed)
    with pytest.raises(ValueError, match="has a tag 'v1' already"):
        push(PushConfig(folder=str(bundle), to="acme/birds", tag="v1"))
    (bundle / "README.md").write_text(CARD)


def commit_of(hub, repo_id):
    return hub.hub.repos["model", repo_id].branches["main"]


def test_a_tag_that_is_taken_is_told_before_anything_is_sent(hub, bundle):
    config = PushConfig(folder=str(bundle), to="tester/birds", tag="v1")
    push(config)
    push(config)
    (bundle / "README.md").write_text(CARD + "new")
    before = commits(hub, "tester/birds")
    with pytest.raises(ValueError, match="has a tag 'v1' already"):
        push(config)
    with pytest.raises(ValueError, match="tag 'a b': expected letters"):
        push(PushConfig(folder=str(bundle), to="tester/birds", tag="a b"))
    with pytest.raises(ValueError, match="birds@v1 is a tag or a commit"):
        push(PushConfig(folder=str(bundle), to="tester/birds@v1"))
    (bundle / "README.md").write_text(CARD)
    assert commits(hub, "tester/birds") == before


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(hub, bundle):
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    rule = hub.fail(method="POST", path="/discussions", action="reset", when="after")
    (bundle / "README.md").write_text(CARD + "new")
    push(PushConfig(folder=str(bundle), to="tester/birds", pull_request=True, message="more"))
    assert rule.hits == 1 and len(hub.hub.repos["model", "tester/birds"].prs) == 1
    with pytest.raises(ValueError, match="--pull-request is made to main"):
        push(PushConfig(folder=str(bundle), to="tester/birds@b", pull_request=True))
    (bundle / "README.md").write_text(CARD)


def test_private_does_not_mean_public(hub, bundle):
    HfApi().create_repo("tester/birds")
    with pytest.raises(ValueError, match="tester/birds is there and public: make it private"):
        push(PushConfig(folder=str(bundle), to="tester/birds", private=True))
    assert not content(hub, "tester/birds")


def test_a_card_that_is_pushed_elsewhere_tells_the_new_id(hub, bundle, tmp_path):
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    out = pull(PullConfig(repo="tester/birds", out=str(tmp_path / "birds")))
    push(PushConfig(folder=str(out), to="acme/copy"))
    assert b'from_pretrained("acme/copy")' in content(hub, "acme/copy")["README.md"]


def test_a_dry_run_tells_what_would_be_deleted_and_knows_new_branches(hub, bundle, tmp_path, capsys):
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    for name in ("LICENSE", "photo.png", "vocab.json"):
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="tester/birds")
    push(PushConfig(folder=str(bundle), to="tester/birds@new", dry_run=True))
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("gone")] == [
        ["gone", "2", "vocab.json"]
    ]
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    names = set(content(hub, "tester/birds"))
    assert {"LICENSE", "photo.png"} <= names and "vocab.json" not in names


def test_a_part_of_a_bundle_does_not_replace_the_bundle(hub, bundle):
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    with pytest.raises(ValueError, match="holds a bundle, whose files this image tokenizer would replace"):
        push(PushConfig(folder=str(bundle / "image_tokenizer"), to="tester/birds", license="mit"))


def test_a_dry_run_lists_all_and_sends_nothing(hub, bundle, capsys):
    push(PushConfig(folder=str(bundle), to="tester/birds", dry_run=True))
    told = capsys.readouterr().out
    assert ("model", "tester/birds") not in hub.hub.repos
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert {line.split()[-1] for line in told.splitlines() if line.startswith("new")} == names
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    (bundle / "README.md").write_text(CARD + "changed")
    before = commits(hub, "tester/birds")
    push(PushConfig(folder=str(bundle), to="tester/birds", dry_run=True))
    (bundle / "README.md").write_text(CARD)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("changed")] == ["README.md"]
    assert sum(line.startswith("same") for line in lines) == len(names) - 1 and commits(hub, "tester/birds") == before


def test_only_what_is_on_the_list_goes_up(hub, bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    for name in ("optimizer.pt", "modeling_birds.py", "image_tokenizer/notes.txt", "data/secrets.csv"):
        path = copy / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        with pytest.raises(ValueError, match=f"{path.name} does not belong to a bundle"):
            push(PushConfig(folder=str(copy), to="tester/birds"))
        path.unlink()
    (copy / "README.md").write_text(CARD + f"my token is {WRITE_TOKEN}")
    with pytest.raises(ValueError, match="README.md holds an access token") as error:
        push(PushConfig(folder=str(copy), to="tester/birds"))
    assert WRITE_TOKEN not in str(error.value)
    for option in ("message", "tag", "license", "dataset", "base_model"):
        with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} holds an access token") as error:
            push(PushConfig(**{"folder": str(copy), "to": "tester/birds", option: f"by {WRITE_TOKEN}"}))
        assert WRITE_TOKEN not in str(error.value)
    (copy / "README.md").write_text("no licence")
    with pytest.raises(ValueError, match="the card names no licence: give --license"):
        push(PushConfig(folder=str(copy), to="tester/birds"))
    with pytest.raises(ValueError, match="is none of bundle, checkpoint"):
        push(PushConfig(folder=str(tmp_path), to="tester/birds"))
    (copy / "ar_t2i.json").rename(tmp_path / "ar_t2i.json")
    with pytest.raises(ValueError, match="is a checkpoint of transformers without ar_t2i.json"):
        push(PushConfig(folder=str(copy), to="tester/birds", license="mit"))
    (tmp_path / "ar_t2i.json").rename(copy / "ar_t2i.json")
    with pytest.raises(ValueError, match="neither a folder here nor an id"):
        push(PushConfig(folder=str(copy), to="birds"))
    assert not hub.hub.repos


REQUESTS = [
    ("POST", "/api/repos/create"),
    ("GET", "/api/models/tester/birds/revision"),
    ("GET", "/tree/"),
    ("POST", "/preupload/"),
    ("POST", "/info/lfs/objects/batch"),
    ("PUT", ""),
    ("POST", "/commit/"),
]


@pytest.mark.parametrize("what", [{"status": 503}, {"action": "reset"}], ids=["503", "reset"])
@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_a_fault_on_any_request_is_got_over(hub, bundle, method, path, what):
    fault = hub.fail(method=method, path=path, times=2, **what)
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    assert fault.hits == 2
    assert commits(hub, "tester/birds") == ["bundle by ar_t2i", "initial commit"]
    assert len(content(hub, "tester/birds")) == sum(path.is_file() for path in bundle.rglob("*"))


@pytest.mark.parametrize("fault", [{"action": "reset", "when": "after"}, {"action": "status", "when": "after"}])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, bundle, fault):
    rule = hub.fail(method="POST", path="/commit/", **fault)
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    assert rule.hits == 1 and commits(hub, "tester/birds") == ["bundle by ar_t2i", "initial commit"]


def test_a_commit_that_stalls_is_given_up_and_tried_again(hub, bundle, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    close_session()
    rule = hub.fail(method="POST", path="/commit/", action="hang", seconds=3)
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    assert rule.hits == 1 and commits(hub, "tester/birds") == ["bundle by ar_t2i", "initial commit"]


def test_a_push_from_elsewhere_in_between_is_built_upon(hub, bundle):
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    (bundle / "README.md").write_text(CARD + "new")
    rule = hub.fail(method="POST", path="/commit/", status=412)
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    (bundle / "README.md").write_text(CARD)
    assert rule.hits == 1 and content(hub, "tester/birds")["README.md"].endswith(b"new")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_wrongwrongwrongwrong", r"\(401\): log in with `hf auth login`"),
        (READ_TOKEN, r"\(403\): take one with write access"),
        (OTHER_TOKEN, r"\(403\): take one with write access, or another namespace"),
    ],
)
def test_a_token_that_may_not_is_told_without_naming_it(hub, bundle, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=message) as error:
        push(PushConfig(folder=str(bundle), to="tester/birds"))
    seen: BaseException | None = error.value
    while seen is not None:
        assert token not in str(seen) and token not in repr(seen)
        seen = seen.__cause__
    assert len(hub.requests("POST")) == (0 if "401" in message else 1), "no use in trying again"


def test_a_hub_that_stays_away_is_said(hub, bundle):
    hub.fail(method="POST", path="/commit/", times=0)
    with pytest.raises(ValueError, match=r"cannot push to tester/birds: .* in 6 attempts \(503\): run it again later"):
        push(PushConfig(folder=str(bundle), to="tester/birds"))
    hub.clear_faults()
    hub.clear_log()
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    assert not hub.requests("PUT"), "the second push sends only what is missing"


def test_a_push_that_another_one_undid_is_told(hub, bundle, monkeypatch):
    push(PushConfig(folder=str(bundle), to="tester/birds"))
    create = HfApi.create_commit

    def undone(self, *args, **values):
        create(self, *args, **values)
        monkeypatch.setattr(HfApi, "create_commit", create)
        self.upload_file(path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id="tester/birds")

    monkeypatch.setattr(HfApi, "create_commit", undone)
    (bundle / "README.md").write_text(CARD + "new")
    with pytest.raises(ValueError, match="holds another 'README.md' than was pushed"):
        push(PushConfig(folder=str(bundle), to="tester/birds"))
    (bundle / "README.md").write_text(CARD)
