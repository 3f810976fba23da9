"""Model, discriminator, LeCam averages and restarted codes do not depend on how pictures are spread."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ar_t2i.image_tokenizer import load_image_tokenizer
from ar_t2i.training.trackers import read_metrics

WORKER = Path(__file__).with_name("one_step.py")
PROCESSES = ["-m", "torch.distributed.run", "--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0"]


def steps(tmp_path, processes: int, accumulation: int) -> dict:
    """Two steps over the same eight scenes each, in their own processes."""
    out = tmp_path / f"{processes}-{accumulation}.json"
    launch = [*PROCESSES, f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, str(WORKER), str(accumulation), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def test_processes_and_accumulation_change_nothing(tmp_path):
    whole = steps(tmp_path, processes=1, accumulation=1)
    assert whole["values"][0]["restarted_codes"] > 8 and whole["values"][1]["lecam_loss"] > 0.1
    spread = steps(tmp_path, processes=2, accumulation=2)
    for one, two in zip(spread["values"], whole["values"], strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
    checked = 0
    for name, weights in whole["weights"].items():
        found = torch.tensor(spread["weights"][name])
        torch.testing.assert_close(found, torch.tensor(weights), atol=2e-5, rtol=1e-4, msg=lambda m, n=name: n + m)
        checked += len(found)
    assert checked > 1000 and whole["values"][0]["n_pictures"] == 8


@pytest.mark.slow
def test_two_processes_through_the_command_line(tmp_path):
    """It trains, writes a tokenizer that loads, and measures what one process measures."""
    size = {"width": 32, "num_layers": 1, "num_heads": 2}
    options = {
        "recipe": "single_stage", "workers": 0, "validation_pictures": 3, "batch_size": 2,
        "loop": {"steps": 3, "log_every": 1, "trackers": [], "precision": "fp32"},
        "gan": {"start": 1, "hidden_channels": 32, "stages": 2},
        "model": {
            "image_size": 64, "num_latent_tokens": 4, "codebook_size": 16, "token_size": 4, "encoder": size,
            "decoder": size,
        },
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    launch = [sys.executable, *PROCESSES, "--nproc_per_node=2", "-m"]
    found = {}
    for name, door in {"alone": [sys.executable, "-m"], "two": launch}.items():
        overrides = [f"output={tmp_path / name}", f"batch_size={4 if name == 'alone' else 2}"]
        command = [*door, "ar_t2i.cli", "tokenizer", "train", "--config", str(tmp_path / "run.yaml"), *overrides]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        found[name] = [record["loss"] for record in records if "loss" in record]
        (state,) = (tmp_path / name / "checkpoints").glob("*/state.json")
        assert json.loads(state.read_text())["facts"]["processes"] == (1 if name == "alone" else 2)
        assert load_image_tokenizer(tmp_path / name / "tokenizer").num_codes == 4
    assert len(found["two"]) == 3 and found["two"] == pytest.approx(found["alone"], rel=1e-3)
