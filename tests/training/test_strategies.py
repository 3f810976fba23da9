"""Alone, DDP and FSDP2 train the same: a run does not tell how its weights were spread, and can be spread anew."""

import importlib.util
import json
import signal
import subprocess
import time
from pathlib import Path

import launch
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ar_t2i.training.trackers import read_metrics

WAYS = {"alone": (1, "ddp", 16, 1), "ddp": (2, "ddp", 4, 2), "fsdp": (2, "fsdp", 4, 2)}
if importlib.util.find_spec("deepspeed"):
    WAYS["deepspeed"] = 2, "deepspeed", 4, 2
"""Processes, strategy, rows of a micro-batch, micro-batches: 16 rows a step in all."""


@pytest.fixture
def config(run_options, tmp_path) -> Path:
    """A run without dropout of the network, which draws for each process."""
    options = {**run_options, "data": {**run_options["data"], "workers": 0}}
    options["loop"] = {**options["loop"], "trackers": []}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    return tmp_path / "run.yaml"


def start(config: Path, output: Path, way: str, *options: str) -> Path:
    processes, strategy, rows, accumulation = WAYS[way]
    spread = [f"data.batch_size={rows}", f"loop.gradient_accumulation_steps={accumulation}"]
    launch.launch(config, f"output={output}", *spread, *options, processes=processes, strategy=strategy)
    return output


def curve(output: Path, name: str) -> np.ndarray:
    return np.array([record[name] for record in read_metrics(output / "metrics.jsonl") if name in record])


def check_same(output: Path, other: Path, steps: int, tolerance: float = 1e-4) -> None:
    """Sums of float32 in another order differ by some 1e-7 of them; 1e-4 leaves room for what 50 steps make of that,
    2e-6 for what a few do: rounding stays rounding, another computation does not."""
    for name in ("loss", "image_loss", "text_loss", "validation_image_loss", "grad_norm"):
        np.testing.assert_allclose(curve(output, name), curve(other, name), rtol=tolerance, err_msg=name)
    assert len(curve(output, "loss")) == steps
    for kind in ("model", "ema"):
        mine, theirs = (
            load_file(next(path.glob(f"checkpoints/*{steps}/{kind}.safetensors"))) for path in (output, other)
        )
        assert mine.keys() == theirs.keys()
        for tensor, expected in zip(mine.values(), theirs.values(), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-5)
    states = [json.loads(next(path.glob(f"checkpoints/*{steps}/state.json")).read_text()) for path in (output, other)]
    assert states[0]["facts"] == states[1]["facts"] and states[0]["step"] == steps
    mine, theirs = (load_file(path / "bundle" / "model.safetensors") for path in (output, other))
    assert mine.keys() == theirs.keys(), "a bundle is written the same from all"
    pictures = [sorted((path / "samples" / f"step-{steps:06d}").iterdir()) for path in (output, other)]
    assert len(pictures[0]) == 2, "each process draws some of the prompts"
    for left, right in zip(*pictures, strict=True):
        with Image.open(left) as one, Image.open(right) as two:
            difference = np.asarray(one).astype(int) - np.asarray(two)
            assert np.abs(difference).max() <= 1, f"{left}: more than rounding, so other codes"


def test_fsdp_trains_as_one_process_does_and_goes_on_as_one(config, tmp_path):
    short = ("loop.steps=6", "loop.checkpoint_every=3", "loop.keep_checkpoints=9", "loop.evaluate_every=3")
    alone = start(config, tmp_path / "alone", "alone", *short)
    fsdp = start(config, tmp_path / "fsdp", "fsdp", *short)
    check_same(alone, fsdp, 6, tolerance=2e-6)


@pytest.mark.slow
def test_all_strategies_train_the_same(config, tmp_path):
    long = ("loop.steps=50", "loop.checkpoint_every=25", "loop.keep_checkpoints=9", "loop.evaluate_every=10")
    outputs = {way: start(config, tmp_path / way, way, *long) for way in WAYS}
    for way in set(WAYS) - {"alone"}:
        check_same(outputs[way], outputs["alone"], 50)


@pytest.mark.slow
def test_a_run_goes_on_spread_in_another_way(config, tmp_path):
    """1 -> 2 with FSDP -> 2 with DDP (or DeepSpeed) -> 1, at each end of a part; the same as never stopping."""
    long = ("loop.steps=24", "loop.checkpoint_every=6", "loop.keep_checkpoints=9", "loop.evaluate_every=6")
    whole = start(config, tmp_path / "whole", "alone", *long)
    moved = tmp_path / "moved"
    for number, way in enumerate(("alone", "fsdp", "deepspeed" if "deepspeed" in WAYS else "ddp", "alone")):
        resume = ("--resume", "auto") if number else ()
        processes, strategy, rows, accumulation = WAYS[way]
        spread = [f"data.batch_size={rows}", f"loop.gradient_accumulation_steps={accumulation}"]
        line = launch.command(config, f"output={moved}", *spread, *long, *resume, processes=processes)
        run_until(line, launch.environment(strategy), moved, 6 * (number + 1))
    check_same(moved, whole, 24)


def run_until(line: list[str], environment: dict[str, str], output: Path, step: int) -> None:
    """Run, and take the machine away (SIGTERM) once a checkpoint of that step is there, or wait for the end."""
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (output / "checkpoints" / f"step-{step:06d}" / "state.json").exists():
        time.sleep(0.05)
    if step < 24 and process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert step < 24 or process.returncode == 0, told[-3000:]
