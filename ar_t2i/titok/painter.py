"""The pixel decoder as inference runs it: weights prepared once, grids with their channels last, sums in place.

`Painter` computes what `VQGANDecoder.plain` computes. On a CPU in float32 the convolutions of large grids are made by
minimal filtering (Winograd, arXiv 1509.09308): 36 multiplications give 4x4 numbers, not 144. They go a few rows at a
time, norm and activation with them, so that what lies between two convolutions stays in the cache.

Shape suffixes: B batch, H and W grid, C channels in, O channels out, R rows and S columns of tiles, T = R*S tiles at a
time, P numbers of a tile that come in, Q = 36 products of a tile.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from ar_t2i.titok.vqgan import ResBlock, VQGANDecoder

_LEAST_GRID, _LEAST_CHANNELS = 32, 64
"""Smaller grids have too few tiles for weights that are four times as large; with fewer channels, what is done around
the products takes longer than is saved."""
_TILES = 256
"""Tiles at a time: at 128 channels they and their products, 5 MB each, fit the cache."""
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where the polynomials are evaluated, beside infinity: these round half as much as the usual 0, 1, -1, 2, -2."""


class Painter:
    """A `VQGANDecoder` for inference alone, and for one size of grid."""

    def __init__(self, decoder: "VQGANDecoder", grid: tuple[int, int], dtype: torch.dtype) -> None:
        """Prepare copies of the weights of convolutions; norms are read where they are.

        Args:
            decoder: stays as it is.
            grid: h and w of the latents.
            dtype: of the arithmetic.
        """
        self.dtype = dtype
        self.conv_in = _convolution(decoder.conv_in, grid, dtype)
        self.steps: list[_Block | _Direct | _Winograd] = [_block(block, grid, dtype) for block in decoder.mid]
        for level in reversed(decoder.up):
            self.steps += [_block(block, grid, dtype) for block in level.block]
            if level.upsample_conv is not None:
                grid = 2 * grid[0], 2 * grid[1]
                self.steps.append(_convolution(level.upsample_conv, grid, dtype, upsample=True))
        self.conv_out = _Direct(decoder.conv_out, dtype, decoder.norm_out)

    def __call__(self, z_BCHW: Tensor) -> Tensor:
        """Latents (B, z_channels, h, w) to pixels (B, 3, H, W) in the dtype, about [0, 1] and not clamped."""
        x_BCHW = self.conv_in(z_BCHW.to(self.dtype).contiguous(memory_format=torch.channels_last))
        for step in self.steps:
            x_BCHW = step(x_BCHW)
        return self.conv_out(x_BCHW).contiguous()


@dataclass(frozen=True)
class _Block:
    """A `ResBlock`; its input is its own to change."""

    first: "_Direct | _Winograd"
    second: "_Direct | _Winograd"
    adds: bool

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        return self.second(self.first(x_BCHW), x_BCHW if self.adds else None)


class _Direct:
    """A 3x3 convolution as it is, with the norm and activation before it or the doubling of the grid."""

    def __init__(
        self,
        conv: nn.Conv2d,
        dtype: torch.dtype,
        norm: nn.GroupNorm | None = None,
        shortcut: nn.Conv2d | None = None,
        upsample: bool = False,
    ) -> None:
        weight_OCKK = _weight(conv, shortcut).to(dtype, copy=True)
        self.weight_OCKK = weight_OCKK.contiguous(memory_format=torch.channels_last)
        self.bias_O = None if conv.bias is None else conv.bias.detach().to(dtype, copy=True)
        self.norm, self.upsample = norm, upsample

    def __call__(self, x_BCHW: Tensor, onto_BOHW: Tensor | None = None) -> Tensor:
        if self.norm is not None:
            weight_C, bias_C = (part.to(x_BCHW.dtype) for part in (self.norm.weight, self.norm.bias))
            x_BCHW = F.group_norm(x_BCHW, self.norm.num_groups, weight_C, bias_C, self.norm.eps)
            x_BCHW = F.silu(x_BCHW, inplace=True)
        if self.upsample:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=2, mode="nearest")
        made_BOHW = F.conv2d(x_BCHW, self.weight_OCKK, self.bias_O, padding=1)
        return made_BOHW if onto_BOHW is None else onto_BOHW.add_(made_BOHW)


