"""What the training of a slot tokenizer minimises and measures; shape suffixes as in `ar_t2i.slots.model`."""

from typing import Literal

import torch
from torch import Tensor

from ar_t2i.slots.model import SlotTokenizer

Stage = Literal["autoencoder", "joint", "polish"]


def reconstruct(
    model: SlotTokenizer, pixels_B3HW: Tensor, stage: Stage
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Pictures (B, 3, H, W) as the stage makes them; past the first, also slots (B, T, D) and codes (B, T)."""
    if stage == "autoencoder":
        return model.paint(model.features(pixels_B3HW)), None, None
    with torch.set_grad_enabled(stage == "joint"):
        slots_BTD = model.slots(model.features(pixels_B3HW))
    codes_BT = model.nearest(slots_BTD.detach())
    entries_BTD = model.codebook_KD[codes_BT]
    straight_BTD = slots_BTD + (entries_BTD - slots_BTD).detach()  # the entries' values, the slots' gradient
    return model.paint(model.unmix(straight_BTD)), slots_BTD, codes_BT


def picture_loss(painted_B3HW: Tensor, pixels_B3HW: Tensor, edge_weight: float) -> Tensor:
    """L1 + 2 L2 of the pixels, and L1 of the differences of neighbouring pixels, which blur cannot get right."""
    error = painted_B3HW.float() - pixels_B3HW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + edge_weight * edges


def psnr(first_B3HW: Tensor, second_B3HW: Tensor) -> float:
    """Mean over pictures in [0, 1] of -10 log10 of the mean squared error, dB; at most 100 dB each."""
    error_B = (first_B3HW - second_B3HW).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error_B.log10()).mean())
