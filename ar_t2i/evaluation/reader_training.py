"""Train the scene reader on pictures drawn as they are needed; shape suffixes as in `ar_t2i.evaluation.reader`.

N objects of a picture (the first are real, the others are padding). Losses of CenterNet (arXiv 1904.07850): a focal
loss of the heat, and at the nine cells around the middle of each object the cross-entropy of its colour, the L1
distance of its sides and one minus the IoU of its box; beside these the cross-entropy of the place.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ar_t2i.data.scenes import COLORS, KINDS, PLACES
from ar_t2i.device import has_fast_bf16, keep_freed_memory, pick_device
from ar_t2i.evaluation.reader import CELL, SIDE_SCALE, ReaderConfig, ReaderOutput, SceneReader
from ar_t2i.evaluation.reader_scenes import MOST_OBJECTS, Marked, marked_picture
from ar_t2i.evaluation.scenes import Reading, SceneVerifier, same_scene

WEIGHTS = {"heat": 1.0, "color": 0.5, "sides": 1.0, "overlap": 1.0, "place": 0.2}
THRESHOLDS = tuple(round(0.2 + 0.05 * step, 2) for step in range(13))
"""Scores from 0.2 to 0.8 that are tried as the threshold."""


@dataclass(frozen=True, kw_only=True)
class ReaderTrainingConfig:
    """Options of the training of a scene reader."""

    output: str
    """Folder for the verifier; it is written anew every `save_every` steps."""
    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 32
    """Pictures of a step."""
    learning_rate: float = 2e-3
    """Highest learning rate of AdamW; it rises over the first 5 % of the steps and falls as a cosine."""
    weight_decay: float = 0.02
    """Weight decay of AdamW."""
    seed: int = 0
    """Of the pictures and the first weights."""
    start: str = ""
    """Folder of a verifier whose weights training starts from; empty for random ones."""
    workers: int = 1
    """Processes that draw."""
    save_every: int = 200
    """Steps between saves and lines of progress."""
    fit_count: int = 512
    """Fresh pictures that the threshold is fitted to in the end."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, mps."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "batch_size", "save_every", "fit_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.workers < 0 or self.seed < 0:
            raise ValueError(f"workers={self.workers}, seed={self.seed}: expected 0 or more")


class MarkedBatch(NamedTuple):
    """Pictures and what is in them."""

    pixels_BHW3: Tensor
    """uint8."""
    labels_BN2: Tensor
    """Index of kind and colour, int64; -1 where there is no object."""
    boxes_BN4: Tensor
    """x0, y0, x1, y1 in pixels, float32."""
    place_B: Tensor
    """Index of the place."""


class MarkedStream(IterableDataset):
    """Endless batches of marked pictures; each depends on seed and number alone."""

    def __init__(self, seed: int, batch_size: int) -> None:
        self.seed, self.batch_size = seed, batch_size

    def __iter__(self) -> Iterator[MarkedBatch]:
        """Batches of this worker."""
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield marked_batch(np.random.default_rng((self.seed, number)), self.batch_size)
            number += step


def marked_batch(rng: np.random.Generator, count: int) -> MarkedBatch:
    """Draw `count` pictures to train on."""
    pictures = [marked_picture(rng) for _ in range(count)]
    labels_BN2 = torch.full((count, MOST_OBJECTS, 2), -1)
    boxes_BN4 = torch.zeros(count, MOST_OBJECTS, 4)
    for row, picture in enumerate(pictures):
        for slot, (kind, color, box) in enumerate(picture.objects):
            labels_BN2[row, slot] = torch.tensor((kind, color))
            boxes_BN4[row, slot] = torch.tensor(box)
    pixels_BHW3 = torch.from_numpy(np.stack([np.asarray(picture.image) for picture in pictures]))
    return MarkedBatch(pixels_BHW3, labels_BN2, boxes_BN4, torch.tensor([picture.place for picture in pictures]))


