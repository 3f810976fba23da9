"""A task's weights, optimizer and moving average over all processes: alone, copied to each (DDP), cut up (FSDP2).

DeepSpeed, where it is installed, cuts up optimizer and gradients (ZeRO stages 1 and 2, arXiv 1910.02054). accelerate
starts the processes and wraps for DDP; FSDP2 is torch's own `fully_shard`, on each layer and the rest, and DeepSpeed
its own engine, so that the same code runs on CPUs, where it is tested, and on GPUs. Whatever leaves this module is
whole: checkpoints, bundles, validation and samples do not know how the weights were spread, so a run can go on spread
in another way.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ar_t2i.training.checkpoint import Saved, load_checkpoint
from ar_t2i.training.optim import Ema, OptimConfig, make_optimizer
from ar_t2i.training.task import Task


class Parallel:
    """What trains, spread.

    Attributes:
        module: the task's module as a step calls it.
        optimizer: of its weights.
        ema: the moving average of the weights, None where none is kept.
    """

    def __init__(self, task: Task, optim: OptimConfig, accelerator: Accelerator, compile: bool = False) -> None:
        """Spread the task's weights.

        Raises:
            ValueError: FSDP for what it is not made for.
        """
        self.task, self.accelerator = task, accelerator
        self.sharded, self.partitioned = wants_fsdp(), wants_deepspeed()
        self.module: nn.Module
        self.optimizer: Any
        kept = {id(parameter) for parameter in task.no_decay}
        no_decay = {name for name, parameter in task.trained.named_parameters() if id(parameter) in kept}
        self.ema = Ema(task.trained, optim.ema_decay) if optim.ema_decay else None
        if self.sharded or self.partitioned:
            _check_strategy("FSDP" if self.sharded else "DeepSpeed", task, optim, compile)
        if self.sharded:
            self.plain = self.ema.module if self.ema else copy.deepcopy(task.trained).requires_grad_(False).eval()
            self.module = _shard(task, accelerator)
            if self.ema:
                self.ema.follow(task.trained)
            self.optimizer = make_optimizer(task.trained, optim, no_decay)
        elif self.partitioned:
            optimizer = make_optimizer(task.trained, optim, no_decay)
            self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self.module, self.optimizer = _partition(task, optimizer, optim.clip_norm, accelerator)
            if self.ema:
                self.ema.module.to(accelerator.device)
        else:
            module = torch.compile(task.module, dynamic=True) if compile else task.module
            optimizer = make_optimizer(task.trained, optim, no_decay)
            self.module, self.optimizer = accelerator.prepare(module, optimizer)
            if self.ema:
                self.ema.module.to(accelerator.device)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The averaged weights, or the trained ones where no average is kept, in a whole module on this device."""
        if not self.sharded:
            yield self.ema.module if self.ema else self.task.trained
            return
        tensors = self.ema.averages if self.ema else self.task.trained.parameters()
        with torch.no_grad():
            for parameter, tensor in zip(self.plain.parameters(), tensors, strict=True):
                parameter.copy_(_whole(tensor))
        yield self.plain.to(self.accelerator.device)
        self.plain.to("cpu")

    def saved(self) -> Saved:
        """Weights, average and optimizer, whole; in the main process alone where they had to be gathered."""
        ema = self._gathered(zip(self.names(), self.ema.averages, strict=True)) if self.ema else None
        optimizer = self._partitioned_state() if self.partitioned else self.optimizer.state_dict()
        if self.sharded:
            optimizer["state"] = {
                index: self._gathered(state.items()) for index, state in sorted(optimizer["state"].items())
            }
        return Saved(self._gathered(self.task.trained.named_parameters()), ema, optimizer)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it does not fit.
        """
        averages = dict(zip(self.names(), self.ema.averages, strict=True)) if self.ema else None
        place = _slice_of if self.sharded else _itself
        weights = dict(self.task.trained.named_parameters())
        optimizer = load_checkpoint(path, weights, averages, self.task.companions, place)
        if self.partitioned:
            return self._load_partitioned(optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        try:
            for index, state in optimizer["state"].items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                        state[name] = place(value, parameters[index])
            self.optimizer.load_state_dict(optimizer)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:  # states of something else
            raise ValueError(f"{path} holds states that do not fit this run: resume from an older one") from error

    def take_step(self, lr: float) -> None:
        """Step, and clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        stepper: Any = self.module if self.partitioned else self.optimizer
        stepper.step()
        self.optimizer.zero_grad(set_to_none=True)

    def skip_step(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.partitioned:
            self.optimizer.averaged_gradients = {}

    def clip(self, most: float) -> float:
        """Scale gradients down to a norm of `most`, 0 for no limit; returns their norm before, over all processes."""
        if self.partitioned:  # its step does the scaling
            norm = float(self.optimizer.scaled_global_norm())
            return norm if norm >= 0 else float("nan")
        return float(clip_gradients(self.task.trained.parameters(), most))

    def _partitioned_state(self) -> dict[str, Any]:
        """DeepSpeed's state in the form of torch's optimizer."""
        from deepspeed.utils import safe_get_full_optimizer_state as whole  # pyright: ignore

        inner, names = self.optimizer.optimizer, ("exp_avg", "exp_avg_sq")
        step = next((state["step"] for state in inner.state.values()), None)
        states, groups, start = {}, [], 0
        self._link()
        for index, parameter in enumerate(self.parameters):
            if step is not None:
                state = self._gathered((name, whole(parameter, name)) for name in names)
                states[index] = {"step": step.clone(), **state}
        for group, flat in zip(inner.param_groups, self.optimizer.bit16_groups, strict=True):
            indices = list(range(start, start + len(flat)))
            groups.append({**{name: value for name, value in group.items() if name != "params"}, "params": indices})
            start += len(flat)
        return {"state": states, "param_groups": groups}

    def _link(self) -> None:
        """Let DeepSpeed find the moments of each parameter; it looks once, which can be before there are any."""
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()

    def _load_partitioned(self, optimizer: dict[str, Any]) -> None:
        from deepspeed.utils import (  # pyright: ignore
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
        )

        if optimizer["state"]:
            for flat in self.optimizer.single_partition_of_fp32_groups:
                moments = {name: torch.zeros_like(flat) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.optimizer.state[flat] = {"step": optimizer["state"][0]["step"].clone(), **moments}
            self._link()
        for index, parameter in enumerate(self.parameters):
            safe_set_full_fp32_param(parameter, parameter.detach().clone())
            for name in ("exp_avg", "exp_avg_sq"):
                if index in optimizer["state"]:
                    value = optimizer["state"][index][name].to(parameter.device)
                    safe_set_full_optimizer_state(parameter, value, name)

    def names(self) -> list[str]:
        """Of the trained parameters."""
        return [name for name, _ in self.task.trained.named_parameters()]

    def _gathered(self, tensors: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """One whole tensor after the other, kept by the main process, where it lies on the CPU."""
        if not self.sharded and not self.partitioned:
            return dict(tensors)
        kept = {}
        for name, tensor in tensors:
            whole = _whole(tensor) if isinstance(tensor, Tensor) else tensor
            if self.accelerator.is_main_process:
                kept[name] = whole.detach().cpu() if isinstance(whole, Tensor) else whole
        return kept


def wants_fsdp() -> bool:
    """Whether the configuration that accelerate was launched with asks for FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def wants_deepspeed() -> bool:
    """Whether the configuration that accelerate was launched with asks for DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def backward(loss: Tensor, module: nn.Module, last: bool, accelerator: Accelerator) -> None:
    """Gradients of a micro-batch; of the `last` one of a step they are averaged over processes."""
    if hasattr(module, "set_gradient_accumulation_boundary"):  # DeepSpeed's engine
        module.set_gradient_accumulation_boundary(last)  # type: ignore[operator]
        module.backward(loss)  # type: ignore[operator]
    else:
        accelerator.backward(loss)


@contextmanager
def unsynced(module: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Keep gradients to this process for now: more micro-batches of the step follow."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        yield
        module.set_requires_gradient_sync(True)
    elif hasattr(module, "set_gradient_accumulation_boundary"):
        yield
    else:
        with accelerator.no_sync(module):
            yield


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale gradients down to a norm of `most`, 0 for no limit; returns their norm before, over all processes."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
    norm = _whole(norm)
    if most and torch.isfinite(norm):
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


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


def _partition(task: Task, optimizer: Any, clip_norm: float, accelerator: Accelerator) -> tuple[Any, Any]:
    """DeepSpeed's engine and optimizer."""
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    if stage not in (1, 2):
        raise ValueError(
            f"DeepSpeed with zero_stage {stage}: expected 1 or 2; for more take FSDP, which cuts up weights"
        )
    try:
        import deepspeed  # pyright: ignore
    except ImportError as error:
        raise ValueError("DeepSpeed is not installed: pip install deepspeed, or take FSDP or DDP") from error
    config = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": clip_norm,
        "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "steps_per_print": 10**9,
        "torch_autocast": {"enabled": accelerator.mixed_precision == "bf16", "dtype": "bfloat16"},
    }  # fmt: skip
    task.module.to(accelerator.device)
    engine, wrapped, *_ = deepspeed.initialize(
        model=task.module, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine, wrapped


def _check_strategy(strategy: str, task: Task, optim: OptimConfig, compile: bool) -> None:
    version = os.environ.get("FSDP_VERSION", "2")
    if strategy == "FSDP" and version != "2":
        raise ValueError(f"FSDP version {version}: expected fsdp_version: 2 in accelerate's configuration")
    for name, wrong in (
        ("a discriminator or a codebook that is trained", bool(task.companions)),
        ("optim.name=muon", optim.name == "muon"),
        ("loop.compile", compile),
    ):
        if wrong:
            raise ValueError(f"{strategy} does not go with {name}: configure accelerate for DDP, or change that")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _itself(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor


def _slice_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all of them have whole, cut as `like` is."""
    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
