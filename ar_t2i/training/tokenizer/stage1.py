"""Recipe stage1: a TiTok learns to say which codes a VQGAN gives a picture (arXiv 2406.07550, section 3.3)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ar_t2i.image_tokenizer import fingerprint_of
from ar_t2i.titok import MaskGITVQGAN, TiTok
from ar_t2i.titok.shape import TiTokShape
from ar_t2i.training.tokenizer.codes import Codes
from ar_t2i.training.tokenizer.objective import ProxyObjective
from ar_t2i.training.tokenizer.run import TokenizerTask, TokenizerTrainConfig, local, run

_PROXY_FILE = "proxy.json"


@dataclass(frozen=True, kw_only=True)
class Stage1TrainConfig(TokenizerTrainConfig):
    """Recipe stage1: TiTok learns the proxy codes of a VQGAN by cross-entropy."""

    vqgan: str
    """The VQGAN: a folder that the recipe vqgan wrote, or the published weights."""
    model: TiTokShape = field(default_factory=TiTokShape)
    """Shape of the TiTok."""
    quantizer_weight: float = 1.0
    """Weight of codebook loss plus commitment loss."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.quantizer_weight < 0:
            raise ValueError(f"quantizer_weight={self.quantizer_weight}: expected 0 or more")


def train_stage1(config: Stage1TrainConfig, resume: str = "") -> Path:
    """Train a first stage; returns its folder, for the recipe stage2. See `run` for `resume` and errors."""
    return run(config, "stage1", _Stage1Task, resume)


class _Stage1Task(TokenizerTask):
    """A first stage, whose folder says which VQGAN it learnt from."""

    def __init__(self, config: Stage1TrainConfig, accelerator: Accelerator) -> None:
        vqgan = MaskGITVQGAN.from_pretrained(local(config.vqgan))
        self.proxy = fingerprint_of({}, vqgan.state_dict())
        shape = config.model.titok(is_legacy=True, vqgan=vqgan.config)
        model = TiTok.from_scratch(shape, torch.Generator().manual_seed(config.seed)).train()
        codes = Codes(model.quantize, config.codes, accelerator, config.seed)
        objective = ProxyObjective(model, vqgan, config.quantizer_weight, codes)
        facts = {"model": str(asdict(config.model)), "vqgan": self.proxy}
        super().__init__(
            config, model, objective, [codes], accelerator, image_size=model.image_size, result="stage1", facts=facts
        )

    def write(self, trained: nn.Module, folder: Path) -> None:
        """The averaged weights in the published schema, and the VQGAN's fingerprint beside them."""
        super().write(trained, folder)
        (folder / _PROXY_FILE).write_text(json.dumps({"vqgan": self.proxy}) + "\n")


def check_proxy(stage1: str, vqgan: MaskGITVQGAN) -> None:
    """Refuse a VQGAN that is not the one a first stage learnt from; a first stage from elsewhere does not say.

    Raises:
        ValueError: another VQGAN.
    """
    file = local(stage1) / _PROXY_FILE
    if file.is_file() and json.loads(file.read_text())["vqgan"] != fingerprint_of({}, vqgan.state_dict()):
        raise ValueError(f"stage1={stage1!r} learnt the codes of another VQGAN: give that one as vqgan")
