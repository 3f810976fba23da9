"""The doors as a user opens them: `python train.py`, and `accelerate launch` with the configurations that ship."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ar_t2i.training.trackers import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_train_through_all_doors(run_options, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_options))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    doors = {"alone": [sys.executable]}
    for name in ("ddp", "fsdp"):
        doors[name] = [*launch, "--config_file", str(ROOT / "configs" / "accelerate" / f"{name}.yaml")]
    losses = {}
    for name, door in doors.items():
        options = [f"output={tmp_path / name}", f"data.batch_size={16 if name == 'alone' else 8}"]
        command = [*door, str(ROOT / "train.py"), "--config", str(tmp_path / "run.yaml"), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        losses[name] = [record["validation_image_loss"] for record in records if "validation_image_loss" in record]
        assert (tmp_path / name / "bundle" / "ar_t2i.json").is_file()
        state = json.loads((tmp_path / name / "checkpoints" / "step-000008" / "state.json").read_text())
        assert state["facts"]["rows_per_step"] == 16
    assert len(losses["alone"]) == 2
    assert losses["ddp"] == pytest.approx(losses["alone"], rel=1e-4)
    assert losses["fsdp"] == pytest.approx(losses["alone"], rel=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "multi_node"])
def test_accelerate_reads_the_configurations(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 8 * config.num_machines
    assert (config.fsdp_config or {}).get("fsdp_version", 2) == 2
