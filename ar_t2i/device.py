"""Which device and arithmetic suit this machine."""

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
        raise ValueError(f"device={name!r} cannot be used here: {str(error).splitlines()[0]}; try auto or cpu") from error


def has_fast_bf16(device: "torch.device") -> bool:
    """Whether `device` multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
