"""The training loop, for whatever is trained: a `Task` says what a step's loss is, this says when what happens."""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch.distributed import distributed_c10d
from tqdm import tqdm

from ar_t2i.device import has_fast_bf16, keep_freed_memory
from ar_t2i.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from ar_t2i.training.optim import OptimConfig, lr_at
from ar_t2i.training.parallel import Parallel
from ar_t2i.training.sharded import Sharded
from ar_t2i.training.task import Batch, Task
from ar_t2i.training.trackers import Metrics, check_trackers
from ar_t2i.training.watch import Guard, Watch, attempt
from ar_t2i.training.zero import Zero


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length and rhythm of a run."""

    steps: int = 2000
    """Optimizer steps."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of each process in a step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the machine computes it fast. Weights are kept in float32."""
    compile: bool = False
    """Run the forward pass through torch.compile."""
    log_every: int = 10
    """Steps between records in metrics.jsonl and the trackers."""
    evaluate_every: int = 250
    """Steps between validations; 0 validates at the end alone."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0 writes one at the end alone."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    spike: float = 10.0
    """A step whose gradient norm is this many times the running mean is skipped and counted, as one is whose loss is
    no number; 0 skips only the latter. After 20 in a row the run stops."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers by accelerate's names: tensorboard, wandb, trackio, ..."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("steps", "gradient_accumulation_steps", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name}={getattr(self, name)}: expected at least 1")
        for name in ("evaluate_every", "checkpoint_every", "spike"):
            if getattr(self, name) < 0:
                raise ValueError(f"loop.{name}={getattr(self, name)}: expected 0 or more")


GLOO_PAUSE = 0.3
"""Seconds in which gloo's thread lets go of its last tensors: when the interpreter ends meanwhile, torch 2.13 waits
for ever."""


def train(
    task: Task,
    config: LoopConfig,
    optim: OptimConfig,
    accelerator: Accelerator,
    output: Path,
    checkpoint: Path | None,
    seed: int,
) -> None:
    """Train until `config.steps`, starting anew or from a checkpoint.

    Args:
        task: what is trained.
        config: length and rhythm.
        optim: optimizer, schedule and moving average.
        accelerator: made by `make_accelerator`.
        output: folder of the run.
        checkpoint: a folder of one to go on from, None to start anew.
        seed: of dropout.

    Raises:
        ValueError: a checkpoint that does not fit or cannot be written, data that cannot be read, too many steps in a
            row that must not be taken.
        Interrupted: a signal asked for an end; it ends the process with code 128 + the signal's number.
    """
    keep_freed_memory()
    parallel, guard = spread(task, optim, accelerator, config.compile), Guard(config.spike)
    step = _resume(task, checkpoint, parallel, guard, accelerator)
    accumulation = config.gradient_accumulation_steps * task.pieces
    reading = closing(task.read(step * accumulation, config.steps * accumulation))
    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not accelerator.is_main_process, mininterval=1)
    meter = _Meter()
    with Watch(accelerator) as watch, Metrics(accelerator, output, task.facts, step) as metrics, reading as batches:
        if step:  # whatever follows a checkpoint may not have been done
            _show(task, parallel, step, config, metrics)
        while step < config.steps:
            seed_step(seed, step, accelerator.process_index)
            parts = watch.take(batches, accumulation)
            if watch.must_stop():
                batches.close()
                _save(output, step, parallel, guard, config, metrics, required=True)
                watch.stop(step)
            lr = lr_at(step, config.steps, optim)
            values = train_step(parallel, parts, lr, optim.clip_norm, guard)
            if parallel.ema and "skipped" not in values:
                parallel.ema.update(task.trained, step)
            step += 1
            bar.update()
            meter.add(values)
            if step % config.log_every == 0 or step == config.steps:
                metrics.log(step, {**meter.read(), "lr": lr, "dropped_steps": float(guard.skipped)})
                bar.set_postfix_str(f"loss {values['loss']:.3f}")
            if _due(step, config.checkpoint_every, config.steps):
                _save(output, step, parallel, guard, config, metrics, required=step == config.steps)
            _show(task, parallel, step, config, metrics)
            meter.restart()
        bar.close()
        if guard.skipped:
            metrics.say(
                f"{guard.skipped:,} of {config.steps:,} steps were skipped: loss or gradient was out of bounds"
            )
    leave(accelerator)


def train_step(
    parallel: Parallel, batches: Sequence[Batch], lr: float, clip_norm: float, guard: Guard
) -> dict[str, float]:
    """One optimizer step over the micro-batches of this process; returns the step's values over all processes.

    The loss of each micro-batch is divided by the targets of the whole step, all micro-batches and processes
    together, so how rows are spread over them changes nothing. A step that `guard` does not accept is not taken.
    """
    task, accelerator = parallel.task, parallel.accelerator
    batches = [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in batches]
    counts = accelerator.reduce(torch.stack([task.count(batch) for batch in batches]).sum(0), "sum")
    assert isinstance(counts, Tensor)
    loss, sums = parallel.accumulate(batches, lambda sums: task.loss(sums, counts))
    norm = parallel.clip(clip_norm)
    values = {"loss": loss, **task.metrics(sums, counts), "grad_norm": norm}
    if not guard.accepts(loss, norm):
        parallel.skip_step()
        for companion in task.companions:
            companion.after_skipped_step()
        return {**{name: value for name, value in values.items() if name.startswith("n_")}, "loss": loss, "skipped": 1}
    parallel.take_step(lr)
    for companion in task.companions:
        values |= companion.after_step(sums, counts)
    return values


