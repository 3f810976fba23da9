"""The training loop, for whatever is trained: a `Task` says what a step's loss is, this says when what happens."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from tqdm import tqdm

from ar_t2i.device import has_fast_bf16, keep_freed_memory
from ar_t2i.training.checkpoint import Checkpoint, check_checkpoint, load_checkpoint, save_checkpoint
from ar_t2i.training.optim import Ema, OptimConfig, lr_at, make_optimizer
from ar_t2i.training.task import Batch, Sums, Task
from ar_t2i.training.trackers import Metrics, check_trackers


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
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers by accelerate's names: tensorboard, wandb, trackio, ..."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("steps", "gradient_accumulation_steps", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name}={getattr(self, name)}: expected at least 1")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"loop.{name}={getattr(self, name)}: expected 0 or more")


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
        ValueError: a checkpoint that does not fit, or a loss that is not finite.
    """
    keep_freed_memory()
    optimizer = make_optimizer(task.trained, optim, task.no_decay)
    ema = Ema(task.trained, optim.ema_decay) if optim.ema_decay else None
    averaged = ema.module if ema else task.trained
    module = torch.compile(task.module, dynamic=True) if config.compile else task.module
    module, optimizer = accelerator.prepare(module, optimizer)
    averaged.to(accelerator.device)
    step = started = _resume(task, checkpoint, optimizer, ema, accelerator)
    metrics = Metrics(accelerator, output, task.facts, step)
    accumulation = config.gradient_accumulation_steps
    batches = task.read(step * accumulation, config.steps * accumulation)
    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not accelerator.is_main_process, mininterval=1)
    meter = _Meter()
    while step < config.steps:
        seed_step(seed, step, accelerator.process_index)
        lr = lr_at(step, config.steps, optim)
        values = train_step(
            task, module, [next(batches) for _ in range(accumulation)], optimizer, lr, optim.clip_norm, accelerator
        )
        if ema:
            ema.update(task.trained, step)
        step += 1
        bar.update()
        meter.add(values)
        if step % config.log_every == 0 or step == config.steps:
            metrics.log(step, {**meter.read(), "lr": lr})
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
        if _due(step, config.evaluate_every, config.steps):
            if found := task.evaluate(averaged, accelerator):
                metrics.log(step, found)
                metrics.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
        if accelerator.is_main_process:
            if _due(step, config.checkpoint_every, config.steps):
                state, average = Checkpoint(step, task.facts), ema.module if ema else None
                kept = config.keep_checkpoints, task.companions
                save_checkpoint(output / "checkpoints", state, task.trained, average, optimizer, *kept)
            task.draw(averaged, step)
            if _due(step, config.checkpoint_every, config.steps):
                task.export(averaged, step)
        meter.restart()
    bar.close()
    if accelerator.is_main_process and started == config.steps:  # stopped between the last checkpoint and its export
        task.export(averaged, step)
    accelerator.end_training()


def train_step(
    task: Task,
    module: nn.Module,
    batches: Sequence[Batch],
    optimizer: Any,
    lr: float,
    clip_norm: float,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimizer step over the micro-batches of this process; returns the step's values over all processes.

    The loss of each micro-batch is divided by the targets of the whole step, all micro-batches and processes
    together, so how rows are spread over them changes nothing.
    """
    batches = [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in batches]
    counts = accelerator.reduce(torch.stack([task.count(batch) for batch in batches]).sum(0), "sum")
    assert isinstance(counts, Tensor)
    loss, sums = accumulate(module, batches, lambda sums: task.loss(sums, counts), accelerator)
    norm = update(optimizer, task.trained, lr, clip_norm, accelerator)
    values = {"loss": loss, **task.metrics(sums, counts), "grad_norm": norm}
    for companion in task.companions:
        values |= companion.after_step(sums, counts)
    return values


def accumulate(
    module: nn.Module, batches: Sequence[Batch], loss_of: Callable[[Sums], Tensor], accelerator: Accelerator
) -> tuple[float, Sums]:
    """Gradients of the sum of the micro-batches' losses, and that sum; and the module's sums, over all processes.

    DDP averages gradients over processes, hence the factor.
    """
    total: Sums = {}
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(module):
            sums = module(**batch)
            loss = loss_of(sums)
            accelerator.backward(loss * accelerator.num_processes)
        loss_sum += loss.detach()
        total = {name: value.detach() + total.get(name, 0) for name, value in sums.items()}
    loss_sum = accelerator.reduce(loss_sum, "sum")
    if not torch.isfinite(loss_sum):  # type: ignore[arg-type]
        raise ValueError(f"the loss is {float(loss_sum)}: lower optim.lr, or resume from the checkpoint before")  # type: ignore[arg-type]
    return float(loss_sum), {name: accelerator.reduce(value, "sum") for name, value in total.items()}  # type: ignore[arg-type]


def update(optimizer: Any, trained: nn.Module, lr: float, clip_norm: float, accelerator: Accelerator) -> float:
    """Clip, step and clear the gradients; returns their norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = accelerator.clip_grad_norm_(trained.parameters(), clip_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)  # type: ignore[arg-type]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's own generator, which dropout reads, from the step, so that a resumed run draws the same."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)


def make_accelerator(config: LoopConfig, output: Path) -> Accelerator:
    """The accelerator of a run.

    Raises:
        ValueError: a tracker that accelerate does not know or that is not installed, or a strategy other than DDP.
    """
    check_trackers(config.trackers)
    # One process encodes the captions while the others wait for it, longer than the ten minutes that is the default.
    # Without cpu=True accelerate takes each of several processes without an accelerator for the only one.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu, timeout=timedelta(hours=6)).device or torch.device("cpu")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16(device))
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no", log_with=list(config.trackers) or None, project_dir=str(output)
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"{accelerator.distributed_type} is not supported yet: configure accelerate for plain DDP")
    return accelerator


def _resume(task: Task, path: Path | None, optimizer: Any, ema: Ema | None, accelerator: Accelerator) -> int:
    if path is None:
        return 0
    step = check_checkpoint(path, task.facts)
    load_checkpoint(path, task.trained, ema.module if ema else None, optimizer, task.companions)
    accelerator.print(f"resumed {path} at step {step}")
    return step


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
