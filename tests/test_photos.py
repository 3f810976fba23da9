"""The whole way on real photographs: preprocess, load, train, draw, with the tiny TiTok of the golden numbers."""

import json
import shutil

import pytest
import yaml

from ar_t2i.cli import main
from ar_t2i.training.trackers import read_metrics


@pytest.fixture
def titok_folder(shared, tmp_path):
    folder = tmp_path / "titok"
    folder.mkdir()
    shutil.copy(shared / "golden/titok/titok_tiny_legacy.json", folder / "config.json")
    shutil.copy(shared / "golden/titok/titok_tiny_legacy.safetensors", folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_photographs_end_to_end(shared, titok_folder, tmp_path, run_options, capsys):
    import datasets

    photos, tokens = shared / "data/photos", tmp_path / "tokens"
    vocabulary = tmp_path / "vocabulary"
    train_tars = str(photos / "photos-train-{0000..0007}.tar")
    assert main(["vocabulary", train_tars, "--out", str(vocabulary)]) == 0
    common = ["--out", str(tokens), "--image-tokenizer", str(titok_folder), "--vocabulary", str(vocabulary)]
    assert main(["preprocess", train_tars, *common]) == 0
    assert main(["preprocess", str(photos / "photos-validation-0000.tar"), "--split", "validation", *common]) == 0

    rows = datasets.load_dataset(str(tokens))
    assert {split: len(part) for split, part in rows.items()} == {"train": 800, "validation": 100}
    assert rows["train"].column_names == ["__key__", "image_tokens", "text_tokens", "text", "data"]

    options = run_options | {"vocabulary": str(vocabulary), "image_tokenizer": str(titok_folder)}
    options["data"] = {"dataset": str(tokens), "batch_size": 16, "bpe_dropout": 0.1, "workers": 1}
    options["loop"] = options["loop"] | {"steps": 200, "evaluate_every": 100, "checkpoint_every": 100, "log_every": 10}
    options["samples"] = {"every": 100, "prompts": ["a photo of a bird"], "num_images": 2}
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "--config", str(tmp_path / "photos.yaml")]) == 0
    losses = [
        record["image_loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "image_loss" in record
    ]
    assert losses[-1] < losses[0] - 0.5

    capsys.readouterr()
    bundle, out = str(tmp_path / "run" / "bundle"), str(tmp_path / "out")
    assert main(["infer", "a photo of a bird", "--num-images", "3", "--bundle", bundle, "--out", out, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3