def reader_losses(said: ReaderOutput, batch: MarkedBatch) -> dict[str, Tensor]:
    """The parts of the loss: heat, color, sides, overlap, place; each a mean over its targets."""
    real_BN = batch.labels_BN2[..., 0] >= 0
    target_BKGG = heat_target(batch, said.heat_BKGG.shape[1], said.heat_BKGG.shape[-1])
    rows_M, slots_M = real_BN.nonzero(as_tuple=True)
    number = max(len(rows_M), 1)
    losses = {
        "heat": focal_loss(said.heat_BKGG, target_BKGG) / number,
        "place": F.cross_entropy(said.place_BP, batch.place_B),
    }
    if not len(rows_M):
        return losses
    box_M4 = batch.boxes_BN4[rows_M, slots_M]
    row_M9, column_M9 = _cells_around(box_M4, said.heat_BKGG.shape[-1])
    rows_M9 = rows_M[:, None].expand_as(row_M9)
    color_M9L = said.color_BLGG[rows_M9, :, row_M9, column_M9]
    sides_M94 = said.sides_B4GG[rows_M9, :, row_M9, column_M9]
    color_M9 = batch.labels_BN2[rows_M, slots_M, 1][:, None].expand_as(row_M9)
    losses["color"] = F.cross_entropy(color_M9L.flatten(0, 1), color_M9.flatten())
    middle_M92 = torch.stack((column_M9, row_M9), -1) * CELL + CELL / 2
    wanted_M94 = torch.cat((middle_M92 - box_M4[:, None, :2], box_M4[:, None, 2:] - middle_M92), -1)
    losses["sides"] = F.smooth_l1_loss(sides_M94 / SIDE_SCALE, wanted_M94 / SIDE_SCALE, beta=0.05)
    inner = torch.minimum(sides_M94, wanted_M94)
    shared_M9 = (inner[..., 0] + inner[..., 2]).clamp_min(0) * (inner[..., 1] + inner[..., 3]).clamp_min(0)
    union_M9 = _area(sides_M94) + _area(wanted_M94) - shared_M9
    losses["overlap"] = (1 - shared_M9 / union_M9.clamp_min(1)).mean()
    return losses


def heat_target(batch: MarkedBatch, kinds: int, grid: int) -> Tensor:
    """(B, K, G, G): a small hill about the middle of each object, 1 in the middle's own cell."""
    heat_BKGG = torch.zeros(len(batch.place_B), kinds, grid, grid, device=batch.boxes_BN4.device)
    rows_M, slots_M = (batch.labels_BN2[..., 0] >= 0).nonzero(as_tuple=True)
    box_M4 = batch.boxes_BN4[rows_M, slots_M]
    middle_M2 = _middle_cell(box_M4, grid)
    spread_M = ((box_M4[:, 2:] - box_M4[:, :2]).amin(1) / CELL * 0.12).clamp_min(0.7)
    cell_G = torch.arange(grid, device=heat_BKGG.device)
    distance_MGG = (cell_G[None, :, None] - middle_M2[:, 1, None, None]) ** 2 + (
        cell_G[None, None, :] - middle_M2[:, 0, None, None]
    ) ** 2
    hill_MGG = torch.exp(-distance_MGG / (2 * spread_M[:, None, None] ** 2))
    for row, kind, hill_GG in zip(
        rows_M.tolist(), batch.labels_BN2[rows_M, slots_M, 0].tolist(), hill_MGG, strict=True
    ):
        heat_BKGG[row, kind] = torch.maximum(heat_BKGG[row, kind], hill_GG)
    return heat_BKGG


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The sum of CenterNet's penalty-reduced focal loss (alpha 2, beta 4)."""
    chance = logits.sigmoid()
    peak = target == 1
    found = -F.logsigmoid(logits) * (1 - chance) ** 2
    false = -F.logsigmoid(-logits) * chance**2 * (1 - target) ** 4
    return torch.where(peak, found, false).sum()


def _middle_cell(box_M4: Tensor, grid: int) -> Tensor:
    """(M, 2) int64: column and row of the cell that holds the middle of each box."""
    return ((box_M4[:, :2] + box_M4[:, 2:]) / 2 / CELL).floor().long().clamp(0, grid - 1)


