"""Every yaml in configs/ parses to its dataclass, and its header tells how to run it."""

from importlib import import_module
from pathlib import Path

import pytest

from ar_t2i.cli import RECIPES
from ar_t2i.config import build, gather, load, to_yaml
from ar_t2i.evaluation.reader_training import ReaderTrainingConfig
from ar_t2i.training.decoder import TrainConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
TOKENIZERS = RECIPES["tokenizer train"]


def options_of(path):
    """The dataclass of a yaml file, as the command in its header reads it, and the file's values."""
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    values = gather(path)
    if path.name == "verifier.yaml":
        assert "ReaderTrainingConfig, 'configs/verifier.yaml'" in header
        return ReaderTrainingConfig, values
    command = next(line for line in header.splitlines() if f"--config configs/{path.name}" in line)
    if "tokenizer train" not in command:
        return TrainConfig, values
    module, name, *_ = TOKENIZERS[values.pop("recipe", "slots")]
    return getattr(import_module(module), name), values


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_parses_and_reads_back(path, tmp_path):
    cls, values = options_of(path)
    options = build(cls, values)
    (tmp_path / "again.yaml").write_text(to_yaml(options))
    assert load(cls, tmp_path / "again.yaml") == options


def test_there_are_configs():
    assert {"scenes.yaml", "cc3m.yaml", "tokenizer-scenes.yaml", "titok-l32-stage1.yaml"} <= {p.name for p in CONFIGS}


def test_every_recipe_has_a_config_for_the_scenes_and_one_of_published_size():
    """Those of published size say that nobody has run them, and have the values of the original's yaml files."""
    sizes = {}
    for path in CONFIGS:
        values = gather(path)
        if "recipe" in values:
            sizes.setdefault(values["recipe"], []).append(values["data"] == "scenes")
            assert ("Nobody has run this here" in path.read_text()) == (values["data"] != "scenes"), path
    assert {recipe: sorted(found) for recipe, found in sizes.items()} == {
        "vqgan": [True], "stage1": [False, True], "stage2": [False, True], "single_stage": [False, True],
    }  # fmt: skip
    folder = CONFIGS[0].parent
    for name, learning_rate, tokens in (("titok-l32-stage1", 1e-4, 32), ("titok-bl64-single-stage", 1e-4, 64)):
        values = gather(folder / f"{name}.yaml")
        assert values["batch_size"] == 32 and values["model"]["num_latent_tokens"] == tokens
        assert float(values["optim"]["lr"]) == learning_rate and float(values["optim"]["weight_decay"]) == 1e-4
        assert values["optim"]["ema_decay"] == 0.999
