"""How sure a figure is: intervals for shares, means and differences of means.

Shape suffixes: N values, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
"""Of a bootstrap: the ends of a 95 % interval then vary by about 3 % of its width from seed to seed."""
_AT_ONCE = 4_000_000
"""Numbers that are drawn at a time, which bounds the memory."""


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    number: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927) for the share behind it."""
        if not self.total:
            return 0.0, 1.0
        z, share = 1.959964, self.number / self.total
        middle = share + z * z / (2 * self.total)
        spread = z * math.sqrt(share * (1 - share) / self.total + z * z / (4 * self.total**2))
        whole = 1 + z * z / self.total
        return max((middle - spread) / whole, 0.0), min((middle + spread) / whole, 1.0)

    def __str__(self) -> str:
        """For example "97.5 % (94.1 to 99.0)"."""
        if not self.total:
            return "none"
        low, high = self.interval
        return f"{100 * self.number / self.total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that it lies in."""

    value: float
    low: float
    high: float
    count: int
    """Values that it is made of."""

    def __str__(self) -> str:
        """For example "0.312 (0.298 to 0.327)"."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def mean_interval(values: Sequence[float] | np.ndarray, seed: int, level: float = 0.95) -> Estimate:
    """The mean and its percentile bootstrap (Efron and Tibshirani 1993, chapter 13), from `RESAMPLES` resamples.

    The same values and seed give the same interval. A single value gives an interval of no width.

    Args:
        values: independent of each other, so for several pictures of a prompt the mean over them.
        seed: of the resamples.
        level: chance that the interval holds the mean behind the values, between 0 and 1.

    Raises:
        ValueError: no values, or some that are not finite; a level outside of 0 to 1.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"values of shape {values_N.shape}: expected a list of at least one number")
    if not np.isfinite(values_N).all():
        raise ValueError("values that are not finite: leave out what was not measured")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected more than 0 and less than 1, for example 0.95")
    rng, count = np.random.default_rng(seed), len(values_N)
    rows = max(1, _AT_ONCE // count)
    means_R = np.concatenate(
        [
            values_N[rng.integers(count, size=(min(rows, RESAMPLES - start), count))].mean(1)
            for start in range(0, RESAMPLES, rows)
        ]
    )
    low, high = np.quantile(means_R, ((1 - level) / 2, (1 + level) / 2))
    return Estimate(float(values_N.mean()), float(low), float(high), count)


def paired_interval(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, seed: int, level: float = 0.95
) -> Estimate:
    """The mean of first - second and its interval, where value i of both belongs to one prompt.

    Prompts are drawn anew, not values: what is hard for both cancels, so that smaller differences are seen than from
    two intervals side by side. Zero outside of the interval says that the two differ.

    Args:
        first: values of one model.
        second: those of the other, in the same order.
        seed: of the resamples.
        level: see `mean_interval`.

    Raises:
        ValueError: as `mean_interval`, or two numbers of values.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values: expected pairs, one of each for every prompt")
    return mean_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64), seed, level)
