"""The discriminator: a network that learns to tell pictures from reconstructions, and how it is trained and heard.

Shape suffixes: B batch, H and W pixels, h and w grid of logits.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from ar_t2i.titok.vqgan import initialize_convolutions
from ar_t2i.training.optim import OptimConfig, lr_at, make_optimizer
from ar_t2i.training.parallel import Copied, clip_gradients
from ar_t2i.training.task import Batch, Sums

_LOGITS = ("logits_real", "logits_fake")


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """The discriminator; the defaults are those of TiTok's second stage."""

    weight: float = 0.01
    """Weight of the discriminator's opinion in the loss; 0 trains none."""
    factor: float = 1.0
    """Multiplies that weight, and the discriminator's own hinge loss."""
    start: int = 20_000
    """Optimizer steps after which the discriminator begins to learn and to be heard."""
    learning_rate: float = 1e-4
    """Its highest learning rate; warm-up and schedule are the model's, counted from its start."""
    lecam_weight: float = 0.001
    """Weight of the LeCam regularisation; 0 leaves it out."""
    lecam_decay: float = 0.999
    """Decay of the averages of logits that LeCam compares with."""
    hidden_channels: int = 128
    """Channels of its first stage, a multiple of 32."""
    stages: int = 3
    """Times that it halves the picture; channels double at each after the first."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("weight", "factor", "start", "learning_rate", "lecam_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"gan.{name}={getattr(self, name)}: expected 0 or more")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"gan.lecam_decay={self.lecam_decay}: expected 0 to below 1")
        if self.hidden_channels < 32 or self.hidden_channels % 32:
            raise ValueError(f"gan.hidden_channels={self.hidden_channels}: expected a multiple of 32")
        if self.stages < 1:
            raise ValueError(f"gan.stages={self.stages}: expected at least 1")


class Discriminator(nn.Module):
    """Pictures (B, 3, H, W) to a grid of logits (B, 1, 16, 16), each of a patch: high for real ones.

    The layout that TiTok trains with: 3x3 convolutions, blurred halving (arXiv 1904.11486), group norms.
    """

    blur_1144: Tensor

    def __init__(self, hidden_channels: int, stages: int) -> None:
        super().__init__()
        widths = [hidden_channels * 2 ** max(0, i - 1) for i in range(stages + 1)]
        self.first = nn.Conv2d(3, hidden_channels, 5, padding=2)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(num_in, num_out, 3, padding=1) for num_in, num_out in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(32, width) for width in widths[1:])
        self.mix = nn.Conv2d(widths[-1], widths[-1], 1)
        self.last = nn.Conv2d(widths[-1], 1, 5, padding=2)
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("blur_1144", (row[:, None] * row).view(1, 1, 4, 4), persistent=False)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits, not squashed; in float32, as published."""
        with torch.autocast(pixels_B3HW.device.type, enabled=False):
            return self._logits(pixels_B3HW.float())

    def _logits(self, pixels_B3HW: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(pixels_B3HW), 0.1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(x)
            x = F.conv2d(x, self.blur_1144.expand(x.shape[1], -1, -1, -1), None, 2, 1, 1, x.shape[1])
            x = F.leaky_relu(norm(x), 0.1)
        x = F.leaky_relu(self.mix(F.adaptive_max_pool2d(x, 16)), 0.1)
        return self.last(x)


class HingeLoss(nn.Module):
    """What a discriminator learns from: hinge losses (arXiv 1705.02894) and mean logits, summed over pictures."""

    def __init__(self, network: Discriminator) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, painted: Tensor) -> Sums:
        """`pixels` are real pictures, `painted` reconstructions; one pass, as DDP wants one."""
        real_B1hw, fake_B1hw = self.network(torch.cat([pixels, painted])).float().chunk(2)
        return {
            "hinge_real": _sum_of_means(F.relu(1 - real_B1hw)),
            "hinge_fake": _sum_of_means(F.relu(1 + fake_B1hw)),
            "logits_real": _sum_of_means(real_B1hw),
            "logits_fake": _sum_of_means(fake_B1hw),
        }


