"""The recipes that end in pixels: the 2D VQGAN, TiTok's second stage, and TiTok in a single stage."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ar_t2i.image_tokenizer import fingerprint_of
from ar_t2i.titok import MaskGITVQGAN, TiTok, VQGANConfig
from ar_t2i.titok.shape import TiTokShape
from ar_t2i.training.tokenizer.codes import Codes, CodesConfig
from ar_t2i.training.tokenizer.gan import Gan, GanConfig
from ar_t2i.training.tokenizer.objective import PixelLossConfig, PixelObjective
from ar_t2i.training.tokenizer.run import TokenizerTask, TokenizerTrainConfig, local, run
from ar_t2i.training.tokenizer.stage1 import check_proxy


@dataclass(frozen=True, kw_only=True)
class PixelTrainConfig(TokenizerTrainConfig):
    """Options of the recipes that end in pixels."""

    loss: PixelLossConfig = field(default_factory=PixelLossConfig)
    """The losses."""
    gan: GanConfig = field(default_factory=GanConfig)
    """The discriminator."""


@dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig(PixelTrainConfig):
    """Recipe vqgan: the 2D MaskGIT-VQGAN, whose codes TiTok's first stage learns from."""

    image_size: int = 256
    """Height and width of a picture in pixels, a multiple of the pixels along a code."""
    model: VQGANConfig = field(default_factory=VQGANConfig)
    """Its shape."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.image_size < 1 or self.image_size % self.model.factor:
            raise ValueError(f"image_size={self.image_size}: expected a multiple of {self.model.factor}")


@dataclass(frozen=True, kw_only=True)
class Stage2TrainConfig(PixelTrainConfig):
    """Recipe stage2: TiTok's decoders learn pixels; encoder and codebook stay, so codes no longer change.

    Codes are counted but none is restarted, whatever `codes.restart` says.
    """

    stage1: str
    """The first stage, a folder that the recipe stage1 wrote."""
    vqgan: str
    """The VQGAN that the first stage learnt from: a folder that the recipe vqgan wrote, or the published weights."""


@dataclass(frozen=True, kw_only=True)
class SingleStageTrainConfig(PixelTrainConfig):
    """Recipe single_stage: TiTok from scratch straight to pixels, the way of the published BL and SL variants."""

    model: TiTokShape = field(default_factory=TiTokShape)
    """Its shape."""


def train_vqgan(config: VQGANTrainConfig, resume: str = "") -> Path:
    """Train a MaskGIT-VQGAN; returns its folder. See `run` for `resume` and errors."""
    return run(config, "vqgan", _vqgan, resume)


def train_stage2(config: Stage2TrainConfig, resume: str = "") -> Path:
    """Train TiTok's decoders to give pixels; returns the folder of a whole TiTok. See `run`."""
    return run(config, "stage2", _stage2, resume)


def train_single_stage(config: SingleStageTrainConfig, resume: str = "") -> Path:
    """Train a TiTok straight to pixels; returns its folder. See `run`."""
    return run(config, "single_stage", _single_stage, resume)


def _vqgan(config: VQGANTrainConfig, accelerator: Accelerator) -> TokenizerTask:
    model = MaskGITVQGAN.from_scratch(config.model, torch.Generator().manual_seed(config.seed))
    facts = {"model": str(asdict(config.model))}
    return _task(config, model, accelerator, config.codes, config.image_size, "vqgan", facts)


def _stage2(config: Stage2TrainConfig, accelerator: Accelerator) -> TokenizerTask:
    stage1 = TiTok.from_pretrained(local(config.stage1))
    vqgan = MaskGITVQGAN.from_pretrained(local(config.vqgan))
    check_proxy(config.stage1, vqgan)
    facts = {"stage1": stage1.fingerprint, "vqgan": fingerprint_of({}, vqgan.state_dict())}
    codes = CodesConfig(restart=False, window=config.codes.window)
    model = TiTok.from_stage1(stage1, vqgan)
    return _task(config, model, accelerator, codes, model.image_size, "tokenizer", facts)


def _single_stage(config: SingleStageTrainConfig, accelerator: Accelerator) -> TokenizerTask:
    shape = config.model.titok(is_legacy=False)
    model = TiTok.from_scratch(shape, torch.Generator().manual_seed(config.seed))
    facts = {"model": str(asdict(config.model))}
    return _task(config, model, accelerator, config.codes, model.image_size, "tokenizer", facts)


def _task(
    config: PixelTrainConfig,
    model: MaskGITVQGAN | TiTok,
    accelerator: Accelerator,
    codes_config: CodesConfig,
    image_size: int,
    result: str,
    facts: dict[str, Any],
) -> TokenizerTask:
    codes = Codes(model.quantize, codes_config, accelerator, config.seed)
    steps, seed = config.loop.steps, config.seed + 1
    gan = Gan(config.gan, config.optim, steps, accelerator, seed) if config.gan.weight else None
    objective = PixelObjective(model.train(), config.loss, codes, gan)
    companions = [codes, *([gan] if gan else [])]
    facts |= {"discriminator": f"{config.gan.hidden_channels} {config.gan.stages}" if gan else "none"}
    return TokenizerTask(
        config, model, objective, companions, accelerator, image_size=image_size, result=result, facts=facts
    )
