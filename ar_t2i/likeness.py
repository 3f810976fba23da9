"""How like two pictures are: PSNR and SSIM of each pair, and the spread of such figures over many pictures.

Shape suffixes: B batch, C channels, H height, W width.
"""

import math

import numpy as np
import torch
from torch import Tensor

MOST_PSNR = 100.0
"""PSNR of equal pictures, dB, in place of infinity."""
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """(B,): -10 log10 of the mean squared error over pixels and channels, dB, at most `MOST_PSNR`.

    Args:
        first_BCHW: pictures, float in [0, 1].
        second_BCHW: pictures of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    first_BCHW, second_BCHW = _exact(first_BCHW, second_BCHW)
    error_B = (first_BCHW - second_BCHW).square().mean((1, 2, 3))
    return -10 * error_B.clamp_min(10 ** (-MOST_PSNR / 10)).log10()


def ssim(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """(B,) float64: structural similarity, -1 to 1, mean over the three channels of RGB.

    As Wang et al. 2004 (IEEE Transactions on Image Processing 13(4), equation 13): Gaussian window of 11x11 with sigma
    1.5, K1 = 0.01, K2 = 0.03, range 1, biased covariances, only windows that lie inside the picture, no reduction of
    its size. scikit-image's structural_similarity gives the same with gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1, channel_axis.

    Args:
        first_BCHW: pictures, float in [0, 1], at least 11 pixels high and wide.
        second_BCHW: pictures of the same shape.

    Raises:
        ValueError: the shapes differ, or a picture is smaller than the window.
    """
    first_BCHW, second_BCHW = _exact(first_BCHW, second_BCHW)
    if min(first_BCHW.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"pictures of {tuple(first_BCHW.shape[2:])} pixels: SSIM needs at least {SSIM_WINDOW} a side")
    products = (first_BCHW, second_BCHW, first_BCHW**2, second_BCHW**2, first_BCHW * second_BCHW)
    mean_1, mean_2, square_1, square_2, product = (_blur(each) for each in products)
    variance_1, variance_2, covariance = square_1 - mean_1**2, square_2 - mean_2**2, product - mean_1 * mean_2
    likeness_BCHW = (2 * mean_1 * mean_2 + _C1) * (2 * covariance + _C2)
    likeness_BCHW /= (mean_1**2 + mean_2**2 + _C1) * (variance_1 + variance_2 + _C2)
    return likeness_BCHW.mean((1, 2, 3)).double()


class Spread:
    """Mean and percentiles of a figure over any number of pictures, in constant memory.

    Percentiles come from a histogram of 10,000 bins, so they are exact to a ten-thousandth of the range.
    """

    def __init__(self, low: float, high: float):
        """Expect values from `low` to `high`; what lies beyond counts in the last bin of its side."""
        self.low, self.high, self.sum, self.count = low, high, 0.0, 0
        self.bins = np.zeros(10_000, dtype=np.int64)

    def add(self, values_B: Tensor) -> None:
        """Take in the values of some pictures."""
        values = values_B.double().cpu().numpy()
        places = ((values - self.low) / (self.high - self.low) * len(self.bins)).astype(np.int64)
        np.add.at(self.bins, places.clip(0, len(self.bins) - 1), 1)
        self.sum, self.count = math.fsum((self.sum, *values)), self.count + len(values)

    def read(self) -> dict[str, float]:
        """The mean and the percentiles 5, 50 and 95: the middle of the bin in which that share is reached."""
        reached = self.bins.cumsum()
        width = (self.high - self.low) / len(self.bins)
        found = {"mean": self.sum / self.count}
        for percent in (5, 50, 95):
            place = int(np.searchsorted(reached, percent / 100 * self.count))
            found[f"p{percent}"] = round(self.low + (place + 0.5) * width, 6)
        return found


def _exact(first_BCHW: Tensor, second_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, or float32 where the device has no more: variances are small differences of large numbers."""
    if first_BCHW.shape != second_BCHW.shape:
        raise ValueError(f"pictures of shape {tuple(first_BCHW.shape)} and {tuple(second_BCHW.shape)}: expected one")
    dtype = torch.float32 if first_BCHW.device.type == "mps" else torch.float64
    return first_BCHW.to(dtype), second_BCHW.to(dtype)


def _blur(values_BCHW: Tensor) -> Tensor:
    """Weighted mean in each window that lies inside the picture; products of matrices are fast in float64 too."""
    rows, columns = (_windows(edge).to(values_BCHW) for edge in values_BCHW.shape[2:])
    return rows @ values_BCHW @ columns.T


def _windows(edge: int) -> Tensor:
    """(edge - 10, edge): row i holds the weights of the window that starts at i."""
    weights = torch.exp(
        -((torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2) ** 2) / 2 / SSIM_SIGMA**2
    )
    windows = torch.zeros(edge - SSIM_WINDOW + 1, edge, dtype=torch.float64)
    for start, row in enumerate(windows):
        row[start : start + SSIM_WINDOW] = weights / weights.sum()
    return windows
