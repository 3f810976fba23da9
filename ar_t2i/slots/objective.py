"""What the training of a slot tokenizer minimises and measures; shape suffixes as in `ar_t2i.slots.model`."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ar_t2i.slots.model import SlotTokenizer

Stage = Literal["autoencoder", "bottleneck", "polish"]


def reconstruct(model: SlotTokenizer, pixels_B3HW: Tensor, stage: Stage) -> tuple[Tensor, Tensor | None]:
    """Pictures (B, 3, H, W) as the stage makes them; past the first, by way of codes (B, T), which come second."""
    if stage == "autoencoder":
        return model.paint(model.features(pixels_B3HW)), None
    with torch.no_grad():
        codes_BT = model.nearest(model.slots(model.features(pixels_B3HW)))
    return model.paint(model.unmix(model.codebook_KD[codes_BT])), codes_BT


def pixel_weights(model: SlotTokenizer, features_NF: Tensor, generator: torch.Generator) -> Tensor:
    """How much painted pixels change with each standardised feature: (F,), mean 1.

    The diagonal of J^T J for the decoder's Jacobian J, estimated with random signs (Bekas, Kokiopoulou and Saad 2007),
    averaged over N pictures. An error of features weighed so is, to first order and without what two features do
    together, an error of pixels.
    """
    total_F = torch.zeros_like(model.feature_std_F)
    for part_BF in features_NF.split(16):
        part_BF = part_BF.detach().requires_grad_()
        painted = model.paint(part_BF)
        signs = torch.randint(0, 2, painted.shape, generator=generator).to(painted) * 2 - 1
        (slope_BF,) = torch.autograd.grad(painted, part_BF, signs)
        total_F += slope_BF.float().square().sum(0)
    weights_F = total_F * model.feature_std_F.square()
    return weights_F / weights_F.mean()


def squeeze(
    model: SlotTokenizer, features_BF: Tensor, weights_F: Tensor, damage: "Damage | None" = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (B, F) through slots, codes and back, straight-through (arXiv 1711.00937).

    Returns:
        the weighed mean squared error of the standardised features; the mean of one minus the cosine of a slot and its
        codebook entry, that is half their squared distance; slots (B, T, D); codes (B, T).
    """
    slots_BTD = model.slots(features_BF)
    codes_BT = model.nearest(slots_BTD.detach())
    entries_BTD = model.codebook_KD[codes_BT]
    straight_BTD = slots_BTD + (entries_BTD - slots_BTD).detach()  # the entries' values, the slots' gradient
    if damage:
        straight_BTD = damage(straight_BTD, entries_BTD)
    standard_BF = (features_BF - model.feature_mean_F) / model.feature_std_F
    error = (weights_F * (model.unmixer(straight_BTD.flatten(1)).float() - standard_BF).square()).mean()
    return error, (1 - (slots_BTD * entries_BTD).sum(-1)).mean(), slots_BTD, codes_BT


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What a decoder learns to live with, so that a wrong code, as a sampler draws, spoils little of a picture."""

    tail_drop: float = 0.0
    """Chance that only the first codes of a picture are kept, as many as chance will: content moves to the front,
    where a sampler decides it first (arXiv 2501.10064)."""
    swap: float = 0.0
    """Chance that a code is another picture's, in the manner of arXiv 2503.08354."""
    generator: torch.Generator

    def __call__(self, straight_BTD: Tensor, entries_BTD: Tensor) -> Tensor:
        """The entries, some swapped, some tails zero."""
        batch, num_codes = straight_BTD.shape[:2]
        device = straight_BTD.device
        swapped_BT = (torch.rand(batch, num_codes, generator=self.generator) < self.swap).to(device)
        kept_B = torch.randint(1, num_codes + 1, (batch,), generator=self.generator)
        kept_B[torch.rand(batch, generator=self.generator) >= self.tail_drop] = num_codes
        kept_BT = (torch.arange(num_codes) < kept_B[:, None]).to(device)
        others_BTD = entries_BTD.roll(1, 0).detach()
        return torch.where(swapped_BT[..., None], others_BTD, straight_BTD) * kept_BT[..., None]


def picture_loss(painted_B3HW: Tensor, pixels_B3HW: Tensor, edge_weight: float) -> Tensor:
    """L1 + 2 L2 of the pixels, and L1 of the differences of neighbouring pixels, which blur cannot get right."""
    error = painted_B3HW.float() - pixels_B3HW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + edge_weight * edges
