"""What the recipes minimise: pixels and opinions of them, or proxy codes.

Shape suffixes: B batch, S picture size, N proxy codes of a picture, K proxy codebook entries, h and w proxy grid.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ar_t2i.likeness import psnr
from ar_t2i.perceptual import load_perceptual
from ar_t2i.titok import MaskGITVQGAN, TiTok
from ar_t2i.titok.quantizer import QuantizerOutput
from ar_t2i.training.task import Sums
from ar_t2i.training.tokenizer.codes import Codes
from ar_t2i.training.tokenizer.gan import Gan


@dataclass(frozen=True, kw_only=True)
class PixelLossConfig:
    """Weights of the losses on pixels."""

    reconstruction: Literal["l1", "l2"] = "l2"
    """Mean absolute, or mean squared, difference of pixels in [0, 1]."""
    reconstruction_weight: float = 1.0
    """Weight of the difference of pixels."""
    perceptual: str = "pyramid"
    """Perceptual distance: pyramid (no weights, a stand-in), lpips-vgg, convnext, a folder or Hub id of a ConvNeXt, or
    a sum such as lpips-vgg+0.1*convnext."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual distance; 0 loads none."""
    quantizer_weight: float = 1.0
    """Weight of codebook loss plus commitment loss."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("reconstruction_weight", "perceptual_weight", "quantizer_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name}={getattr(self, name)}: expected 0 or more")


class Objective(Protocol):
    """A module whose forward takes `pictures` (B, S, S, 3) uint8 and gives sums over pictures."""

    measures: tuple[str, ...]
    """Names of what `measure` gives."""

    def loss(self, sums: Sums, count: Tensor) -> Tensor:
        """The loss of a micro-batch, normalised by the pictures of the whole step."""
        ...

    def paint(self, model: nn.Module, pixels_B3SS: Tensor) -> Tensor:
        """Reconstructions in [0, 1] by `model`, the one that trains or the average of it."""
        ...

    def measure(self, model: nn.Module, pixels_B3SS: Tensor) -> Tensor:
        """(B, number of measures), a row for each picture."""
        ...


class PixelObjective(nn.Module):
    """Pixels, a perceptual distance, the quantiser's losses, and a discriminator's opinion once there is one."""

    def __init__(self, model: nn.Module, config: PixelLossConfig, codes: Codes, gan: Gan | None) -> None:
        super().__init__()
        self.model, self.config, self.codes, self.gan = model, config, codes, gan
        self.perceptual = load_perceptual(config.perceptual) if config.perceptual_weight else None
        self.measures = ("validation_psnr", *(("validation_perceptual",) if self.perceptual else ()))

    def forward(self, pictures: Tensor) -> Sums:
        """Sums over the pictures of a micro-batch; networks run in the run's arithmetic, losses in float32."""
        pixels = to_pixels(pictures)
        output: tuple[Tensor, QuantizerOutput] = self.model(pixels)
        painted, quantized = output[0].float(), output[1]
        sums = {"reconstruction": _difference(painted, pixels, self.config.reconstruction).sum()}
        if self.perceptual is not None:
            sums["perceptual"] = self._distance(pixels, painted).sum()
        sums |= _quantizer_sums(quantized, self.codes)
        if self.gan is not None and self.gan.active:
            sums |= self.gan.judge(pixels, painted)
        return sums

    def loss(self, sums: Sums, count: Tensor) -> Tensor:
        """The weighted sum, a mean over the pictures of the whole step."""
        config = self.config
        loss = config.reconstruction_weight * sums["reconstruction"] + config.quantizer_weight * sums["quantizer"]
        if "perceptual" in sums:
            loss = loss + config.perceptual_weight * sums["perceptual"]
        if self.gan is not None and "logits_fake" in sums:
            loss = loss - self.gan.config.weight * self.gan.config.factor * sums["logits_fake"]
        return loss / count

    def paint(self, model: nn.Module, pixels_B3SS: Tensor) -> Tensor:
        """Reconstructions, clamped."""
        return model(pixels_B3SS)[0].float().clamp(0, 1)

    def measure(self, model: nn.Module, pixels_B3SS: Tensor) -> Tensor:
        """PSNR in dB, and the perceptual distance where there is one."""
        painted = self.paint(model, pixels_B3SS)
        found = [psnr(painted, pixels_B3SS).float()]
        if self.perceptual is not None:
            found.append(self._distance(pixels_B3SS, painted))
        return torch.stack(found, dim=1)

    def _distance(self, pixels_B3SS: Tensor, painted_B3SS: Tensor) -> Tensor:
        """The perceptual distance in float32, as published: bfloat16 does not see small differences."""
        assert self.perceptual is not None
        with torch.autocast(pixels_B3SS.device.type, enabled=False):
            return self.perceptual(pixels_B3SS, painted_B3SS)


