"""What goes wrong in the middle of a run, really done: it ends as the undisturbed one, or says what to do."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import launch
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file

from ar_t2i.training import loop, trackers, watch
from ar_t2i.training.checkpoint import Checkpoint, Saved, damage, find_checkpoint, list_checkpoints, save_checkpoint
from ar_t2i.training.folder import claimed
from ar_t2i.training.parallel import Parallel
from ar_t2i.training.trackers import read_metrics


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "bundle" / "model.safetensors")


def same(output: Path, other: Path) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(output).items())


@pytest.fixture
def run_yaml(run_options, tmp_path) -> Path:
    options = {**run_options, "loop": {**run_options["loop"], "steps": 40, "checkpoint_every": 5, "trackers": []}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    return tmp_path / "run.yaml"


def begin(line: list[str]) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, env=launch.environment(), text=True, start_new_session=True, **pipes)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < limit, process.stderr and process.stderr.read()[-3000:]
        time.sleep(0.02)


# ---- checkpoints


def tiny_state(number: int) -> Saved:
    tensors = {"weight": torch.full((20_000,), float(number))}
    return Saved(tensors, dict(tensors), {"state": {0: {"exp_avg": tensors["weight"] * 2}}, "param_groups": []})


def test_a_worker_killed_while_it_writes_checkpoints_leaves_whole_ones(tmp_path):
    """kill -9 at 40 moments drawn from a seed, at any stage of writing, renaming and deleting."""
    moments, seen = random.Random(0), set()
    for _ in range(40):
        child = os.fork()
        if child == 0:
            for step in range(1, 10**6):
                save_checkpoint(tmp_path, Checkpoint(step, {}, {}), tiny_state(step), keep=2)
        time.sleep(moments.uniform(0.005, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in list_checkpoints(tmp_path):
            assert not damage(path)
            step = json.loads((path / "state.json").read_text())["step"]
            assert load_file(path / "model.safetensors")["weight"][0] == step
            seen.add(step)
    assert len(seen) > 3, "the child came to write some"


@pytest.mark.parametrize("how", ["flip", "cut", "gone", "state"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(train_run, capsys, how, tmp_path):
    whole = train_run(output=str(tmp_path / "whole"))
    output = train_run()
    shutil.rmtree(output / "bundle")
    newest = output / "checkpoints" / "step-000008"
    file = newest / ("state.json" if how == "state" else "optimizer.safetensors")
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if how != "flip" else content[:-9] + b"?" + content[-8:])
    train_run(resume="auto")
    told = capsys.readouterr().out
    assert f"{newest} is damaged" in told and "step-000004 at step 4" in told
    assert same(output, whole)
    with pytest.raises(ValueError, match="step-000004 is damaged .* resume from an older checkpoint"):
        (output / "checkpoints" / "step-000004" / "ema.safetensors").write_bytes(b"")
        shutil.rmtree(newest)
        train_run(resume=str(output / "checkpoints" / "step-000004"))
    with pytest.raises(ValueError, match="all checkpoints of .* are damaged"):
        find_checkpoint(output, "auto")


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(small_disk, train_run, tmp_path, capsys):
    """The disk fills up before the first checkpoint and has room again before the second."""
    whole = train_run(output=str(tmp_path / "whole"), loop={"steps": 12, "keep_checkpoints": 9})
    disk = small_disk(50_000_000)
    filler = disk / "filler"
    kept = loop.save_checkpoint

    def fill(folder, checkpoint, *rest):
        free = shutil.disk_usage(disk).free
        if checkpoint.step == 4:
            filler.write_bytes(b"\0" * (free - 100_000))
        else:
            filler.unlink(missing_ok=True)
        return kept(folder, checkpoint, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", fill)
        output = train_run(output=str(disk / "run"), loop={"steps": 12, "keep_checkpoints": 9})
    told = capsys.readouterr().out
    assert "cannot write the checkpoint of step 4" in told and "No space left" in told and "training goes on" in told
    assert [path.name for path in list_checkpoints(output / "checkpoints")] == ["step-000008", "step-000012"]
    assert same(output, whole) and not list((output / "checkpoints").glob(".*"))
    steps = [record["step"] for record in read_metrics(output / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, 13)), "records that did not fit were written later"


def test_a_full_disk_at_the_end_is_told_and_resume_ends_it(small_disk, train_run, tmp_path):
    whole = train_run(output=str(tmp_path / "whole"))
    disk = small_disk(50_000_000)
    kept = loop.save_checkpoint

    def fill(folder, checkpoint, *rest):
        if checkpoint.step == 8:
            (disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(disk).free - 100_000))
        return kept(folder, checkpoint, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", fill)
        with pytest.raises(ValueError, match="cannot write the checkpoint of step 8 .*No space left"):
            train_run(output=str(disk / "run"))
    (disk / "filler").unlink()
    assert same(train_run(output=str(disk / "run"), resume="auto"), whole)


def test_a_folder_that_may_not_be_written_is_told(as_nobody):
    with as_nobody() as folder:
        (folder / "shut").mkdir()
        save_checkpoint(folder / "shut", Checkpoint(1, {}, {}), tiny_state(1), keep=2)
        (folder / "shut").chmod(0o500)
        with pytest.raises(ValueError, match="cannot write output=.*Permission denied; give another folder"):
            with claimed(folder / "shut" / "run", "", Accelerator(cpu=True)):
                pass
        with pytest.raises(ValueError, match="cannot write .*Permission denied"):
            save_checkpoint(folder / "shut", Checkpoint(2, {}, {}), tiny_state(2), keep=2)
        assert [path.name for path in list_checkpoints(folder / "shut")] == ["step-000001"]


# ---- signals, kills, two at once


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_run_that_is_told_to_stop_writes_a_checkpoint_and_says_so(run_yaml, train_run, tmp_path, number, code):
    """Sent to the whole group, as schedulers do: the processes that make batches ready must not die of it."""
    options = ("loop.checkpoint_every=1000", "loop.steps=200", f"output={tmp_path / 'run'}", "data.workers=2")
    process = begin(launch.command(run_yaml, *options))
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while not read_metrics(tmp_path / "run" / "metrics.jsonl"):
        time.sleep(0.02)
    os.killpg(process.pid, number)
    told, problem = process.communicate(timeout=120)
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert process.returncode == code, problem[-3000:]
    assert f"stopped by {number.name}; the checkpoint of step {step} is written" in told and 0 < step < 200


def test_a_second_run_on_one_folder_refuses(run_yaml, tmp_path, train_run):
    options = (f"output={tmp_path / 'run'}", "loop.steps=100000")
    process = begin(launch.command(run_yaml, *options))
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "step-000005", process)
        with pytest.raises(ValueError, match="another run is at work in output="):
            train_run(output=str(tmp_path / "run"), resume="auto", loop={"steps": 100000})
    finally:
        process.kill()
        process.communicate()
    with claimed(tmp_path / "run", "", Accelerator(cpu=True)):
        pass  # the lock went with the process


@pytest.mark.slow
def test_two_processes_that_are_told_to_stop_write_a_checkpoint_together(run_yaml, tmp_path):
    """SIGTERM to torchrun, which passes it on to all; the run goes on from there and ends as an undisturbed one."""
    spread = ("data.batch_size=8", "data.workers=1", "loop.checkpoint_every=1000", "loop.steps=120")
    launch.launch(run_yaml, f"output={tmp_path / 'whole'}", *spread, processes=2)
    line = launch.command(run_yaml, f"output={tmp_path / 'run'}", *spread, processes=2)
    process = begin(line)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert not damage(checkpoint) and checkpoint.name != "step-000120" and "stopped by SIGTERM" in told
    launch.launch(run_yaml, f"output={tmp_path / 'run'}", *spread, "--resume", "auto", processes=2)
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_worker_costs_the_steps_since_the_checkpoint(run_yaml, tmp_path):
    """torchrun starts all workers again, and --resume auto goes on: the same weights as without."""
    spread = ("data.batch_size=8", "--resume", "auto")
    launch.launch(run_yaml, f"output={tmp_path / 'whole'}", *spread, processes=2)
    line = launch.command(run_yaml, f"output={tmp_path / 'run'}", *spread, processes=2, restarts=3)
    process = subprocess.Popen(
        line, env=launch.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for step in (5, 20):
        wait_for(tmp_path / "run" / "checkpoints" / f"step-{step:06d}", process)
        listed = subprocess.run(["pgrep", "-f", f"train.py.*{tmp_path}/run"], capture_output=True, text=True)
        workers = [int(number) for number in listed.stdout.split() if int(number) != process.pid]
        os.kill(workers[step % 2], signal.SIGKILL)
    told, problem = process.communicate(timeout=600)
    assert process.returncode == 0, problem[-3000:]
    assert told.count("resumed") >= 2 and same(tmp_path / "run", tmp_path / "whole")


# ---- steps that must not be taken


def test_steps_that_are_no_numbers_or_spikes_are_skipped_and_counted():
    guard = watch.Guard(10)
    assert all(guard.accepts(1.0, 2.0) for _ in range(watch.SETTLED)) and guard.mean == pytest.approx(2.0)
    assert (
        not guard.accepts(float("nan"), 2.0) and not guard.accepts(1.0, float("inf")) and not guard.accepts(1.0, 21.0)
    )
    assert guard.skipped == 3 and guard.accepts(1.0, 19.0) and guard.in_a_row == 0
    copy = watch.Guard(10)
    copy.load(json.loads(json.dumps(guard.state())))
    assert copy == guard
    assert watch.Guard(0).accepts(1.0, 1e9) and watch.Guard(10).accepts(1.0, 1e9), "nothing to compare with yet"
    with pytest.raises(ValueError, match="21 steps in a row had a loss of nan .* were skipped: lower optim.lr"):
        for _ in range(100):
            guard.accepts(float("nan"), 1.0)


def test_a_bad_step_changes_nothing_but_the_count(train_run, monkeypatch, tmp_path):
    """The third step's loss is no number: weights, optimizer and average stay as after the second."""
    accumulate, number = Parallel.accumulate, iter(range(1, 100))

    def broken(*args):
        loss, sums = accumulate(*args)
        return (float("nan") if next(number) == 3 else loss), sums

    monkeypatch.setattr(Parallel, "accumulate", broken)
    spiked = train_run(output=str(tmp_path / "a"), loop={"steps": 8, "checkpoint_every": 1, "keep_checkpoints": 9})
    for name in ("model", "ema", "optimizer"):
        two, three, four = (
            load_file(spiked / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors") for step in (2, 3, 4)
        )
        assert all(torch.equal(tensor, three[key]) for key, tensor in two.items())
        assert not all(torch.equal(tensor, four[key]) for key, tensor in two.items())
    records = [record for record in read_metrics(spiked / "metrics.jsonl") if "loss" in record]
    assert [record["dropped_steps"] for record in records] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert json.loads((spiked / "checkpoints" / "step-000008" / "state.json").read_text())["guard"]["skipped"] == 1


def test_a_run_that_diverges_keeps_its_last_good_state(train_run, tmp_path):
    with pytest.raises(ValueError, match="21 steps in a row had a loss of"):
        train_run(optim={"lr": 1e30, "clip_norm": 0, "warmup_steps": 0}, loop={"steps": 60, "checkpoint_every": 1})
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    states = [load_file(path / "model.safetensors") for path in checkpoints]
    assert states and not any(damage(path) for path in checkpoints)


# ---- data, services, clock


def test_a_worker_of_the_data_that_fails_is_told_in_one_line(train_run, monkeypatch):
    from ar_t2i.data.dataset import TokenizedDataset

    def broken(self, indices, epochs):
        raise ValueError("row 5 cannot be read")

    monkeypatch.setattr(TokenizedDataset, "sequences", broken)
    with pytest.raises(ValueError, match="row 5 cannot be read; the checkpoint of step 0 is written") as error:
        train_run(data={"workers": 1})
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_shard_that_fails_in_the_middle_is_named_and_nothing_is_lost(train_run, tokenized, tmp_path, how):
    folder = tmp_path / "tokens" / "data"
    folder.mkdir(parents=True)
    table = pq.read_table(next(tokenized.glob("data/train-*")))
    for number in range(4):
        pq.write_table(table.slice(48 * number, 48), folder / f"train-{number:05d}-of-00004.parquet", row_group_size=8)
    shutil.copy(next(tokenized.glob("data/validation-*")), folder)
    shutil.copytree(tmp_path / "tokens", tmp_path / "copy")
    options = {
        "data": {"dataset": str(tmp_path / "tokens"), "streaming": True, "workers": 0, "batch_size": 8},
        "loop": {"steps": 20, "checkpoint_every": 100}, "samples": {"every": 0, "prompts": []},
    }  # fmt: skip
    whole = train_run(output=str(tmp_path / "whole"), **options)
    victim = folder / "train-00002-of-00004.parquet"
    from ar_t2i.data import streamed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "WINDOW_ROWS", 16)
        whole = train_run(output=str(tmp_path / "whole2"), **options)

        def break_it(step, *rest):
            if step == 5:
                if how == "gone":
                    victim.rename(victim.with_suffix(".away"))
                else:
                    victim.write_bytes(bytes(len(victim.read_bytes())))
                patch.setattr(streamed.StreamedDataset, "_open", reopened)

        opened = streamed.StreamedDataset._open

        def reopened(self, url):
            self._files.clear()
            return opened(self, url)

        say = trackers.Metrics.log
        patch.setattr(trackers.Metrics, "log", lambda self, step, values: (break_it(step), say(self, step, values))[1])
        with pytest.raises(ValueError, match="train-00002-of-00004.parquet.*the checkpoint of step .* is written"):
            train_run(**options)
        patch.setattr(trackers.Metrics, "log", say)
        shutil.copy(tmp_path / "copy" / "data" / victim.name, victim)
        assert same(train_run(resume="auto", **options), whole)


