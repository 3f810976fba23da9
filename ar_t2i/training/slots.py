"""Train a `SlotTokenizer`: on the embedded scenes, or on a few thousand pictures of one's own.

    autoencoder   the convolutions alone: pictures to features and back
    bottleneck    features to codes and back, on features computed once: a step costs no convolution, so slots and
                  codebook see hundreds of pictures a step. They start at the features' principal components; errors
                  of features count by what they do to pixels
    polish        codes no longer change, and the way back to pixels trains on

Steps are counted through all three.
"""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from ar_t2i.bundles import replace_directory
from ar_t2i.config import to_yaml
from ar_t2i.data.pictures import (
    SCENES,
    PictureBatch,
    PictureStream,
    picture_batches,
    read_pictures,
    unseen_pictures,
)
from ar_t2i.device import has_fast_bf16, keep_freed_memory, pick_device
from ar_t2i.likeness import psnr
from ar_t2i.pipeline import make_grid
from ar_t2i.slots import SlotConfig, SlotTokenizer
from ar_t2i.slots.codebook import CodebookAverage, CodeUsage, start_from_components
from ar_t2i.slots.objective import Damage, Stage, picture_loss, pixel_weights, reconstruct, squeeze
from ar_t2i.training.checkpoint import check_facts, load_states, save_states
from ar_t2i.training.optim import OptimConfig, lr_at, make_optimizer
from ar_t2i.training.trackers import read_metrics

_START_PICTURES = 8192
"""Pictures whose features give the principal components and the first codebook."""

_WEIGHED_PICTURES = 256
"""Pictures on which the effect of features on pixels is measured."""

_POLISH_RATE = 0.2
"""Share of the learning rate in the polish stage: at 0.5 the decoder lost 1.3 dB in the first 250 steps."""


