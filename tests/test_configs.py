"""Every yaml in configs/ parses to its dataclass, and its header tells how to run it."""

from pathlib import Path

import pytest

from ar_t2i.config import load, to_yaml
from ar_t2i.training.decoder import TrainConfig
from ar_t2i.training.slots import SlotTrainingConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_parses_and_reads_back(path, tmp_path):
    cls = SlotTrainingConfig if path.name.startswith("tokenizer") else TrainConfig
    options = load(cls, path)
    (tmp_path / "again.yaml").write_text(to_yaml(options))
    assert load(cls, tmp_path / "again.yaml") == options
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config configs/{path.name}" in line for line in header)


def test_there_are_configs():
    assert {"scenes.yaml", "cc3m.yaml"} <= {path.name for path in CONFIGS}
