"""What the training loop asks of whatever is trained."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Tensor]
Sums = dict[str, Tensor]


class Companion(Protocol):
    """What changes after each optimizer step beside the task's weights: a discriminator, dead codes of a codebook."""

    def after_step(self, sums: Sums, counts: Tensor) -> dict[str, float]:
        """Do its part, from the step's sums and counts over all processes; returns values to log."""
        ...

    def after_skipped_step(self) -> None:
        """Go on after a step that was not taken."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it: tensors and numbers, alike in every process."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        ...


class Task(Protocol):
    """What is trained."""

    @property
    def output(self) -> Path:
        """Folder of the run."""
        ...

    @property
    def module(self) -> nn.Module:
        """Its forward takes a batch and returns sums over targets; it is what gets wrapped for many processes."""
        ...

    @property
    def trained(self) -> nn.Module:
        """The part whose weights are saved and averaged."""
        ...

    @property
    def no_decay(self) -> Sequence[nn.Parameter]:
        """Parameters without weight decay."""
        ...

    @property
    def companions(self) -> Sequence[Companion]:
        """What changes beside the weights, in the order in which it does."""
        ...

    @property
    def pieces(self) -> int:
        """Micro-batches that `read` makes of each that the run's options ask for, alike in every process."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What must stay equal when a run is resumed."""
        ...

    def read(self, start: int, stop: int) -> Generator[Batch]:
        """Micro-batches start .. stop - 1 of this process; closing it ends what fetches them."""
        ...

    def count(self, batch: Batch) -> Tensor:
        """Numbers of targets in a batch, a vector that adds up over batches."""
        ...

    def loss(self, sums: Sums, counts: Tensor) -> Tensor:
        """The loss of one micro-batch, normalised by the counts of the whole step over all processes."""
        ...

    def metrics(self, sums: Sums, counts: Tensor) -> dict[str, float]:
        """Values to log, from sums and counts over a whole step."""
        ...

    def evaluate(self, module: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Validation values of `module`, the averaged weights where they are kept."""
        ...

    def draws(self, step: int) -> bool:
        """Whether samples are drawn after this step."""
        ...

    def draw(self, trained: nn.Module, step: int, accelerator: Accelerator) -> None:
        """Draw samples, all processes together."""
        ...

    def export(self, trained: nn.Module, step: int) -> None:
        """Write what the run is for, after the checkpoint of this step."""
        ...
