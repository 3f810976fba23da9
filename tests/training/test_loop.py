"""Loss and gradients of a step do not depend on how its rows are spread over micro-batches and processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ar_t2i.training.loop import _Meter

WORKER = Path(__file__).with_name("one_step.py")


def one_step(tmp_path, processes: int, accumulation: int) -> dict:
    """One optimizer step over the same eight rows, in its own processes."""
    out = tmp_path / f"{processes}-{accumulation}.json"
    launch = [
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--master_port=0",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=127.0.0.1:0",
    ]
    command = [sys.executable, *(launch if processes > 1 else []), str(WORKER), str(accumulation), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def test_accumulation_and_processes_change_nothing(tmp_path):
    """Rows have captions of very different lengths, so a mean of means would be wrong."""
    whole = one_step(tmp_path, processes=1, accumulation=1)
    checked = 0
    for processes, accumulation in ((1, 4), (2, 2)):
        spread = one_step(tmp_path, processes, accumulation)
        assert spread["values"] == pytest.approx(whole["values"], rel=1e-5)
        torch.testing.assert_close(torch.tensor(spread["weights"]), torch.tensor(whole["weights"]), atol=2e-6, rtol=0)
        checked += len(spread["weights"])
    assert checked > 1000 and whole["values"]["n_pictures"] == 8


def test_a_record_holds_what_came_late_and_the_latest_of_what_is_a_total():
    meter = _Meter()
    meter.add({"loss": 1.0, "n_pictures": 2.0})
    meter.add({"loss": 3.0, "n_pictures": 2.0, "dropped_x": 1.0, "lecam_loss": 4.0})
    meter.add({"loss": 5.0, "n_pictures": 2.0, "dropped_x": 3.0, "lecam_loss": 6.0})
    record = meter.read()
    assert record.pop("pictures_per_second") > 0
    assert record == {"loss": 3.0, "dropped_x": 3.0, "lecam_loss": 5.0}