def _cells_around(box_M4: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Rows and columns (M, 9) of the cells around the middle of each box."""
    middle_M2 = _middle_cell(box_M4, grid)
    offset_9 = torch.arange(9, device=box_M4.device)
    column_M9 = (middle_M2[:, :1] + offset_9 % 3 - 1).clamp(0, grid - 1)
    return (middle_M2[:, 1:] + offset_9 // 3 - 1).clamp(0, grid - 1), column_M9


def _area(sides: Tensor) -> Tensor:
    return (sides[..., 0] + sides[..., 2]).clamp_min(0) * (sides[..., 1] + sides[..., 3]).clamp_min(0)


def train_reader(config: ReaderTrainingConfig) -> Path:
    """Train a reader and write it to `config.output`; returns the folder.

    Raises:
        ValueError: the weights to start from do not fit, or a device that this machine has not.
    """
    keep_freed_memory()
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    names = {"kinds": tuple(KINDS), "colors": tuple(COLORS), "places": tuple(PLACES)}
    reader = SceneVerifier.from_pretrained(config.start).reader if config.start else SceneReader(ReaderConfig(**names))
    for name, known in names.items():
        if getattr(reader.config, name) != known:
            raise ValueError(f"start={config.start!r} reads other {name} than scenes have now: train without a start")
    reader.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(reader.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, config.steps))
    stream = MarkedStream(config.seed, config.batch_size)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=config.workers))
    output, started, sums = Path(config.output), time.perf_counter(), dict.fromkeys(WEIGHTS, 0.0)
    for step in range(1, config.steps + 1):
        batch = MarkedBatch(*(tensor.to(device) for tensor in next(batches)))
        pixels_B3HW = (batch.pixels_BHW3.permute(0, 3, 1, 2).float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            said = reader(pixels_B3HW)
        losses = reader_losses(said, batch)
        loss = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        for name, value in losses.items():
            sums[name] += value.item()
        if step % config.save_every == 0 or step == config.steps:
            SceneVerifier(reader).save_pretrained(output)
            rate = step * config.batch_size / (time.perf_counter() - started)
            since = (step - 1) % config.save_every + 1
            means = {name: round(value / since, 4) for name, value in sums.items()}
            print(json.dumps({"step": step, "pictures_per_second": round(rate, 1), **means}), flush=True)
            sums = dict.fromkeys(WEIGHTS, 0.0)
    verifier = fit_threshold(SceneVerifier.from_pretrained(output).to(device), config.seed + 1, config.fit_count)
    verifier.save_pretrained(output)
    print(json.dumps({"threshold": verifier.config.threshold}), flush=True)
    return output


def fit_threshold(verifier: SceneVerifier, seed: int, count: int) -> SceneVerifier:
    """Give a verifier the threshold with which it reads most of `count` fresh pictures wholly rightly.

    Where several do equally well, the middle one is taken.
    """
    pictures = [marked_picture(np.random.default_rng((seed, index))) for index in range(count)]
    readings = verifier.with_threshold(THRESHOLDS[0]).read([picture.image for picture in pictures])
    facts = [known_facts(picture) for picture in pictures]
    right = [
        sum(same_scene(_above(reading, threshold), known) for reading, known in zip(readings, facts, strict=True))
        for threshold in THRESHOLDS
    ]
    best = [threshold for threshold, number in zip(THRESHOLDS, right, strict=True) if number == max(right)]
    return verifier.with_threshold(best[len(best) // 2])


def known_facts(picture: Marked) -> dict[str, Any]:
    """What a marked picture shows, as `same_scene` takes it; the color is None for none of the ten."""
    kinds, colors = list(KINDS), (*COLORS, None)
    objects = [{"kind": kinds[kind], "color": colors[color], "box": box} for kind, color, box in picture.objects]
    return {"place": PLACES[picture.place], "objects": objects}


def _above(reading: Reading, threshold: float) -> Reading:
    return Reading(reading.place, tuple(seen for seen in reading.objects if seen.score > threshold))


def _share(step: int, steps: int) -> float:
    """Share of the highest learning rate at a step."""
    warm = max(round(0.05 * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return max(0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))), 0.005)
