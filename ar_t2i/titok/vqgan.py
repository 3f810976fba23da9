"""The 2D MaskGIT-VQGAN: TiTok's teacher (its codes are the proxy codes) and the maker of its pixel decoder.

Layout and tensor names of the published checkpoint (arXiv 2202.04200, as distributed with arXiv 2406.07550).
Shape suffixes: B batch, H and W pixels, C channels, h and w grid (pixels / factor), N = h*w codes, K codebook entries.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ar_t2i.titok import pretrained
from ar_t2i.titok.config import VQGANConfig
from ar_t2i.titok.painter import Painter
from ar_t2i.titok.quantizer import QuantizerOutput, VectorQuantizer
from ar_t2i.untrusted import outlined


class VQGANEncoder(nn.Module):
    """Pixels (B, 3, H, W) to latents (B, z_channels, h, w)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.hidden_channels * multiple for multiple in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.hidden_channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(num_in, num_out, config.num_res_blocks, upsample=False)
            for num_in, num_out in zip([config.hidden_channels, *widths], widths, strict=False)
        )
        self.mid = nn.ModuleList(ResBlock(widths[-1], widths[-1]) for _ in range(config.num_res_blocks))
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Levels run from the full resolution down; each but the last ends in 2x2 average pooling."""
        x = self.conv_in(pixels_B3HW)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQGANDecoder(nn.Module):
    """Latents (B, z_channels, h, w) to pixels (B, 3, H, W), about [0, 1] and not clamped."""

    mid: "Sequence[ResBlock]"
    up: "Sequence[Level]"

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.hidden_channels * multiple for multiple in config.channel_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        mid = (ResBlock(widths[-1], widths[-1]) for _ in range(config.num_res_blocks))
        up = (
            Level(num_in, num_out, config.num_res_blocks, upsample=i > 0)
            for i, (num_in, num_out) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.mid, self.up = nn.ModuleList(mid), nn.ModuleList(up)  # type: ignore[assignment]
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)
        self._painter: tuple[tuple, Painter] | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_painter": None}  # made anew where it is needed

    def forward(self, z_BChw: Tensor) -> Tensor:
        """In inference mode as `Painter` does it, else as it stands in the paper: what trains may change unseen."""
        kind = z_BChw.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.conv_in.weight.dtype
        gains = kind == "cpu" or (kind == "cuda" and dtype != torch.float32)
        countable = not any(part.is_inference() for part in self.parameters())  # those tell no change
        if not (torch.is_inference_mode_enabled() and gains and countable):
            return self.plain(z_BChw)
        state = (z_BChw.shape[2:], dtype, *((part.data_ptr(), part._version) for part in self.parameters()))
        with torch.autocast(kind, enabled=False):
            held = self._painter
            if held is None or held[0] != state:
                held = self._painter = None  # its memory first
                held = self._painter = state, Painter(self, (z_BChw.shape[2], z_BChw.shape[3]), dtype)
            return held[1](z_BChw)

    def plain(self, z_BChw: Tensor) -> Tensor:
        """Levels are stored from the full resolution down and run the other way."""
        x = self.conv_in(z_BChw)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITVQGAN(nn.Module):
    """The 2D tokenizer: pixels to a grid of codes and back."""

    def __init__(self, config: VQGANConfig | None = None) -> None:
        super().__init__()
        self.config = config or VQGANConfig()
        self.encoder = VQGANEncoder(self.config)
        self.quantize = VectorQuantizer(self.config.codebook_size, self.config.z_channels, self.config.commitment_cost)
        self.decoder = VQGANDecoder(self.config)

    @classmethod
    def from_scratch(cls, config: VQGANConfig, generator: torch.Generator) -> Self:
        """A model with fresh weights on the generator's device, to be trained."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device=generator.device)
        initialize_convolutions(model, generator)
        model.quantize.initialize(generator)
        return model

    @classmethod
    def from_pretrained(cls, path: str | Path, config: VQGANConfig | None = None) -> Self:
        """Load a folder of `save_pretrained`, or a file of weights, strictly; `config` stands for a config.json.

        A file without a config is taken for the published one (maskgit-vqgan-imagenet-f16-256.bin).

        Raises:
            ValueError: no such path, an unreadable file, or weights that do not fit the config.
        """
        if config is None and Path(path).is_dir():
            config = pretrained.read_config(Path(path), cls._read_config)
        with outlined(str(path)):
            model = cls(config)
        pretrained.load_weights(model, Path(path))
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors."""
        pretrained.save(self, {"maskgit_vqgan": self.config.to_dict()}, Path(directory))

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Reconstructed pixels, not clamped, and what the quantiser gives; for training."""
        quantized = self.quantize(self.encoder(pixels_B3HW))
        return self.decoder(quantized.z_quantized), quantized

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W), float in [0, 1], to codes (B, N) int64, row by row, and their latents (B, C, h, w).

        Raises:
            ValueError: another shape or type, sides that are no multiple of the factor, or values outside [0, 1].
        """
        check_pixels(pixels)
        if pixels.shape[2] % self.config.factor or pixels.shape[3] % self.config.factor:
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)}: expected sides that divide by {self.config.factor}"
            )
        z_BChw = self.encoder(pixels)
        return self.quantize(z_BChw).codes, z_BChw

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) of a square grid, or (B, h, w), to pixels (B, 3, H, W), float in [0, 1].

        Raises:
            ValueError: another shape or type, or a code outside the codebook.
        """
        if codes.ndim == 2 and math.isqrt(codes.shape[1]) ** 2 == codes.shape[1]:
            codes = codes.unflatten(1, (math.isqrt(codes.shape[1]), -1))
        if codes.ndim != 3 or 0 in codes.shape[1:]:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)}: expected (B, N) with N a square number, or (B, h, w)"
            )
        return self.decoder(self.quantize.entries(codes).permute(0, 3, 1, 2)).float().clamp(0, 1)

    @staticmethod
    def _read_config(config: dict) -> VQGANConfig:
        if not isinstance(config.get("maskgit_vqgan"), dict):
            raise ValueError(
                f"not a MaskGIT-VQGAN config: no maskgit_vqgan block (its keys: {', '.join(config) or 'none'})"
            )
        return VQGANConfig.from_dict(config["maskgit_vqgan"], "maskgit_vqgan.")


