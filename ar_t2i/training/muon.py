"""Muon: updates of weight matrices with all their singular values made about equal; AdamW for everything else."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ar_t2i.device import has_fast_bf16

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that moves singular values towards 1, https://kellerjordan.github.io/posts/muon/."""
_ROUNDS = 5

MOMENTUM = 0.95
"""Decay of the gradient's mean."""


class Muon(torch.optim.AdamW):
    """Momentum, orthogonalised, for the groups with `muon=True`; fused AdamW for the others.

    An update is scaled to the root mean square of AdamW's, 0.2 sqrt(max(rows, columns)) times the orthogonal factor
    (arXiv 2502.16982, equation 4), so one learning rate and weight decay fit both. A convolution's filters are a
    matrix of (channels out, channels in * height * width). `torch.optim.Muon` takes no filters.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__([{"muon": False, **group} for group in groups], lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters; a closure is not supported."""
        assert closure is None
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Matrices of one shape together, because many of them are small."""
        alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows = len(parameter)
                alike[rows, parameter.numel() // rows].append(parameter)
        for shape, parameters in alike.items():
            updates = orthogonal(torch.stack([self._direction(parameter).view(shape) for parameter in parameters]))
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _direction(self, parameter: Tensor) -> Tensor:
        """The gradient's mean, looked at one step ahead (Nesterov)."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            # AdamW's loading of a state asks every parameter for its step.
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM).contiguous()


def orthogonal(matrices_PMN: Tensor) -> Tensor:
    """Matrices (P, M, N) with the same singular vectors and singular values near 1 (Newton-Schulz).

    In bfloat16 where that is fast: emulated, as on a CPU without it, it would take most of the time of a step.
    """
    tall = matrices_PMN.shape[1] > matrices_PMN.shape[2]
    fast = has_fast_bf16(matrices_PMN.device)
    x = (matrices_PMN.mT if tall else matrices_PMN).to(torch.bfloat16 if fast else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_PMN.dtype)
