"""What this machine is, and its two ceilings: bytes and multiplications a second, measured here."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


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


def seconds(work: Callable[[], object], device: str = "cpu", times: int = 5) -> tuple[float, float]:
    """Median seconds of some runs after one to warm up, and their spread (largest less smallest)."""
    found = []
    for number in range(times + 1):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        if number:
            found.append(time.perf_counter() - started)
    return statistics.median(found), max(found) - min(found)


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second at which a matrix far larger than the caches is read, by a product with a vector."""
    matrix = torch.ones(2**15, 2**13, device=device)  # 1 GiB
    vector = torch.ones(2**13, device=device)
    return matrix.nbytes / seconds(lambda: matrix @ vector, device)[0]


def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device.startswith("cuda") else 2048
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, device)[0]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
