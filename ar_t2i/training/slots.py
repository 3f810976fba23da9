"""Train a `SlotTokenizer`: on the embedded scenes, or on a few thousand pictures of one's own.

Three stages. *autoencoder*: the convolutions alone, pictures to features and back. *joint*: the slots start at the principal
components of the features, then everything trains through the quantiser (straight-through, arXiv 1711.00937). *polish*:
encoder, mixer and codebook stay, so the codes no longer change, and the way back to pixels trains on.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ar_t2i.data import scenes
from ar_t2i.slots import SlotConfig, SlotTokenizer
from ar_t2i.slots.codebook import CodebookAverage, start_from_components

STAGES = ("autoencoder", "joint", "polish")


@dataclass(frozen=True, kw_only=True)
class SlotTrainingConfig:
    """Options of `ar-t2i tokenizer train`."""

    output: str = "outputs/tokenizer"
    """Folder for the tokenizer (config.json, model.safetensors), metrics.jsonl, pictures and the checkpoint."""
    model: SlotConfig = field(default_factory=SlotConfig)
    """Shape of the tokenizer."""
    autoencoder_steps: int = 600
    """Steps of the convolutions alone."""
    joint_steps: int = 1400
    """Steps of everything, through the quantiser."""
    polish_steps: int = 800
    """Steps of unmixer and decoder with the codes fixed."""
    batch_size: int = 32
    """Pictures a step."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of the autoencoder stage; the later stages peak at two thirds of it. Cosine to zero in each."""
    edge_weight: float = 0.5
    """Weight of the L1 loss on differences between neighbouring pixels, which keeps edges crisp."""
    commitment_weight: float = 0.1
    """Weight of the pull of a slot to its codebook entry."""
    start_pictures: int = 6144
    """Pictures whose features give the principal components and the first codebook."""
    validation_pictures: int = 200
    """Unseen pictures to measure on."""
    bfloat16: bool = True
    """Compute in bfloat16 (about 2.5x faster on a CPU with AVX512-BF16); weights stay float32."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    save_every: int = 250
    """Steps between measurements, picture grids and checkpoints."""
    workers: int = 1
    """Processes that make pictures ready."""
    seed: int = 0
    """Seed of weights and pictures."""
    resume: bool = False
    """Go on from the checkpoint in the output folder."""


class _Scenes(IterableDataset):
    def __init__(self, seed: int, start: int, batch_size: int) -> None:
        self.seed, self.start, self.batch_size = seed, start, batch_size

    def __iter__(self) -> Iterator[Tensor]:
        start = self.start
        while True:
            yield torch.from_numpy(scenes.batch(self.seed, start, self.batch_size, "train")[0])
            start += self.batch_size


def _pixels(pictures_BHW3: Tensor) -> Tensor:
    pixels_B3HW = pictures_BHW3.permute(0, 3, 1, 2).float().div(255)
    return pixels_B3HW.contiguous(memory_format=torch.channels_last)


def train_slots(config: SlotTrainingConfig) -> Path:
    """Train and save a slot tokenizer; returns its folder."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    model = SlotTokenizer(config.model).to(memory_format=torch.channels_last)
    state = torch.load(output / "checkpoint.pt", weights_only=True) if config.resume else None
    first, done, seen = (STAGES.index(state["stage"]), state["step"], state["seen"]) if state else (0, 0, 0)
    if state:
        model.load_state_dict(state["model"])
    loader = DataLoader(_Scenes(config.seed, seen, config.batch_size), batch_size=None, num_workers=config.workers,
                        prefetch_factor=8)
    pictures = (_pixels(batch) for batch in loader)
    validation = _pixels(torch.from_numpy(scenes.batch(config.seed, 0, config.validation_pictures, "validation")[0]))
    log = output.joinpath("metrics.jsonl").open("a")
    for stage in STAGES[first:]:
        steps = getattr(config, f"{stage}_steps")
        if stage == "joint" and not done:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                features = [model.features(next(pictures)).float() for _ in range(config.start_pictures // config.batch_size)]
            start_from_components(model, torch.cat(features), generator)
            measure(config, model, validation, "start", 0, log, output)
        if stage == "polish":
            for part in (model.encoder, model.mixer):
                part.requires_grad_(False)
            round_to_half_(model)
        peak = config.learning_rate * (1 if stage == "autoencoder" else 2 / 3)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], peak, betas=(0.9, 0.95), weight_decay=0.01)
        average = CodebookAverage(model.codebook_KD)
        if state and done:
            optimizer.load_state_dict(state["optimizer"]); average.counts_K.copy_(state["counts"]); average.sums_KD.copy_(state["sums"])
        used_K = torch.zeros(model.codebook_size, dtype=torch.int64)
        began, restarts = time.time(), 0
        for step in range(done, steps):
            pixels = next(pictures); seen += len(pixels)
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1, (step + 1) / 50) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                if stage == "autoencoder":
                    painted, codes = model.paint(model.features(pixels)), None
                    pull = torch.zeros(())
                else:
                    with torch.set_grad_enabled(stage == "joint"):
                        slots = model.slots(model.features(pixels))
                    codes = model.nearest(slots.detach())
                    entries = model.codebook_KD[codes]
                    pull = (1 - (slots * entries).sum(-1)).mean()
                    painted = model.paint(model.unmix(slots + (entries - slots).detach() if stage == "joint" else entries))
            loss = picture_loss(painted, pixels, config.edge_weight)
            optimizer.zero_grad()
            (loss + config.commitment_weight * pull * (stage == "joint")).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if codes is not None:
                used_K += torch.bincount(codes.flatten(), minlength=len(used_K))
            if stage == "joint":
                restarts += average.update(slots, codes, generator)
            if step % config.log_every == 0:
                row = dict(stage=stage, step=step, loss=loss.item(), pull=pull.item(), norm=norm.item(), seen=seen, restarts=restarts, rate=(step + 1 - done) * config.batch_size / (time.time() - began))
                print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True); log.write(json.dumps(row) + "\n"); log.flush()
            if (step + 1) % config.save_every == 0 or step + 1 == steps:
                extra = {}
                if codes is not None:
                    share = used_K[used_K > 0] / used_K.sum()
                    extra = dict(used=int((used_K > 0).sum()), perplexity=math.exp(-(share * share.log()).sum()))
                    used_K.zero_()
                measure(config, model, validation, stage, step + 1, log, output, **extra)
                torch.save(dict(stage=stage, step=step + 1, seen=seen, model=model.state_dict(), optimizer=optimizer.state_dict(), counts=average.counts_K, sums=average.sums_KD), output / "checkpoint.tmp")
                (output / "checkpoint.tmp").rename(output / "checkpoint.pt")
        done, state = 0, None
    round_to_half_(model)
    measure(config, model, validation, "final", 0, log, output)
    model.save_pretrained(output)
    return output


def picture_loss(painted, pixels, edge_weight):
    error = painted.float() - pixels
    loss = error.abs().mean() + 2 * error.square().mean()
    return loss + edge_weight * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


def round_to_half_(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half().float())


@torch.no_grad()
def measure(config, model, validation, stage, step, log, output, **extra):
    painted = []
    for p in validation.split(50):
        painted.append((model.paint(model.features(p)) if stage == "autoencoder" else model.decode(model.encode(p))).clamp(0, 1))
    painted = torch.cat(painted)
    psnr = (-10 * (painted - validation).square().mean((1, 2, 3)).log10()).mean().item()
    row = dict(stage=stage, step=step, psnr=psnr, **extra)
    print(json.dumps(row), flush=True); log.write(json.dumps(row) + "\n"); log.flush()
    both = torch.stack([validation[:16], painted[:16]], 1).view(4, 4, 2, 3, 256, 256).permute(0, 2, 4, 1, 5, 3).reshape(2048, 1024, 3)
    Image.fromarray((both * 255).round().byte().numpy()).save(output / f"{stage}-{step:05d}.png")


if __name__ == "__main__":
    import sys
    from ar_t2i.config import load
    train_slots(load(SlotTrainingConfig, None, sys.argv[1:]))
