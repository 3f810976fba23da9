"""Optimizer and gradients cut up over all processes: DeepSpeed's ZeRO, stages 1 and 2 (arXiv 1910.02054).

DeepSpeed is used where it is installed, by its own engine, which runs on CPUs too.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ar_t2i.training.checkpoint import Saved
from ar_t2i.training.optim import Ema, OptimConfig, make_optimizer
from ar_t2i.training.parallel import Parallel, check_strategy, no_decay
from ar_t2i.training.sharded import gathered
from ar_t2i.training.task import Task

MOMENTS = "exp_avg", "exp_avg_sq"


class Zero(Parallel):
    """What trains: the weights in each process, the optimizer cut up (DeepSpeed)."""

    optimizer: Any

    def __init__(self, task: Task, optim: OptimConfig, accelerator: Accelerator, compile: bool = False) -> None:
        """Cut up the optimizer.

        Raises:
            ValueError: DeepSpeed is not installed; stage 3, trained companions, Muon or torch.compile.
        """
        check_strategy("DeepSpeed", task, optim, compile)
        self.task, self.accelerator = task, accelerator
        self.ema = Ema(task.trained, optim.ema_decay) if optim.ema_decay else None
        optimizer = make_optimizer(task.trained, optim, no_decay(task))
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.module, self.optimizer = _partition(task, optimizer, optim.clip_norm, accelerator)
        if self.ema:
            self.ema.module.to(accelerator.device)

    def saved(self) -> Saved:
        """As of `Parallel`, DeepSpeed's states in the form of torch's optimizer."""
        from deepspeed.utils import safe_get_full_optimizer_state as full  # pyright: ignore

        step = next((state["step"] for state in self.optimizer.optimizer.state.values()), None)
        states = {}
        self._link()
        if step is not None:
            for index, parameter in enumerate(self.parameters):
                moments = gathered(((name, full(parameter, name)) for name in MOMENTS), self.accelerator)
                states[index] = {"step": step.clone(), **moments}
        weights = dict(self.task.trained.named_parameters())
        return Saved(weights, self._averages(), {"state": states, "param_groups": self.optimizer_groups()})

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """As of `Parallel`; DeepSpeed makes one tensor of each group."""
        groups, start = [], 0
        for group, flat in zip(self.optimizer.optimizer.param_groups, self.optimizer.bit16_groups, strict=True):
            indices = list(range(start, start + len(flat)))
            groups.append({**{name: value for name, value in group.items() if name != "params"}, "params": indices})
            start += len(flat)
        return groups

    def load_optimizer(self, states: dict[int, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
        """As of `Parallel`; DeepSpeed's copy of the weights follows them."""
        from deepspeed.utils import (  # pyright: ignore
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
        )

        if states:
            for flat in self.optimizer.single_partition_of_fp32_groups:
                moments = {name: torch.zeros_like(flat) for name in MOMENTS}
                self.optimizer.optimizer.state[flat] = {"step": states[0]["step"].clone(), **moments}
            self._link()
        for index, parameter in enumerate(self.parameters):
            safe_set_full_fp32_param(parameter, parameter.detach().clone())
            for name in MOMENTS:
                if index in states:
                    safe_set_full_optimizer_state(parameter, states[index][name].to(parameter.device), name)

    def take_step(self, lr: float) -> None:
        """As of `Parallel`; the engine steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.module.step()
        self.optimizer.zero_grad(set_to_none=True)

    def skip_step(self) -> None:
        """As of `Parallel`."""
        super().skip_step()
        self.optimizer.averaged_gradients = {}

    def clip(self, most: float) -> float:
        """The norm of the gradients over all processes; the engine's step does the scaling."""
        norm = float(self.optimizer.scaled_global_norm())
        return norm if norm >= 0 else float("nan")

    def unsynced(self) -> AbstractContextManager[None]:
        """As of `Spread`; the engine is told by `backward`."""
        return nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        """As of `Spread`."""
        self.module.set_gradient_accumulation_boundary(last)
        self.module.backward(loss)

    def _link(self) -> None:
        """Let DeepSpeed find the moments of each parameter; it looks once, which can be before there are any."""
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()


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