class Silent(GeneralTracker):
    """A service that does not answer."""

    name, requires_logging_directory = "silent", False
    answer = threading.Event()

    tracker = None

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **options):
        self.answer.wait(30)


@pytest.mark.parametrize("fails", [True, False])
def test_a_tracker_that_fails_or_hangs_holds_up_nothing(train_run, tmp_path, monkeypatch, capsys, fails):
    def log(self, values, step=None, **options):
        if fails:
            raise ConnectionError("no answer from hf_abcdefghijklmnop")
        self.answer.wait(30)

    Silent.answer.clear()
    monkeypatch.setattr(Silent, "log", log)
    monkeypatch.setattr(trackers, "PATIENCE", 0.5)
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr(loop, "check_trackers", lambda names: None)
    make = loop.Accelerator
    monkeypatch.setattr(loop, "Accelerator", lambda **options: make(**{**options, "log_with": [Silent()]}))
    monkeypatch.setattr(
        trackers.Accelerator, "init_trackers", lambda self, name, config: setattr(self, "trackers", [Silent()])
    )
    output = train_run(loop={"trackers": ["silent"]})
    Silent.answer.set()
    told = capsys.readouterr().out
    assert ("a tracker failed: no answer from hf_***" if fails else "the trackers did not end in") in told
    assert len([record for record in read_metrics(output / "metrics.jsonl") if "loss" in record]) == 8


def test_a_clock_that_moves_back_changes_nothing(train_run, tmp_path, monkeypatch):
    whole = train_run(output=str(tmp_path / "whole"))
    now = time.time()
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(ticks))
    output = train_run()
    assert same(output, whole)
    assert all(record.get("pictures_per_second", 1) > 0 for record in read_metrics(output / "metrics.jsonl"))


def test_python_is_the_one_of_this_run():
    assert sys.executable in launch.command(Path("x"))
