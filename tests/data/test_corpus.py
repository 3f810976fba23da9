"""Captions from tables, tars, scenes and the Hub become one vocabulary."""

import importlib.util
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ar_t2i.cli import main
from ar_t2i.data.corpus import VocabularyConfig, iterate_corpus
from ar_t2i.vocabulary import Vocabulary

CLI = "import sys; from ar_t2i.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def captions_parquet(tmp_path):
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"number": [1, 2, 3], "Prompt": ["a red bird", "", "two fish by the sea"]}), path)
    return path


def test_tables_and_scenes(captions_parquet, tmp_path, capsys):
    (tmp_path / "more.csv").write_text("name,words\n1,a green tree\n")
    captions = list(iterate_corpus(VocabularyConfig(sources=(str(captions_parquet),), out="", scenes=50)))
    assert captions[:2] == ["a red bird", "two fish by the sea"] and len(captions) == 52
    out = tmp_path / "vocabulary"
    command = ["vocabulary", str(tmp_path / "more.csv"), "--column", "words", "--scenes", "50", "--out", str(out)]
    assert main(command) == 0
    vocabulary = Vocabulary.from_pretrained(out)
    assert vocabulary.size > 9 + 4096 + 256
    said = capsys.readouterr().out
    assert f"{vocabulary.size:,} ids" in said and "too few merges for 30,000" in said


def test_wrong_sources_are_named(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    for arguments, message in (
        ([], "no captions: name a source"),
        ([str(tmp_path / "none-*.tar")], "none-*.tar"),
        ([str(tmp_path / "table.csv")], "table.csv"),
        (["--scenes", "5", "--size", "100"], "size=100: expected at least 4361"),
    ):
        assert main(["vocabulary", *arguments, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_hub_dataset(shared, captions_parquet, tmp_path):
    """Read over HTTP by the unmodified client from a local server."""
    spec = importlib.util.spec_from_file_location("hub_server", shared / "hub/hub_server.py")
    hub_server = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = hub_server
    spec.loader.exec_module(hub_server)
    upload = (
        "import sys; from huggingface_hub import HfApi; api = HfApi();"
        "api.create_repo('tester/captions', repo_type='dataset');"
        "api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo='data/train-00000-of-00001.parquet',"
        " repo_id='tester/captions', repo_type='dataset')"
    )
    with hub_server.HubServer() as hub:
        online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        env = {**online, **{name: str(value) for name, value in hub.env(tmp_path / "home").items()}}
        subprocess.run([sys.executable, "-c", upload, str(captions_parquet)], env=env, check=True, capture_output=True)
        command = [
            sys.executable,
            "-c",
            CLI,
            "vocabulary",
            "tester/captions",
            "--column",
            "Prompt",
            "--out",
            str(tmp_path / "v"),
        ]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        missing = subprocess.run([*command[:4], "tester/none", *command[5:]], env=env, capture_output=True, text=True)
    assert Vocabulary.from_pretrained(tmp_path / "v").codebook_size == 4096
    assert missing.returncode == 2 and "cannot read the Hub dataset 'tester/none'" in missing.stderr
