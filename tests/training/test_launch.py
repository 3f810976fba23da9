"""The doors as a user opens them: `python train.py`, and with two processes, which on CPUs torchrun starts."""

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
def test_train_through_both_doors(run_options, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_options))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    # `accelerate launch --cpu --num_processes 2` starts one process where there is no MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0"]
    losses = {}
    for name, door in {"alone": [sys.executable], "two": launch}.items():
        options = [f"output={tmp_path / name}", "data.batch_size=16" if name == "alone" else "data.batch_size=8"]
        command = [*door, str(ROOT / "train.py"), "--config", str(tmp_path / "run.yaml"), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        losses[name] = [record["validation_image_loss"] for record in records if "validation_image_loss" in record]
        assert (tmp_path / name / "bundle" / "ar_t2i.json").is_file()
        state = json.loads((tmp_path / name / "checkpoints" / "step-000008" / "state.json").read_text())
        assert state["facts"]["processes"] == (1 if name == "alone" else 2)
    assert len(losses["two"]) == 2 and losses["two"] == pytest.approx(losses["alone"], abs=0.02)
