"""Train a `SlotTokenizer`: on the embedded scenes, or on a few thousand pictures of one's own.

    autoencoder   the convolutions alone: pictures to features and back
    joint         slots start at the principal components of the features, the codebook at the slots; then everything
                  trains through the quantiser, straight-through (arXiv 1711.00937)
    polish        encoder, mixer and codebook stay, so codes no longer change, and the way back to pixels trains on

Steps are counted through all three.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from ar_t2i.config import to_yaml
from ar_t2i.device import has_fast_bf16, keep_freed_memory, pick_device
from ar_t2i.hub import replace_directory
from ar_t2i.pipeline import make_grid
from ar_t2i.slots import SlotConfig, SlotTokenizer
from ar_t2i.slots.codebook import CodebookAverage, CodeUsage, start_from_components
from ar_t2i.slots.objective import Stage, picture_loss, psnr, reconstruct
from ar_t2i.training.optim import OptimConfig, lr_at, make_optimizer
from ar_t2i.training.pictures import SCENES, PictureBatch, PictureStream, picture_batches, unseen_pictures
from ar_t2i.training.trackers import read_metrics


@dataclass(frozen=True, kw_only=True)
class SlotTrainingConfig:
    """Options of `ar-t2i tokenizer train`."""

    output: str = "runs/tokenizer"
    """Folder of the run: tokenizer/ is the result; metrics.jsonl, pictures/ of reconstructions, checkpoint/."""
    data: tuple[str, ...] = SCENES
    """scenes, drawn afresh for every batch; or pictures in tars, folders or tables, as for preprocess."""
    model: SlotConfig = field(default_factory=SlotConfig)
    """Shape of the tokenizer."""
    autoencoder_steps: int = 2500
    """Steps of the convolutions alone."""
    joint_steps: int = 4000
    """Steps of everything, through the quantiser."""
    polish_steps: int = 1500
    """Steps of the way back to pixels, with the codes fixed."""
    batch_size: int = 8
    """Pictures a step. On little compute many small steps learn more from a picture than few large ones."""
    learning_rate: float = 1e-3
    """Highest learning rate of the first stage, twice that of the others; in each it falls to nearly 0 as a cosine."""
    edge_weight: float = 0.5
    """Weight of the L1 loss on differences of neighbouring pixels, which keeps edges crisp."""
    commitment_weight: float = 0.1
    """Weight of the pull of a slot to its codebook entry."""
    start_pictures: int = 6144
    """Pictures whose features give the principal components and the first codebook."""
    validation_pictures: int = 200
    """Unseen pictures to measure on; of pictures in files, one in 20 is held out for this."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the machine computes it fast. Weights are kept in float32."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    log_every: int = 50
    """Steps between records in metrics.jsonl."""
    evaluate_every: int = 500
    """Steps between measurements, each with a picture and a checkpoint."""
    workers: int = 1
    """Processes that make pictures ready; 0 does it in between."""
    seed: int = 0
    """Seed of the weights and of the pictures."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a value out of range.
        """
        for name in ("joint_steps", "batch_size", "validation_pictures", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        weights = ("learning_rate", "edge_weight", "commitment_weight")
        for name in ("autoencoder_steps", "polish_steps", "workers", *weights):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if self.start_pictures < 2:
            raise ValueError(f"start_pictures={self.start_pictures}: expected some thousands, at least 2")

    @property
    def stages(self) -> dict[Stage, range]:
        """The steps of each stage."""
        joint = self.autoencoder_steps
        polish = joint + self.joint_steps
        return {
            "autoencoder": range(joint),
            "joint": range(joint, polish),
            "polish": range(polish, polish + self.polish_steps),
        }


def train_slots(config: SlotTrainingConfig, resume: str = "") -> Path:
    """Train a slot tokenizer.

    Args:
        config: the options.
        resume: "" starts anew, "auto" takes the checkpoint in `config.output` if there is one, else a folder of one.

    Returns:
        the folder of the tokenizer, for `SlotTokenizer.from_pretrained`.

    Raises:
        ValueError: data that holds no pictures, a checkpoint that does not fit, or a loss that is not finite.
    """
    keep_freed_memory()
    if not resume and (Path(config.output) / "metrics.jsonl").exists():
        raise ValueError(
            f"output={config.output!r} holds a run already: pass --resume to go on, or give another output"
        )
    run = _Run(config)
    run.load(resume)
    stream = PictureStream(
        config.data, batch_size=config.batch_size, size=config.model.image_size, seed=config.seed, start=run.step
    )
    batches = picture_batches(stream, config.workers)
    ends = [steps.stop for steps in config.stages.values()]
    while run.step < ends[-1]:
        run.enter_stage(batches)
        run.train_step(next(batches))
        if run.step % config.log_every == 0:
            run.log(run.meter.read())
        if run.step % config.evaluate_every == 0 or run.step in ends:
            run.evaluate()
            run.save()
    run.round_weights()
    folder = replace_directory(run.output / "tokenizer", run.model.save_pretrained)
    print(f"image tokenizer: {folder}   reconstructions: {run.output / 'pictures'}")
    return folder


class _Run:
    """One training run: the model and whatever changes with it."""

    def __init__(self, config: SlotTrainingConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.output = config, Path(config.output)
        self.device = pick_device(config.device)
        fast = has_fast_bf16(self.device) if config.precision == "auto" else config.precision == "bf16"
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=fast)
        self.model = model = SlotTokenizer(config.model).to(self.device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.stage: Stage | None = None
        self.optim, self.optimizer = OptimConfig(), make_optimizer(model, OptimConfig(), ())
        self.average = CodebookAverage(model.codebook_KD)
        self.meter, self.usage = _Meter(), CodeUsage(model.codebook_size)
        unseen = unseen_pictures(config.data, config.validation_pictures, config.model.image_size, config.seed)
        self.unseen = self.pixels(unseen)
        (self.output / "pictures").mkdir(parents=True, exist_ok=True)
        (self.output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")

    def pixels(self, pictures_BHW3: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) uint8 as the model takes them, (B, 3, H, W) in [0, 1]."""
        return pictures_BHW3.to(self.device).permute(0, 3, 1, 2).float().div(255)

    def enter_stage(self, batches: Iterator[PictureBatch]) -> None:
        """At the first step of a stage, get ready for it."""
        stage: Stage = next(name for name, steps in self.config.stages.items() if self.step in steps)
        if stage == self.stage:
            return
        if stage == "joint":
            count = math.ceil(self.config.start_pictures / self.config.batch_size)
            with torch.no_grad(), self.autocast:
                features = [self.model.features(self.pixels(next(batches).pixels)).float() for _ in range(count)]
            start_from_components(self.model, torch.cat(features), self.generator)
            self.average = CodebookAverage(self.model.codebook_KD)
        if stage == "polish":
            self.round_weights()  # now, not only at the end, because rounding can change codes
        self.set_stage(stage)
        self.evaluate()

    def set_stage(self, stage: Stage) -> None:
        """Train what the stage trains, with a fresh optimizer."""
        self.stage = stage
        for part in (self.model.encoder, self.model.mixer):
            part.requires_grad_(stage != "polish")
        steps, lr = len(self.config.stages[stage]), self.config.learning_rate * (1 if stage == "autoencoder" else 0.5)
        warmup = min(100, steps // 10)
        self.optim = OptimConfig(lr=lr, warmup_steps=warmup, weight_decay=0.01, min_lr_ratio=0.01)
        self.optimizer = make_optimizer(self.model, self.optim, ())

    def round_weights(self) -> None:
        """Round all weights to float16, so that they can be stored so without a change."""
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                tensor.copy_(tensor.half().float())

    def train_step(self, batch: PictureBatch) -> None:
        """One step of the optimizer."""
        assert self.stage is not None, "enter_stage comes first"
        pixels, steps = self.pixels(batch.pixels), self.config.stages[self.stage]
        lr = lr_at(self.step - steps.start, len(steps), self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.autocast:
            painted, slots, codes = reconstruct(self.model, pixels, self.stage)
        loss = picture_loss(painted, pixels, self.config.edge_weight)
        values = {"loss": loss.detach(), "lr": lr}
        if self.stage == "joint" and slots is not None:
            pull = (1 - (slots * self.model.codebook_KD[codes]).sum(-1)).mean()
            loss = loss + self.config.commitment_weight * pull
            values["commitment"] = pull.detach()
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} at step {self.step}: lower learning_rate, then resume")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        values["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if codes is not None:
            self.usage.add(codes)
        if self.stage == "joint" and slots is not None and codes is not None:
            values["restarted_codes"] = self.average.update(slots, codes, self.generator)
        self.meter.add(values, batch)
        self.step += 1

    @torch.no_grad()
    def evaluate(self) -> None:
        """Measure on unseen pictures and draw 16 of them beside their reconstructions."""
        assert self.stage is not None, "enter_stage comes first"
        started = time.perf_counter()
        found = torch.cat([reconstruct(self.model, part, self.stage)[0] for part in self.unseen.split(32)]).clamp(0, 1)
        values = {"validation_psnr": psnr(found, self.unseen), **self.usage.read()}
        self.log(values)
        pairs = torch.stack([self.unseen[:16], found[:16]], dim=1).flatten(0, 1)
        arrays = (pairs * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        grid = make_grid([Image.fromarray(array) for array in arrays], columns=8)
        grid.save(self.output / "pictures" / f"step-{self.step:06d}-{self.stage}.png")
        told = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        self.meter.started += time.perf_counter() - started
        print(f"step {self.step}, {self.stage}: {told}", flush=True)

    def log(self, values: dict[str, Any]) -> None:
        """Write a record to metrics.jsonl."""
        with (self.output / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "stage": self.stage, **values}) + "\n")

    def save(self) -> None:
        """Write checkpoint/."""
        state = {
            "step": self.step,
            "stage": self.stage,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.average.counts_K,
            "sums": self.average.sums_KD,
        }
        replace_directory(self.output / "checkpoint", lambda folder: torch.save(state, folder / "state.pt"))

    def load(self, resume: str) -> None:
        """Go on from a checkpoint, or start anew; for `resume` see `train_slots`."""
        folder = self.output / "checkpoint" if resume == "auto" else Path(resume)
        log = self.output / "metrics.jsonl"
        if not resume or (resume == "auto" and not folder.is_dir()):
            log.unlink(missing_ok=True)
            return
        try:
            state = torch.load(folder / "state.pt", weights_only=True, map_location=self.device)
            self.model.load_state_dict(state["model"])
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot resume from {str(folder)!r}: {' '.join(str(error).split())}") from error
        self.step = state["step"]
        if self.step in self.config.stages[state["stage"]]:
            self.set_stage(state["stage"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.average.counts_K, self.average.sums_KD = state["counts"], state["sums"]
        kept = [record for record in read_metrics(log) if record["step"] <= self.step]
        log.write_text("".join(json.dumps(record) + "\n" for record in kept))


class _Meter:
    """Means of what steps report since the last record, and pictures per second."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.dropped: dict[str, int] = {}
        self.steps, self.pictures, self.started = 0, 0, time.perf_counter()

    def add(self, values: dict[str, Any], batch: PictureBatch) -> None:
        """Count one step."""
        for name, value in values.items():
            self.sums[name] += float(value)
        self.steps, self.pictures, self.dropped = self.steps + 1, self.pictures + len(batch.pixels), batch.dropped

    def read(self) -> dict[str, float]:
        """The record; starts anew."""
        record = {name: total / self.steps for name, total in self.sums.items()}
        record["pictures_per_second"] = self.pictures / (time.perf_counter() - self.started)
        record |= {f"dropped_{reason}": count for reason, count in self.dropped.items()}
        self.sums.clear()
        self.steps, self.pictures, self.started = 0, 0, time.perf_counter()
        return record
