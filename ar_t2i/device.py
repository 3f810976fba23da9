"""Which device and arithmetic suit this machine."""

import ctypes
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> "torch.device":
    """The named device, or the best one here: CUDA, then MPS, then the CPU.

    Raises:
        ValueError: a device that this machine has not.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={name!r} cannot be used here: {str(error).splitlines()[0]}; try auto or cpu"
        ) from error


def has_fast_bf16(device: "torch.device") -> bool:
    """Whether `device` multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def keep_freed_memory() -> None:
    """Let glibc keep what is freed.

    It hands large blocks back to the system at every step, which takes half the time of training on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    top_pad, trim_threshold, mmap_max = -2, -1, -4  # names and values of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)


def return_freed_memory() -> None:
    """Give what glibc keeps back to the system, now and then: between pieces, it would grow with their number."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