@dataclass(frozen=True, kw_only=True)
class SlotTrainingConfig:
    """Options of `ar-t2i tokenizer train`."""

    output: str = "runs/tokenizer"
    """Folder of the run: tokenizer/ is the result; metrics.jsonl, pictures/ of reconstructions, checkpoint/."""
    data: tuple[str, ...] = SCENES
    """scenes, drawn afresh for every batch; or pictures in tars, folders or tables, as for preprocess."""
    model: SlotConfig = field(default_factory=SlotConfig)
    """Shape of the tokenizer."""
    autoencoder_steps: int = 2000
    """Steps of the convolutions alone."""
    bottleneck_steps: int = 3000
    """Steps of slots and codebook, on features."""
    polish_steps: int = 2000
    """Steps of the way back to pixels, with the codes fixed."""
    batch_size: int = 8
    """Pictures a step. On little compute many small steps learn more from a picture than few large ones."""
    bottleneck_batch_size: int = 256
    """Pictures a step of the bottleneck stage, as features."""
    bottleneck_pictures: int = 32768
    """Pictures whose features the bottleneck stage trains on; each takes 2 KB of memory at the default sizes."""
    learning_rate: float = 2.5e-3
    """Highest learning rate, a fifth of it in the polish stage; in each stage it falls to nearly 0 as a cosine."""
    edge_weight: float = 0.5
    """Weight of the L1 loss on differences of neighbouring pixels, which keeps edges crisp."""
    commitment_weight: float = 0.1
    """Weight of the pull of a slot to its codebook entry."""
    tail_drop: float = 0.3
    """Chance that only a picture's first codes are kept, which moves content to the front. Like `swap`, this is
    about the bottleneck stage, and falls to 0 until its end, so that its last steps learn detail."""
    swap: float = 0.03
    """Chance that a code is painted as another picture's, which makes wrong codes harmless."""
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
        for name in (
            "bottleneck_steps", "batch_size", "bottleneck_batch_size", "validation_pictures", "log_every",
            "evaluate_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        weights = ("learning_rate", "edge_weight", "commitment_weight")
        for name in ("autoencoder_steps", "polish_steps", "workers", *weights):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        for name in ("tail_drop", "swap"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to less than 1")
        if self.bottleneck_pictures < 2:
            raise ValueError(f"bottleneck_pictures={self.bottleneck_pictures}: expected some thousands, at least 2")

    @property
    def stages(self) -> dict[Stage, range]:
        """The steps of each stage."""
        bottleneck = self.autoencoder_steps
        polish = bottleneck + self.bottleneck_steps
        return {
            "autoencoder": range(bottleneck),
            "bottleneck": range(bottleneck, polish),
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
    with closing(_Run(config)) as run:
        run.load(resume)
        (run.output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        ends = [steps.stop for steps in config.stages.values()]
        while run.step < ends[-1]:
            run.enter_stage()
            if run.stage == "bottleneck":
                run.feature_step()
            else:
                run.picture_step(next(run.batches))
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
        self.step = 0
        self.stage: Stage | None = None
        self.batches: Generator[PictureBatch] = (batch for batch in ())
        self.optim, self.optimizer = OptimConfig(), make_optimizer(model, OptimConfig())
        self.average = CodebookAverage(model.codebook_KD)
        self.features_NF: Tensor | None = None
        self.weights_F = torch.ones_like(model.feature_std_F)
        self.meter, self.usage = _Meter(), CodeUsage(model.codebook_size)
        unseen = unseen_pictures(config.data, config.validation_pictures, config.model.image_size, config.seed)
        self.unseen = self.pixels(unseen)
        (self.output / "pictures").mkdir(parents=True, exist_ok=True)
        free = {"output", "device", "workers", "log_every", "validation_pictures"}
        self.facts = {name: value for name, value in asdict(config).items() if name not in free}
        self.facts = json.loads(json.dumps(self.facts))  # lists for tuples, as a checkpoint gives them back

    def stream(self, batch_size: int, seed: int, start: int = 0) -> PictureStream:
        """Pictures to train on."""
        size = self.config.model.image_size
        return PictureStream(self.config.data, batch_size=batch_size, size=size, seed=seed, start=start)

    def pixels(self, pictures_BHW3: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) uint8 as the model takes them, (B, 3, H, W) in [0, 1]."""
        return pictures_BHW3.to(self.device).permute(0, 3, 1, 2).float().div(255)

    def generator(self) -> torch.Generator:
        """For the draws of this step: a function of seed and step, so that a resumed run draws the same."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)

    def enter_stage(self) -> None:
        """At the first step of a stage, or of a resumed run, get ready for it."""
        stage: Stage = next(name for name, steps in self.config.stages.items() if self.step in steps)
        starts = stage != self.stage
        if stage == "bottleneck" and self.features_NF is None:
            self.features_NF = self.collect_features()
            if starts:
                self.model.standardise(self.features_NF[:_START_PICTURES].float())
            some_NF, generator = self.features_NF[:_WEIGHED_PICTURES].float(), torch.Generator()
            self.weights_F = pixel_weights(self.model, some_NF, generator.manual_seed(self.config.seed))
            if starts:
                some_NF = self.features_NF[:_START_PICTURES].float()
                start_from_components(self.model, some_NF, self.weights_F, self.generator())
                self.average = CodebookAverage(self.model.codebook_KD)
        if not starts:
            return
        if stage == "polish":
            self.round_weights()  # now, not only at the end, because rounding can change codes
            self.features_NF = None
        self.set_stage(stage)
        self.evaluate()

    def close(self) -> None:
        """End what fetches pictures."""
        self.batches.close()

    @torch.no_grad()
    def collect_features(self) -> Tensor:
        """Features (N, F) of pictures of a seed of their own, float16."""
        started = time.perf_counter()
        size = min(64, self.config.bottleneck_pictures)
        stream, found = self.stream(size, self.config.seed + 1), []
        with self.autocast, closing(picture_batches(stream, self.config.workers)) as batches:
            for batch in islice(batches, math.ceil(self.config.bottleneck_pictures / size)):
                self.meter.dropped.update(batch.dropped)
                found.append(self.model.features(self.pixels(batch.pixels)).half())
        self.meter.started += time.perf_counter() - started
        return torch.cat(found)

    def set_stage(self, stage: Stage) -> None:
        """Train what the stage trains, with a fresh optimizer."""
        self.stage, model = stage, self.model
        self.close()
        trained = {
            "autoencoder": (model.encoder, model.decoder),
            "bottleneck": (model.mixer, model.unmixer),
            "polish": (model.decoder,),  # the unmixer has seen far more features than pictures can teach it
        }[stage]
        model.requires_grad_(False).zero_grad()  # or the clipping would count gradients of the stage before
        for part in trained:
            part.requires_grad_(True)
        if stage != "bottleneck":
            # A new order of files at each checkpoint, so that a resumed run goes on with the same pictures.
            stream = self.stream(self.config.batch_size, self.config.seed, start=self.step)
            self.batches = read_pictures(
                stream, self.config.stages[stage].stop, self.config.workers, segment=self.config.evaluate_every
            )
        steps, lr = len(self.config.stages[stage]), self.config.learning_rate
        lr *= _POLISH_RATE if stage == "polish" else 1
        warmup = min(100, steps // 10)
        self.optim = OptimConfig(name="muon", lr=lr, warmup_steps=warmup, weight_decay=0.01, min_lr_ratio=0.01)
        # AdamW for what starts from principal components, and for the matrices that start at zero beside it.
        outer = {id(matrix) for matrix in (*model.mixer.outer_matrices, *model.unmixer.outer_matrices)}
        adamw = {name for name, parameter in self.model.named_parameters() if id(parameter) in outer}
        self.optimizer = make_optimizer(self.model, self.optim, adamw)

    def round_weights(self) -> None:
        """Round all weights to float16, so that they can be stored so without a change."""
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                tensor.copy_(tensor.half().float())

    def picture_step(self, batch: PictureBatch) -> None:
        """One step of the optimizer on pictures."""
        assert self.stage is not None, "enter_stage comes first"
        pixels = self.pixels(batch.pixels)
        with self.autocast:
            painted, codes = reconstruct(self.model, pixels, self.stage)
        if codes is not None:
            self.usage.add(codes)
        values = self.update(picture_loss(painted, pixels, self.config.edge_weight))
        self.meter.add(values, len(pixels), batch.dropped)

    def feature_step(self) -> None:
        """One step of the optimizer on features."""
        assert self.features_NF is not None, "enter_stage comes first"
        generator = self.generator()
        chosen = torch.randint(len(self.features_NF), (self.config.bottleneck_batch_size,), generator=generator)
        stage = self.config.stages["bottleneck"]
        left = (stage.stop - self.step) / len(stage)
        damage = Damage(tail_drop=left * self.config.tail_drop, swap=left * self.config.swap, generator=generator)
        with self.autocast:
            error, pull, slots, codes = squeeze(self.model, self.features_NF[chosen].float(), self.weights_F, damage)
        values = self.update(error + self.config.commitment_weight * pull)
        values["commitment"] = pull.item()
        values["restarted_codes"] = self.average.update(slots, codes, generator)
        self.usage.add(codes)
        self.meter.add(values, len(chosen), {})

    def update(self, loss: Tensor) -> dict[str, float]:
        """Step down the gradient of a loss."""
        assert self.stage is not None, "enter_stage comes first"
        steps = self.config.stages[self.stage]
        lr = lr_at(self.step - steps.start, len(steps), self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} at step {self.step}: lower learning_rate, then resume")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.item(), "lr": lr, "grad_norm": float(norm)}

    @torch.no_grad()
    def evaluate(self) -> None:
        """Measure on unseen pictures and draw 16 of them beside their reconstructions."""
        assert self.stage is not None, "enter_stage comes first"
        started = time.perf_counter()
        found = torch.cat([reconstruct(self.model, part, self.stage)[0] for part in self.unseen.split(32)]).clamp(0, 1)
        values = {"validation_psnr": float(psnr(found, self.unseen).mean()), **self.usage.read()}
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
            "facts": self.facts,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.average.counts_K,
            "sums": self.average.sums_KD,
        }
        replace_directory(self.output / "checkpoint", lambda folder: save_states(state, folder / "state.safetensors"))

    def load(self, resume: str) -> None:
        """Go on from a checkpoint, or start anew; for `resume` see `train_slots`."""
        folder = self.output / "checkpoint" if resume == "auto" else Path(resume)
        log = self.output / "metrics.jsonl"
        if not resume or (resume == "auto" and not folder.is_dir()):
            log.unlink(missing_ok=True)
            return
        state = load_states(folder / "state.safetensors")
        check_facts(folder, state["facts"], self.facts)
        self.model.load_state_dict(state["model"])
        self.step = state["step"]
        if self.step in self.config.stages[state["stage"]]:
            self.set_stage(state["stage"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.average.counts_K, self.average.sums_KD = state["counts"].to(self.device), state["sums"].to(self.device)
        kept = [record for record in read_metrics(log) if record["step"] <= self.step]
        log.write_text("".join(json.dumps(record) + "\n" for record in kept))


class _Meter:
    """Means of what steps report since the last record, and pictures per second."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.dropped = Counter[str]()
        self.steps, self.pictures, self.started = 0, 0, time.perf_counter()

    def add(self, values: dict[str, float], pictures: int, dropped: dict[str, int]) -> None:
        """Count one step."""
        for name, value in values.items():
            self.sums[name] += value
        self.steps, self.pictures = self.steps + 1, self.pictures + pictures
        self.dropped.update(dropped)

    def read(self) -> dict[str, float]:
        """The record; starts anew."""
        record = {name: total / self.steps for name, total in self.sums.items()}
        record["pictures_per_second"] = self.pictures / (time.perf_counter() - self.started)
        record |= {f"dropped_{reason}": count for reason, count in self.dropped.items()}
        self.sums.clear()
        self.steps, self.pictures, self.started = 0, 0, time.perf_counter()
        return record
