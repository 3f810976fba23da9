"""Where a slot tokenizer starts from, and how its codebook follows the slots while it trains.

Shape suffixes: N pictures, F features, R regions, T slots, D numbers in a slot, K codebook entries,
S slots of many pictures.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ar_t2i.slots.model import SlotTokenizer

MEMORY = 32
"""Slots that an entry of the codebook averages over."""


@torch.no_grad()
def start_from_components(
    model: SlotTokenizer, features_NF: Tensor, weights_F: Tensor, generator: torch.Generator
) -> None:
    """Start mixer, codebook and unmixer from the principal components of the standardised features of N pictures.

    Slot s of a region holds its components s*(D-1) .. (s+1)*(D-1) - 1, scaled to variance 1, so slots run from coarse
    to fine. A slot's last number is a constant: scaling to length 1 then keeps the size of the others (a point of a
    plane, seen from the centre of the sphere). The codebook is k-means of the slots; the unmixer is the least-squares
    map from codebook entries to features.

    Args:
        model: with `feature_mean_F` and `feature_std_F` set.
        features_NF: raw features.
        weights_F: how much features count, see `ar_t2i.slots.objective.pixel_weights`.
        generator: of the k-means.
    """
    standard_NF = (features_NF - model.feature_mean_F) / model.feature_std_F
    roots_RF = model.mixer.by_region(weights_F[None]).sqrt()[:, 0]
    for mixer, part_NF, root_F in zip(model.mixer.mixers, model.mixer.by_region(standard_NF), roots_RF, strict=True):
        _start_mixer(mixer.linear, part_NF, root_F, model.config.code_dim - 1)

    slots_NTD = torch.cat([model.slots(chunk) for chunk in features_NF.split(256)])
    model.codebook_KD.copy_(_spherical_kmeans(slots_NTD.flatten(0, 1), model.codebook_size, generator))
    codes_NT = torch.cat([model.nearest(chunk) for chunk in slots_NTD.split(256)])
    entries = model.codebook_KD[codes_NT].flatten(1)
    entries = F.pad(entries, (0, 1), value=1.0)
    ridge = 1e-3 * len(entries) * torch.eye(entries.shape[1], device=entries.device)
    solution = torch.linalg.solve(entries.T @ entries + ridge, entries.T @ standard_NF)
    model.unmixer.linear.weight.copy_(solution[:-1].T)
    model.unmixer.linear.bias.copy_(solution[-1])


def _start_mixer(linear: nn.Linear, standard_NF: Tensor, root_F: Tensor, dim: int) -> None:
    """Principal components of weighed features, `dim` of them to a slot, and a constant of their length."""
    weighed_NF = standard_NF * root_F
    variance_F, directions_FF = torch.linalg.eigh(weighed_NF.T @ weighed_NF / len(weighed_NF))
    num_slots = linear.out_features // (dim + 1)
    chosen = torch.arange(len(variance_F) - 1, len(variance_F) - 1 - num_slots * dim, -1)
    rows = directions_FF[:, chosen].T / variance_F[chosen].clamp_min(1e-4).sqrt()[:, None] * root_F
    linear.weight.zero_().unflatten(0, (num_slots, -1))[:, :dim] = rows.unflatten(0, (num_slots, dim))
    assert linear.bias is not None
    linear.bias.zero_().unflatten(0, (num_slots, -1))[:, dim] = dim**0.5


class CodebookAverage:
    """Codebook entries as running averages of the slots they stand for (arXiv 1711.00937, appendix A.1)."""

    def __init__(self, codebook_KD: Tensor) -> None:
        self.codebook_KD = codebook_KD
        self.counts_K = torch.ones_like(codebook_KD[:, 0])
        self.sums_KD = codebook_KD.clone()

    @torch.no_grad()
    def update(self, slots_BTD: Tensor, codes_BT: Tensor, generator: torch.Generator) -> int:
        """Move the entries towards a batch of slots; one that nothing chose for long restarts at a slot of the batch.

        Returns:
            how many entries restarted.
        """
        slots_SD, codes_S = slots_BTD.detach().flatten(0, 1), codes_BT.flatten()
        # An entry is the mean of about its last MEMORY slots, however many a batch holds; counts_K is 1 on average.
        decay = max(0.9, 1 - len(codes_S) / len(self.codebook_KD) / MEMORY)
        weight = (1 - decay) * len(self.codebook_KD) / len(codes_S)
        self.counts_K.mul_(decay).index_add_(0, codes_S, torch.full_like(slots_SD[:, 0], weight))
        self.sums_KD.mul_(decay).index_add_(0, codes_S, slots_SD * weight)
        dead = (self.counts_K < 0.05).nonzero().flatten()[: len(slots_SD)]
        if len(dead):
            drawn = torch.randperm(len(slots_SD), generator=generator)[: len(dead)]
            self.counts_K[dead] = 1.0
            self.sums_KD[dead] = slots_SD[drawn]
        self.codebook_KD.copy_(F.normalize(self.sums_KD, dim=-1))
        return len(dead)


class CodeUsage:
    """Which codes were used, and how evenly."""

    def __init__(self, codebook_size: int) -> None:
        self.counts_K = torch.zeros(codebook_size, dtype=torch.int64)

    def add(self, codes_BT: Tensor) -> None:
        """Count codes."""
        self.counts_K += torch.bincount(codes_BT.flatten().cpu(), minlength=len(self.counts_K))

    def read(self) -> dict[str, float]:
        """Codes used, and their perplexity: as many equally frequent codes would be as hard to guess. Starts anew."""
        used = self.counts_K[self.counts_K > 0].double()
        self.counts_K.zero_()
        if not len(used):
            return {}
        shares = used / used.sum()
        return {"codes_used": len(used), "perplexity": math.exp(-(shares * shares.log()).sum())}


def _spherical_kmeans(slots_SD: Tensor, num_entries: int, generator: torch.Generator, rounds: int = 6) -> Tensor:
    """Cluster at most 16 unit vectors an entry; an entry without members restarts at a slot drawn by lot."""
    drawn = torch.randperm(len(slots_SD), generator=generator)[: 16 * num_entries]
    slots_SD = slots_SD[drawn]
    # Fewer slots than entries happens with tiny data only: entries then repeat.
    entries_KD = slots_SD[torch.arange(num_entries) % len(slots_SD)].clone()
    for _ in range(rounds):
        codes_S = torch.cat([(chunk @ entries_KD.T).argmax(-1) for chunk in slots_SD.split(8192)])
        sums_KD = torch.zeros_like(entries_KD).index_add_(0, codes_S, slots_SD)
        empty = torch.bincount(codes_S, minlength=num_entries) == 0
        again = torch.randint(len(slots_SD), (int(empty.sum()),), generator=generator)
        sums_KD[empty] = slots_SD[again]
        entries_KD = F.normalize(sums_KD, dim=-1)
    return entries_KD
