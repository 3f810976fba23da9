"""AdamW with decoupled groups, learning-rate schedules, and the moving average of the weights."""

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ar_t2i.training.muon import Muon


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning rate."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw (arXiv 1711.05101); or muon (arXiv 2502.16982): matrices and filters, but not embeddings, get updates with
    equal singular values, at AdamW's scale. In short trials it needed a fraction of the steps."""
    lr: float = 1e-3
    """Highest learning rate."""
    beta1: float = 0.9
    """Decay of the gradient's mean."""
    beta2: float = 0.95
    """Decay of the gradient's square."""
    weight_decay: float = 0.05
    """Decay of weight matrices; norms, biases and embeddings have none."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: cosine to the end, or warmup-stable-decay, linear at the end (arXiv 2404.06395)."""
    decay_fraction: float = 0.2
    """wsd: the last part of the run, in which the learning rate falls."""
    min_lr_ratio: float = 0.05
    """The last learning rate as a part of the highest."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, the ones that are saved for use; 0 keeps none."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, low, high in (
            ("beta1", 0, 1), ("beta2", 0, 1), ("decay_fraction", 0, 1), ("min_lr_ratio", 0, 1), ("ema_decay", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high or (name.startswith("beta") and getattr(self, name) == 1):
                raise ValueError(f"optim.{name}={getattr(self, name)}: expected {low} to {high}")
        for name in ("lr", "weight_decay", "warmup_steps", "clip_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"optim.{name}={getattr(self, name)}: expected 0 or more")


def make_optimizer(module: nn.Module, config: OptimConfig, no_decay: Collection[str] = ()) -> torch.optim.AdamW:
    """The optimizer of the parameters that train: matrices decay; vectors and those named in `no_decay` do not."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    decays = [parameter for name, parameter in trained if parameter.ndim >= 2 and name not in no_decay]
    rest = [parameter for name, parameter in trained if parameter.ndim < 2 or name in no_decay]
    groups = [
        {"params": decays, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    if config.name == "muon":
        groups[0]["muon"] = True
        return Muon(groups, lr=config.lr, betas=(config.beta1, config.beta2))
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 0, in a run of `steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        shape = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        left = (steps - step) / max(1.0, steps * config.decay_fraction)
        shape = min(1.0, max(0.0, left))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * shape)


class Ema:
    """A moving average of a module's parameters; early on it follows faster, as (1 + n) / (10 + n).

    Attributes:
        module: a whole module with the averages, unless they are those of a module that is cut up.
        averages: of the parameters, in their order.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.averages: list[Tensor] = list(self.module.parameters())
        self.decay = decay

    def follow(self, module: nn.Module) -> None:
        """Begin anew at the parameters of a module that was cut up since, cut as they are."""
        self.averages = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the parameters of `module` after optimizer step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, parameter in zip(self.averages, module.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
