"""What all recipes share: options, pictures in, measurements and sample grids on the way, a folder out."""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ar_t2i.bundles import replace_directory
from ar_t2i.config import to_yaml
from ar_t2i.data.pictures import SCENES, PictureStream, read_pictures, unseen_pictures
from ar_t2i.hub.names import resolve
from ar_t2i.pipeline import make_grid, to_uint8
from ar_t2i.training.checkpoint import read_checkpoint
from ar_t2i.training.folder import choose_checkpoint, claimed
from ar_t2i.training.loop import LoopConfig, make_accelerator, train
from ar_t2i.training.optim import OptimConfig
from ar_t2i.training.task import Batch, Companion, Sums
from ar_t2i.training.tokenizer.codes import CodesConfig
from ar_t2i.training.tokenizer.objective import Objective, to_pixels

_DRAWN = 8


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainConfig:
    """Options of every recipe."""

    output: str
    """Folder of the run: the result, checkpoints, metrics.jsonl, pictures/ of originals above reconstructions."""
    data: tuple[str, ...] = SCENES
    """scenes, drawn afresh for every batch; or pictures in tars, folders or tables, as for preprocess."""
    batch_size: int = 16
    """Pictures in a micro-batch of one process."""
    random_flip: bool = False
    """Mirror every other picture. The published recipes do; where left and right have a meaning, do not."""
    validation_pictures: int = 200
    """Unseen pictures to measure on; of pictures in files, one in 20 is held out for this."""
    draw_every: int = 500
    """Steps between pictures of reconstructions; 0 draws at the end alone."""
    workers: int = 1
    """Processes that make pictures ready; 0 does it in between."""
    seed: int = 0
    """Seed of weights and pictures."""
    codes: CodesConfig = field(default_factory=CodesConfig)
    """The codebook."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Length and rhythm."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a value out of range.
        """
        for name, low in (("batch_size", 1), ("validation_pictures", 1), ("draw_every", 0), ("workers", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {low}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: expected 0 to {2**32 - 1}")


Config = TypeVar("Config", bound=TokenizerTrainConfig)


class TokenizerTask:
    """An image tokenizer on pictures, for `ar_t2i.training.loop`."""

    def __init__(
        self,
        config: TokenizerTrainConfig,
        model: nn.Module,
        objective: nn.Module,
        companions: Sequence[Companion],
        accelerator: Accelerator,
        *,
        image_size: int,
        result: str,
        facts: dict[str, Any],
    ) -> None:
        """Put a recipe together.

        Args:
            config: the options.
            model: what trains, with `save_pretrained`.
            objective: an `Objective` of that model.
            companions: what changes after each step, in order.
            accelerator: of the run.
            image_size: height and width of pictures in pixels.
            result: name of the folder in the output that the trained model is written to.
            facts: what must stay equal on resume, beside what all recipes have.
        """
        self.config, self.output, self.result = config, Path(config.output), result
        self.module, self.trained, self.companions, self.pieces = objective, model, companions, 1
        self.objective: Objective = objective  # type: ignore[assignment]
        self.no_decay = [
            parameter for name, parameter in model.named_parameters() if "embed" in name or "token" in name
        ]
        self.stream = PictureStream(
            config.data, batch_size=config.batch_size, size=image_size, seed=config.seed,
            rank=accelerator.process_index, ranks=accelerator.num_processes,
        )  # fmt: skip
        self.unseen = unseen_pictures(config.data, config.validation_pictures, image_size, config.seed)
        self.device, self.dropped = accelerator.device, Counter[str]()
        self.facts = {
            "data": " ".join(config.data), "seed": config.seed, "batch_size": config.batch_size,
            "processes": accelerator.num_processes, "accumulation": config.loop.gradient_accumulation_steps,
            "steps": config.loop.steps, "random_flip": config.random_flip, "averaged": config.optim.ema_decay > 0,
            **facts,
        }  # fmt: skip

    def read(self, start: int, stop: int) -> Generator[Batch]:
        """Micro-batches start .. stop - 1 of this process."""
        loop, rank = self.config.loop, self.stream.rank
        segment = loop.checkpoint_every * loop.gradient_accumulation_steps
        self.stream.start = start
        with closing(read_pictures(self.stream, stop, self.config.workers, segment)) as batches:
            for number, batch in enumerate(batches, start):
                pictures_BSS3 = batch.pixels
                self.dropped.update(batch.dropped)
                if self.config.random_flip:
                    rng = np.random.default_rng((self.config.seed, number * self.stream.ranks + rank))
                    flipped_B111 = torch.from_numpy(rng.random(len(pictures_BSS3)) < 0.5).view(-1, 1, 1, 1)
                    pictures_BSS3 = torch.where(flipped_B111, pictures_BSS3.flip(2), pictures_BSS3)
                yield {"pictures": pictures_BSS3}

    def count(self, batch: Batch) -> Tensor:
        """The number of pictures."""
        return torch.tensor([len(batch["pictures"])], device=batch["pictures"].device)

    def loss(self, sums: Sums, counts: Tensor) -> Tensor:
        """The objective's loss, a mean over the pictures of the whole step."""
        return self.objective.loss(sums, counts[0])

    def metrics(self, sums: Sums, counts: Tensor) -> dict[str, float]:
        """Mean losses without their weights, and pictures that this process could not read since it started."""
        means = {name: float(total / counts[0]) for name, total in sums.items() if total.ndim == 0}
        losses = {name if "_" in name else f"{name}_loss": value for name, value in means.items()}
        dropped = {f"dropped_{reason}": count for reason, count in self.dropped.items()}
        return {**losses, **dropped, "n_pictures": float(counts[0])}

    @torch.no_grad()
    def evaluate(self, module: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Means over the unseen pictures, shared out over the processes."""
        names = self.objective.measures
        totals = torch.zeros(len(names) + 1, device=accelerator.device)
        mine = self.unseen[accelerator.process_index :: accelerator.num_processes]
        for pictures in mine.split(self.config.batch_size):
            with accelerator.autocast():
                found = self.objective.measure(module, to_pixels(pictures.to(accelerator.device)))
            totals += torch.cat([found.float().sum(0), totals.new_tensor([len(pictures)])])
        *sums, count = accelerator.reduce(totals, "sum").tolist()  # type: ignore[union-attr]
        return {name: total / count for name, total in zip(names, sums, strict=True)}

    def draws(self, step: int) -> bool:
        """At the steps that the config asks for."""
        every = self.config.draw_every
        return step == self.config.loop.steps or (every > 0 and step % every == 0)

    @torch.no_grad()
    def draw(self, trained: nn.Module, step: int, accelerator: Accelerator) -> None:
        """Unseen pictures above their reconstructions; eight, so that the main process draws them alone."""
        if not accelerator.is_main_process:
            return
        pixels = to_pixels(self.unseen[:_DRAWN].to(self.device))
        pair = torch.cat([pixels, self.objective.paint(trained, pixels)])
        folder = self.output / "pictures"
        folder.mkdir(exist_ok=True)
        grid = make_grid([Image.fromarray(array) for array in to_uint8(pair)], columns=len(pixels))
        grid.save(folder / f"step-{step:06d}.png")

    def export(self, trained: nn.Module, step: int) -> None:
        """The averaged weights with their config."""
        replace_directory(self.output / self.result, lambda folder: self.write(trained, folder))

    def write(self, trained: nn.Module, folder: Path) -> None:
        """Into a folder that is put in place when it is whole."""
        trained.save_pretrained(folder)  # type: ignore[operator]


def run(config: Config, recipe: str, make: Callable[[Config, Accelerator], TokenizerTask], resume: str = "") -> Path:
    """Train by a recipe; returns the folder of the result.

    Args:
        config: the options.
        recipe: its name, which goes into config.yaml.
        make: makes its task.
        resume: as `find_checkpoint` takes it.

    Raises:
        ValueError: something in the config, the data or the checkpoint does not fit; nothing has been written then.
    """
    output = Path(config.output)
    accelerator = make_accelerator(config.loop, output)
    checkpoint = choose_checkpoint(output, resume, accelerator)
    task = make(config, accelerator)
    if checkpoint is not None:
        read_checkpoint(checkpoint, task.facts)
    with claimed(output, f"recipe: {recipe}\n{to_yaml(config)}", accelerator):
        train(task, config.loop, config.optim, accelerator, output, checkpoint, config.seed)
    folder = output / task.result
    accelerator.print(f"{recipe}: {folder}   reconstructions: {output / 'pictures'}")
    return folder


def local(name: str) -> Path:
    """A file or folder of that name, or a Hub repository's folder.

    Raises:
        ValueError: neither.
    """
    return Path(name) if Path(name).is_file() else resolve(name)