class _Winograd:
    """The same by minimal filtering: a tile of 6x6 numbers, overlapping by two, or of 4x4 to be doubled gives 4x4."""

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.GroupNorm | None = None,
        shortcut: nn.Conv2d | None = None,
        upsample: bool = False,
    ) -> None:
        into, kernel, back = _transforms()
        weight_OCKK = _weight(conv, shortcut).double()
        self.weight_QCO = torch.einsum("ik,jl,ockl->ijco", kernel, kernel, weight_OCKK).flatten(0, 1).float()
        self.bias_O = None if conv.bias is None else conv.bias.detach().clone()
        self.norm, self.tile, self.step = norm, 6, 4
        if upsample:
            self.tile, self.step = 4, 2
            into = into[:, [0, 1, 3, 5]] + into[:, [0, 2, 4, 5]] * into.new_tensor([0, 1, 1, 0])  # abcd is abbccd
        self.into_QP, self.back_PQ = torch.kron(into, into).float(), torch.kron(back, back).float()

    def __call__(self, x_BCHW: Tensor, onto_BOHW: Tensor | None = None) -> Tensor:
        batch, channels, height, width = x_BCHW.shape
        down, across = height // self.step, width // self.step
        made_BOHW = onto_BOHW
        if made_BOHW is None:
            shape = batch, self.weight_QCO.shape[2], 4 * down, 4 * across
            made_BOHW = torch.empty(shape, memory_format=torch.channels_last)
        rows = min(max(_TILES // across, 1), down)
        padded_HWC = x_BCHW.new_zeros(rows * self.step + 2, width + 2, channels)
        for x_HWC, made_HWO in zip(x_BCHW.permute(0, 2, 3, 1), made_BOHW.permute(0, 2, 3, 1), strict=True):
            affine = None if self.norm is None else _affine(self.norm, x_HWC)
            made_RS44O = made_HWO.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).transpose(1, 2)
            for place_RS44O, top in zip(made_RS44O.split(rows), range(0, down, rows), strict=True):
                part_HWC = padded_HWC[: len(place_RS44O) * self.step + 2]
                _fill(part_HWC, x_HWC, top * self.step - 1, affine)
                found_RS44O = self._filter(part_HWC).view(place_RS44O.shape)
                place_RS44O.copy_(found_RS44O) if onto_BOHW is None else place_RS44O.add_(found_RS44O)
        return made_BOHW

    def _filter(self, padded_HWC: Tensor) -> Tensor:
        """(T, 16, O) of some rows with their surroundings."""
        tiles_RSPPC = padded_HWC.unfold(0, self.tile, self.step).unfold(1, self.tile, self.step).permute(0, 1, 3, 4, 2)
        tiles_TPC = tiles_RSPPC.flatten(2, 3).flatten(0, 1)
        turned_TQC = torch.bmm(self.into_QP.expand(len(tiles_TPC), -1, -1), tiles_TPC)
        products_QTO = torch.bmm(turned_TQC.transpose(0, 1), self.weight_QCO)
        found_TPO = torch.bmm(self.back_PQ.expand(len(tiles_TPC), -1, -1), products_QTO.transpose(0, 1))
        return found_TPO if self.bias_O is None else found_TPO.add_(self.bias_O)


def _convolution(
    conv: nn.Conv2d,
    grid: tuple[int, int],
    dtype: torch.dtype,
    norm: nn.GroupNorm | None = None,
    shortcut: nn.Conv2d | None = None,
    upsample: bool = False,
) -> _Direct | _Winograd:
    """The better way to make a grid."""
    large = min(grid) >= _LEAST_GRID and conv.in_channels >= _LEAST_CHANNELS and not any(side % 4 for side in grid)
    if large and conv.weight.device.type == "cpu" and dtype == conv.weight.dtype == torch.float32:
        return _Winograd(conv, norm, shortcut, upsample)
    return _Direct(conv, dtype, norm, shortcut, upsample)


def _block(block: "ResBlock", grid: tuple[int, int], dtype: torch.dtype) -> _Block:
    first = _convolution(block.conv1, grid, dtype, block.norm1)
    second = _convolution(block.conv2, grid, dtype, block.norm2, block.nin_shortcut)
    return _Block(first, second, adds=block.nin_shortcut is None)


def _weight(conv: nn.Conv2d, shortcut: nn.Conv2d | None) -> Tensor:
    """A convolution's weight; what a shortcut makes of its output is added by the weight."""
    weight_OCKK = conv.weight.detach()
    if shortcut is None:
        return weight_OCKK
    return weight_OCKK + torch.einsum("po,ockl->pckl", shortcut.weight.detach()[:, :, 0, 0], weight_OCKK)


def _affine(norm: nn.GroupNorm, x_HWC: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and summand (C,) of each channel that a norm of this picture comes to."""
    sums_2C = torch.zeros(2, x_HWC.shape[2], dtype=torch.float64)
    for some_NC in x_HWC.flatten(0, 1).split(2**12):
        exact_NC = some_NC.double()  # the mean's square may be far larger than the variance
        sums_2C += torch.stack([exact_NC.sum(0), exact_NC.square().sum(0)])
    mean_G, square_G = sums_2C.view(2, norm.num_groups, -1).mean(2) / x_HWC[..., 0].numel()
    mean_C, rate_C = (
        each_G.repeat_interleave(x_HWC.shape[2] // norm.num_groups)
        for each_G in (mean_G, ((square_G - mean_G**2).clamp_min(0) + norm.eps).rsqrt())
    )
    factor_C = norm.weight * rate_C
    return factor_C.float(), (norm.bias - mean_C * factor_C).float()


def _fill(padded_HWC: Tensor, x_HWC: Tensor, start: int, affine: tuple[Tensor, Tensor] | None) -> None:
    """Put rows from `start` into the middle columns, activated if they are normed; what lies outside is zero."""
    first, last = max(start, 0), min(start + len(padded_HWC), len(x_HWC))
    padded_HWC[: first - start].zero_()
    padded_HWC[last - start :].zero_()
    inner_HWC = padded_HWC[first - start : last - start, 1:-1]
    if affine is None:
        inner_HWC.copy_(x_HWC[first:last])
    else:
        factor_C, summand_C = affine
        F.silu(torch.addcmul(summand_C, x_HWC[first:last], factor_C, out=inner_HWC), inplace=True)


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices (6, 6) of numbers, (6, 3) of the kernel and (4, 6) of the products, float64.

    Four neighbouring sums of three numbers times a kernel: y_i = sum_k x_(i+k) w_k = sum_j back_ij (into x)_j (kernel
    w)_j. The last two hold the powers of the points; that this is true for all x and w gives the first.
    """
    points = torch.tensor(_POINTS, dtype=torch.float64)
    infinity = torch.eye(4, dtype=torch.float64)[-1:]
    back_64 = torch.cat([points[:, None] ** torch.arange(4), infinity])
    kernel_63 = torch.cat([points[:, None] ** torch.arange(3), infinity[:, 1:]])
    pairs_12x6 = torch.einsum("ji,jk->ikj", back_64, kernel_63).flatten(0, 1)
    places_12 = (torch.arange(4)[:, None] + torch.arange(3)).flatten()
    into_66 = torch.linalg.lstsq(pairs_12x6, torch.eye(6, dtype=torch.float64)[places_12]).solution
    return into_66, kernel_63, back_64.T.contiguous()