def check_pixels(pixels: Tensor) -> None:
    """Refuse what is no batch of RGB pictures, float in [0, 1].

    Raises:
        ValueError: another shape or type, or values outside [0, 1], NaN included.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels of shape {tuple(pixels.shape)}: expected (B, 3, H, W)")
    if not pixels.is_floating_point():
        raise ValueError(f"pixels of type {pixels.dtype}: expected float in [0, 1]; divide uint8 by 255")
    if pixels.numel():
        low, high = (bound.item() for bound in pixels.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"pixels from {low:g} to {high:g}: expected float in [0, 1]; rescale or clamp them")


@torch.no_grad()
def initialize_convolutions(module: nn.Module, generator: torch.Generator) -> None:
    """Fill convolutions as torch does by default, and group norms with one and zero, from an explicit generator."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            bound = 1 / math.sqrt(part.weight[0].numel())
            for tensor in part.parameters(recurse=False):
                tensor.uniform_(-bound, bound, generator=generator)
        elif isinstance(part, nn.GroupNorm):
            part.weight.fill_(1)
            part.bias.fill_(0)


class ResBlock(nn.Module):
    """Two normed 3x3 convolutions; where the width changes the shortcut projects the block's output, not its input."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.norm2 = _norm(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(num_out, num_out, 1, bias=False) if num_in != num_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Both convolutions."""
        h = self.conv1(F.silu(self.norm1(x_BCHW)))
        h = self.conv2(F.silu(self.norm2(h)))
        # The published weights were trained this way: a widening block drops its input.
        return h + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(h))


class Level(nn.Module):
    """The residual blocks of one resolution, then the step to the next higher one where there is one."""

    def __init__(self, num_in: int, num_out: int, num_blocks: int, upsample: bool) -> None:
        super().__init__()
        blocks = (ResBlock(num_in if j == 0 else num_out, num_out) for j in range(num_blocks))
        self.block: Sequence[ResBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.upsample_conv = nn.Conv2d(num_out, num_out, 3, padding=1) if upsample else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """All blocks, then the step."""
        for block in self.block:
            x_BCHW = block(x_BCHW)
        if self.upsample_conv is None:
            return x_BCHW
        return self.upsample_conv(F.interpolate(x_BCHW, scale_factor=2, mode="nearest"))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)