def spread(task: Task, optim: OptimConfig, accelerator: Accelerator, compile: bool) -> Parallel:
    """A task spread over the processes, as the configuration says that accelerate was launched with."""
    way = Sharded if wants_fsdp() else Zero if wants_deepspeed() else Parallel
    return way(task, optim, accelerator, compile)


def leave(accelerator: Accelerator) -> None:
    """End what all processes did together."""
    accelerator.end_training()
    if accelerator.num_processes > 1:
        time.sleep(GLOO_PAUSE)


def wants_fsdp() -> bool:
    """Whether the configuration that accelerate was launched with asks for FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def wants_deepspeed() -> bool:
    """Whether the configuration that accelerate was launched with asks for DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's own generator, which dropout reads, from the step, so that a resumed run draws the same."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)


def make_accelerator(config: LoopConfig, output: Path) -> Accelerator:
    """The accelerator of a run.

    Raises:
        ValueError: a tracker that accelerate does not know or that is not installed, or a strategy other than DDP.
    """
    check_trackers(config.trackers)
    wanted = {"ACCELERATE_USE_FSDP": wants_fsdp(), "ACCELERATE_USE_DEEPSPEED": wants_deepspeed()}
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"  # `spread` does both; accelerate would only do so on GPUs
    # One process encodes the captions while the others wait for it, longer than the ten minutes that is the default.
    # Without cpu=True accelerate takes each of several processes without an accelerator for the only one.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu, timeout=timedelta(minutes=10)).device or torch.device("cpu")
    if torch.distributed.is_initialized():  # processes find each other within minutes, or are started again
        distributed_c10d._set_pg_timeout(timedelta(hours=6))
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16(device))
    os.environ.update(dict.fromkeys(wanted, "false"))
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no", log_with=list(config.trackers) or None, project_dir=str(output)
    )
    os.environ.update({name: str(value).lower() for name, value in wanted.items()})
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"{accelerator.distributed_type} is not supported: configure accelerate for DDP or FSDP")
    return accelerator


def _resume(task: Task, path: Path | None, parallel: Parallel, guard: Guard, accelerator: Accelerator) -> int:
    if path is None:
        return 0
    checkpoint = read_checkpoint(path, task.facts)
    parallel.load(path)
    guard.load(checkpoint.guard)
    accelerator.print(f"resumed {path} at step {checkpoint.step}")
    return checkpoint.step


def _save(
    output: Path, step: int, parallel: Parallel, guard: Guard, config: LoopConfig, metrics: Metrics, required: bool
) -> None:
    """Write a checkpoint; one that is not `required` may fail: the next one may find room on the disk."""
    task, saved = parallel.task, parallel.saved()

    def write() -> None:
        if parallel.accelerator.is_main_process:
            state = Checkpoint(step, task.facts, guard.state())
            save_checkpoint(output / "checkpoints", state, saved, config.keep_checkpoints, task.companions)

    attempt(write, parallel.accelerator, metrics.say, required)


def _show(task: Task, parallel: Parallel, step: int, config: LoopConfig, metrics: Metrics) -> None:
    """Measure, draw and write what the run is for, at the steps that ask for it."""
    exports = _due(step, config.checkpoint_every, config.steps)
    measures = _due(step, config.evaluate_every, config.steps)
    if not (exports or measures or task.draws(step)):
        return
    with parallel.averaged() as averaged:
        if measures and (found := task.evaluate(averaged, parallel.accelerator)):
            metrics.log(step, found)
            metrics.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))

        def write() -> None:  # where the disk is full, what was written last is still there
            if task.draws(step):
                task.draw(averaged, step, parallel.accelerator)
            if exports and parallel.accelerator.is_main_process:
                task.export(averaged, step)

        attempt(write, parallel.accelerator, metrics.say, step == config.steps)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


class _Meter:
    """Means of a step's values since the last record, and rates over the time spent in steps alone."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.seconds, self.started = 0.0, time.perf_counter()

    def add(self, values: dict[str, float]) -> None:
        self.values.append(values)
        self.seconds += time.perf_counter() - self.started
        self.started = time.perf_counter()

    def restart(self) -> None:
        """Leave out the time since the last step: validation, drawing, writing."""
        self.started = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Means over the steps that have a value, for each count `n_x` the rate `x_per_second`; starts anew.

        `dropped_x` is a running total, so its last value is taken.
        """
        record = {}
        for name, latest in self.values[-1].items():
            found = [values[name] for values in self.values if name in values]
            if name.startswith("n_"):
                record[f"{name[2:]}_per_second"] = sum(found) / self.seconds
            else:
                record[name] = latest if name.startswith("dropped_") else sum(found) / len(found)
        self.values, self.seconds = [], 0.0
        return record