def lecam(real: Tensor, fake: Tensor, average_real: Tensor, average_fake: Tensor) -> Tensor:
    """LeCam regularisation (arXiv 2104.03310) of mean logits against running averages of the other kind's.

    max(0, real - average_fake)^2 + max(0, average_real - fake)^2, as TiTok's recipe has it.
    """
    return F.relu(real - average_fake).square() + F.relu(average_real - fake).square()


class Gan:
    """A discriminator, its optimizer and its averages; a companion of the training loop.

    While it is `active`, the model's forward pass asks `judge` for its opinion of a micro-batch, and after the model's
    step it learns from the same pictures and reconstructions. It learns nothing from the model's backward pass.
    """

    def __init__(self, config: GanConfig, optim: OptimConfig, steps: int, accelerator: Accelerator, seed: int) -> None:
        """Make a discriminator.

        Args:
            config: the options.
            optim: the model's optimizer; decay of the averages and of the weights, warm-up and clipping are shared.
            steps: optimizer steps of the run.
            accelerator: of the run.
            seed: of its weights.
        """
        self.config, self.steps, self.accelerator = config, steps, accelerator
        self.optim = replace(optim, name="adamw", lr=config.learning_rate)
        self.network = Discriminator(config.hidden_channels, config.stages)
        initialize_convolutions(self.network, torch.Generator().manual_seed(seed))
        optimizer = make_optimizer(self.network, self.optim)
        self.optimizer = accelerator.prepare(optimizer)
        self.loss = Copied(HingeLoss(self.network), accelerator)
        self.step = 0
        self.averages = torch.zeros(2, device=accelerator.device)  # of the logits of real pictures and of others
        self._seen: list[Batch] = []

    @property
    def active(self) -> bool:
        """Whether it learns and is heard."""
        return self.step >= self.config.start

    def judge(self, pixels_B3HW: Tensor, painted_B3HW: Tensor) -> Sums:
        """Sums over pictures of its mean logits; gradients reach `painted_B3HW` and no weight of its own."""
        self._seen.append({"pixels": pixels_B3HW, "painted": painted_B3HW.detach()})
        weights = {name: weight.detach() for name, weight in self.network.named_parameters()}
        sums = {"logits_fake": _sum_of_means(functional_call(self.network, weights, (painted_B3HW,)).float())}
        if self.config.lecam_weight:
            with torch.no_grad():  # the mean over the whole step has to be known before the first backward pass
                sums["logits_real"] = _sum_of_means(self.network(pixels_B3HW).float())
        return sums

    def after_step(self, sums: Sums, counts: Tensor) -> dict[str, float]:
        """One step of the discriminator, on what it has judged."""
        values = self._learn(sums, counts[0]) if self.active else {}
        self.step += 1
        return values

    def _learn(self, sums: Sums, count: Tensor) -> dict[str, float]:
        factor, lecam_weight = 0.5 * self.config.factor, self.config.lecam_weight

        def loss_of(part: Sums) -> Tensor:
            loss = factor * (part["hinge_real"] + part["hinge_fake"]) / count
            if lecam_weight:
                # The value is the whole step's, the gradient this part's: parts add up to the whole however it is cut.
                means = [(sums[name] + part[name] - part[name].detach()) / count for name in _LOGITS]
                loss = loss + lecam_weight * lecam(*means, *self.averages)
            return loss

        _, total = self.loss.accumulate(self._seen, loss_of)
        self._seen.clear()
        lr = lr_at(self.step - self.config.start, max(1, self.steps - self.config.start), self.optim)
        norm = float(clip_gradients(self.network.parameters(), self.optim.clip_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        hinge = factor * (total["hinge_real"] + total["hinge_fake"]) / count
        values = {"discriminator_loss": float(hinge), "discriminator_grad_norm": norm}
        means = torch.stack([total[name] / count for name in _LOGITS])
        values |= dict(zip(_LOGITS, means.tolist(), strict=True))
        if lecam_weight:
            values["lecam_loss"] = float(lecam_weight * lecam(*means, *self.averages))
            if means.isfinite().all():
                self.averages.lerp_(means, 1 - self.config.lecam_decay)
        return values

    def after_skipped_step(self) -> None:
        """Forget what it has judged."""
        self._seen.clear()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, averages and step."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.cpu(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.copy_(state["averages"])
        self.step = state["step"]


def _sum_of_means(values_B1hw: Tensor) -> Tensor:
    return values_B1hw.mean((1, 2, 3)).sum()
