"""What this machine is, its two ceilings measured here (bytes and multiplications a second), and how time is taken."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark is told."""

    device: str = "cpu"
    """cpu or cuda."""
    small: bool = False
    """Small sizes, to see that a benchmark runs: its figures mean nothing."""
    times: int = 5
    """Timed runs of each thing; medians are printed, with half of the spread behind the ±."""


@dataclass(frozen=True)
class Timing:
    """Seconds of some runs."""

    median: float
    spread: float
    """Largest less smallest."""

    def __str__(self) -> str:
        """In the unit that leaves three figures."""
        factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if self.median * f >= 0.1), (1e6, "µs"))
        return f"{self.median * factor:.3g} ± {self.spread * factor / 2:.2g} {unit}"


def describe(device: str = "cpu") -> str:
    """One line for the top of a table."""
    if device.startswith("cuda"):
        chip = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
        chip = (
            models[0].split(":")[1].strip() if models else platform.processor()
        ) + f", {torch.get_num_threads()} threads"
    return f"{chip}, Python {platform.python_version()}, torch {torch.__version__}"


def compare(ways: Mapping[str, Callable[[], object]], device: str = "cpu", times: int = 5) -> dict[str, Timing]:
    """Time several ways in turns, so that what else the machine does falls on all; one run of each warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(times + 1):
        for name, work in ways.items():
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            if number:
                found[name].append(time.perf_counter() - started)
    return {name: Timing(statistics.median(taken), max(taken) - min(taken)) for name, taken in found.items()}


def seconds(work: Callable[[], object], device: str = "cpu", times: int = 5) -> Timing:
    """Time one thing."""
    return compare({"": work}, device, times)[""]


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second at which a matrix far larger than the caches is read, by a product with a vector."""
    matrix = torch.ones(2**15, 2**13, device=device)  # 1 GiB
    vector = torch.ones(2**13, device=device)
    return matrix.nbytes / seconds(lambda: matrix @ vector, device).median


def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device.startswith("cuda") else 2048
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, device).median


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
