"""Weights, gradients, optimizer and average cut up over all processes: FSDP2, torch's own `fully_shard`.

It is called here and not through accelerate, so that the same code runs on CPUs, where it is tested, and on GPUs.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ar_t2i.training.checkpoint import Saved
from ar_t2i.training.optim import Ema, OptimConfig, make_optimizer
from ar_t2i.training.parallel import Parallel, check_strategy, no_decay, whole
from ar_t2i.training.task import Task


class Sharded(Parallel):
    """What trains, cut up (FSDP2).

    Attributes:
        plain: a whole module, for what needs one now and then.
    """

    def __init__(self, task: Task, optim: OptimConfig, accelerator: Accelerator, compile: bool = False) -> None:
        """Cut up the task's weights.

        Raises:
            ValueError: version 1, trained companions, Muon or torch.compile.
        """
        check_strategy("FSDP", task, optim, compile)
        version = os.environ.get("FSDP_VERSION", "2")
        if version != "2":
            raise ValueError(f"FSDP version {version}: expected fsdp_version: 2 in accelerate's configuration")
        self.task, self.accelerator = task, accelerator
        self.ema = Ema(task.trained, optim.ema_decay) if optim.ema_decay else None
        self.plain = self.ema.module if self.ema else copy.deepcopy(task.trained).requires_grad_(False).eval()
        names = no_decay(task)
        self.module = _shard(task, accelerator)
        if self.ema:
            self.ema.follow(task.trained)
        self.optimizer = make_optimizer(task.trained, optim, names)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """As of `Parallel`."""
        tensors = self.ema.averages if self.ema else self.task.trained.parameters()
        with torch.no_grad():
            for parameter, tensor in zip(self.plain.parameters(), tensors, strict=True):
                parameter.copy_(whole(tensor))
        yield self.plain.to(self.accelerator.device)
        self.plain.to("cpu")

    def saved(self) -> Saved:
        """As of `Parallel`."""
        averages, optimizer = self._averages(), self.optimizer.state_dict()
        optimizer["state"] = {
            index: gathered(state.items(), self.accelerator) for index, state in sorted(optimizer["state"].items())
        }
        return Saved(
            gathered(self.task.trained.named_parameters(), self.accelerator),
            None if averages is None else gathered(averages.items(), self.accelerator),
            optimizer,
        )

    def load_optimizer(self, states: dict[int, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
        """As of `Parallel`."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, state in states.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                    state[name] = self.place(value, parameters[index])
        super().load_optimizer(states, groups)

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This process's part, cut as `like` is."""
        assert isinstance(like, DTensor)
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """As of `Spread`."""
        self.module.set_requires_gradient_sync(False)
        yield
        self.module.set_requires_gradient_sync(True)


def gathered(tensors: Iterable[tuple[Any, Any]], accelerator: Accelerator) -> dict[Any, Any]:
    """One whole tensor after the other, kept by the main process, where it lies on the CPU."""
    kept = {}
    for name, tensor in tensors:
        value = whole(tensor).detach() if isinstance(tensor, Tensor) else tensor
        if accelerator.is_main_process:
            kept[name] = value.cpu() if isinstance(value, Tensor) else value
    return kept


def _shard(task: Task, accelerator: Accelerator) -> nn.Module:
    """Cut up each layer, and what is left, over all processes."""
    task.module.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    offload = parse_flag_from_env("FSDP_OFFLOAD_PARAMS")
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(),  # autocast chooses, as with DDP
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for modules in [module for module in task.trained.modules() if isinstance(module, nn.ModuleList)]:
        for layer in modules:
            fully_shard(layer, reshard_after_forward=reshard, **options)
    fully_shard(task.module, reshard_after_forward=False, **options)
    return task.module