class ProxyObjective(nn.Module):
    """Cross-entropy of a first-stage TiTok's logits against the codes that a frozen VQGAN gives the same pictures."""

    measures = ("validation_proxy_loss", "validation_proxy_accuracy", "validation_psnr")

    def __init__(self, model: TiTok, vqgan: MaskGITVQGAN, quantizer_weight: float, codes: Codes) -> None:
        super().__init__()
        self.model, self.quantizer_weight, self.codes = model, quantizer_weight, codes
        self.vqgan = vqgan.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Sums:
        """Sums over the pictures of a micro-batch."""
        pixels = to_pixels(pictures)
        output: tuple[Tensor, QuantizerOutput] = self.model(pixels)
        loss_B, accuracy_B = proxy_loss(output[0], self.targets(pixels))
        sums = {"reconstruction": loss_B.sum(), "proxy_accuracy": accuracy_B.sum()}
        return sums | _quantizer_sums(output[1], self.codes)

    def targets(self, pixels_B3SS: Tensor) -> Tensor:
        """Proxy codes (B, N), in float32 whatever autocast says: a rounded distance changes codes."""
        with torch.autocast(pixels_B3SS.device.type, enabled=False):
            return self.vqgan.encode(pixels_B3SS)[0]

    def loss(self, sums: Sums, count: Tensor) -> Tensor:
        """Cross-entropy plus the weighted quantiser's losses, a mean over the pictures of the whole step."""
        return (sums["reconstruction"] + self.quantizer_weight * sums["quantizer"]) / count

    def paint(self, model: nn.Module, pixels_B3SS: Tensor) -> Tensor:
        """What the VQGAN paints from the likeliest proxy codes."""
        return self.vqgan.decode(model(pixels_B3SS)[0].argmax(1))

    def measure(self, model: nn.Module, pixels_B3SS: Tensor) -> Tensor:
        """Cross-entropy in nats, part of the proxy codes that are right, and PSNR in dB of what the VQGAN paints."""
        logits_BKhw = model(pixels_B3SS)[0]
        painted = self.vqgan.decode(logits_BKhw.argmax(1))
        loss_B, accuracy_B = proxy_loss(logits_BKhw, self.targets(pixels_B3SS))
        return torch.stack([loss_B, accuracy_B, psnr(painted, pixels_B3SS).float()], dim=1)


def proxy_loss(logits_BKhw: Tensor, codes_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats (B,) of the proxy codes of each picture, and the part of them that is likeliest."""
    logits_BKN = logits_BKhw.flatten(2).float()
    loss_BN = F.cross_entropy(logits_BKN, codes_BN, reduction="none")
    return loss_BN.mean(1), (logits_BKN.argmax(1) == codes_BN).float().mean(1)


def to_pixels(pictures_BSS3: Tensor) -> Tensor:
    """Pictures (B, S, S, 3) uint8 as tokenizers take them: (B, 3, S, S) float32 in [0, 1]."""
    return pictures_BSS3.permute(0, 3, 1, 2).float().div(255)


def _difference(painted_B3SS: Tensor, pixels_B3SS: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    difference = painted_B3SS - pixels_B3SS
    return (difference.abs() if kind == "l1" else difference.square()).mean((1, 2, 3))


def _quantizer_sums(quantized: QuantizerOutput, codes: Codes) -> Sums:
    """The quantiser's mean losses as sums over pictures, and how often each code was chosen."""
    pictures = len(quantized.codes)
    return {
        "quantizer": quantized.quantizer_loss * pictures,
        "commitment": quantized.commitment_loss * pictures,
        "codebook": quantized.codebook_loss * pictures,
        "code_counts": codes.see(quantized),
    }
