"""A task's weights, optimizer and moving average over all processes: alone, or copied to each (DDP).

`sharded.py` (FSDP2) and `zero.py` (DeepSpeed) spread them in other ways. Whatever leaves these modules is whole:
checkpoints, bundles, validation and samples do not know how the weights were spread, so a run can go on spread in
another way.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ar_t2i.training.checkpoint import Saved, load_checkpoint
from ar_t2i.training.optim import Ema, OptimConfig, make_optimizer
from ar_t2i.training.task import Batch, Sums, Task


class Spread:
    """A module that runs in all processes, each on rows of its own.

    Attributes:
        module: to be called.
        accelerator: of the run.
    """

    module: Any
    accelerator: Accelerator

    def accumulate(self, batches: Sequence[Batch], loss_of: Callable[[Sums], Tensor]) -> tuple[float, Sums]:
        """Gradients of the sum of the micro-batches' losses, and that sum; and the module's sums, over all processes.

        DDP, FSDP and DeepSpeed average gradients over processes, hence the factor.
        """
        total: Sums = {}
        loss_sum = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.unsynced():
                with self.accelerator.autocast():
                    sums = self.module(**batch)
                loss = loss_of(sums)
                self.backward(loss * self.accelerator.num_processes, last)
            loss_sum += loss.detach()
            total = {name: value.detach() + total.get(name, 0) for name, value in sums.items()}
        loss_sum = self.accelerator.reduce(loss_sum, "sum")
        return float(loss_sum), {name: self.accelerator.reduce(value, "sum") for name, value in total.items()}  # type: ignore

    def unsynced(self) -> AbstractContextManager[None]:
        """Keep gradients to this process for now: more micro-batches of the step follow."""
        return self.accelerator.no_sync(self.module)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Gradients of a micro-batch; of the `last` one of a step they are averaged over processes."""
        self.accelerator.backward(loss)


class Copied(Spread):
    """A module that each process has whole (DDP), or the only one."""

    def __init__(self, module: nn.Module, accelerator: Accelerator) -> None:
        """Copy `module` to all processes."""
        self.accelerator = accelerator
        self.module = accelerator.prepare(module)


class Parallel(Spread):
    """What trains: a task's module, the optimizer of its weights and their moving average, alone or with DDP.

    Attributes:
        optimizer: of the weights.
        ema: the moving average of the weights, None where none is kept.
    """

    def __init__(self, task: Task, optim: OptimConfig, accelerator: Accelerator, compile: bool = False) -> None:
        """Spread the task's weights.

        Raises:
            ValueError: a task or options that this way of spreading is not made for.
        """
        self.task, self.accelerator = task, accelerator
        self.ema = Ema(task.trained, optim.ema_decay) if optim.ema_decay else None
        module = torch.compile(task.module, dynamic=True) if compile else task.module
        self.module, self.optimizer = accelerator.prepare(module, make_optimizer(task.trained, optim, no_decay(task)))
        if self.ema:
            self.ema.module.to(accelerator.device)

    def averaged(self) -> AbstractContextManager[nn.Module]:
        """The averaged weights, or the trained ones where no average is kept, in a whole module on this device."""
        return nullcontext(self.ema.module if self.ema else self.task.trained)

    def saved(self) -> Saved:
        """Weights, average and optimizer, whole; in the main process alone where they had to be gathered."""
        return Saved(dict(self.task.trained.named_parameters()), self._averages(), self.optimizer.state_dict())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; the optimizer's options stay those of the run.

        Raises:
            ValueError: it does not fit.
        """
        weights = dict(self.task.trained.named_parameters())
        stored = load_checkpoint(path, weights, self._averages(), self.task.companions, self.place)
        groups = self.optimizer_groups()
        try:
            if any("muon" in group for group in stored["param_groups"]) != any("muon" in group for group in groups):
                raise ValueError(f"{path} is of another optimizer: set optim.name back, or give another output")
            if [len(group["params"]) for group in stored["param_groups"]] != [
                len(group["params"]) for group in groups
            ]:
                raise KeyError("params")
            self.load_optimizer(stored["state"], groups)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:  # states of something else
            raise ValueError(f"{path} holds states that do not fit this run: resume from an older one") from error

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The optimizer's options, group by group, with the numbers of their parameters."""
        return self.optimizer.state_dict()["param_groups"]

    def load_optimizer(self, states: dict[int, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
        """Take the optimizer's states, whole, by the numbers that parameters have in `groups`."""
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        """What belongs into `like` of a tensor that all processes have whole."""
        return tensor

    def take_step(self, lr: float) -> None:
        """Step, and clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def skip_step(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self, most: float) -> float:
        """Scale gradients down to a norm of `most`, 0 for no limit; returns their norm before, over all processes."""
        return float(clip_gradients(self.task.trained.parameters(), most))

    def _averages(self) -> dict[str, Tensor] | None:
        """By the names of the parameters."""
        if self.ema is None:
            return None
        names = (name for name, _ in self.task.trained.named_parameters())
        return dict(zip(names, self.ema.averages, strict=True))


def _sizes(groups: Sequence[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def no_decay(task: Task) -> set[str]:
    """Names of the parameters that do not decay; to be asked for before they are cut up, which replaces them."""
    kept = {id(parameter) for parameter in task.no_decay}
    return {name for name, parameter in task.trained.named_parameters() if id(parameter) in kept}


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale gradients down to a norm of `most`, 0 for no limit; returns their norm before, over all processes."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = _total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
    if most and torch.isfinite(norm):
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def _total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all gradients together, a float32 scalar.

    On CPUs squares are added up in float64: in float32 they are added one after the other, and 300,000 of them are
    wrong by 2e-5, in another way for each way of cutting them up.
    """
    if not gradients:
        return torch.zeros(())
    parts = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    if parts[0].device.type == "cpu":
        square = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]).square().sum()
    else:
        square = nn.utils.get_total_norm(parts).square()
    if isinstance(gradients[0], DTensor):
        torch.distributed.all_reduce(square, group=gradients[0].device_mesh.get_group())
    return square.sqrt().float()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be cut up, put together in each process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_strategy(strategy: str, task: Task, optim: OptimConfig, compile: bool) -> None:
    """Raise ValueError for what only DDP is made for."""
    for name, wrong in (
        ("a discriminator or a codebook that is trained", bool(task.companions)),
        ("optim.name=muon", optim.name == "muon"),
        ("loop.compile", compile),
    ):
        if wrong:
            raise ValueError(f"{strategy} does not go with {name}: configure accelerate for DDP, or change that")
