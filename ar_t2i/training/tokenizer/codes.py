"""How a codebook is used while it trains, and what becomes of entries that nothing uses.

Shape suffixes: K codebook entries, C numbers in an entry, M latents of a step over all processes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ar_t2i.titok.quantizer import QuantizerOutput, VectorQuantizer
from ar_t2i.training.task import Sums


@dataclass(frozen=True, kw_only=True)
class CodesConfig:
    """Watching the codebook, and keeping its entries alive."""

    restart: bool = True
    """Pull entries that nothing uses to latents of the batch (CVQ-VAE, arXiv 2307.15139)."""
    usage_decay: float = 0.99
    """Decay of the running usage of an entry, by which it counts as dead."""
    window: int = 4096
    """Pictures over which codes_used and code_perplexity are counted."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.usage_decay < 1:
            raise ValueError(f"codes.usage_decay={self.usage_decay}: expected between 0 and 1")
        if self.window < 1:
            raise ValueError(f"codes.window={self.window}: expected at least 1 picture")


class Codes:
    """Counts the codes of a quantiser and restarts its dead entries; a companion of the training loop.

    A codebook that starts uniformly in a corner has few entries near any latent; the others get no gradient and stay
    dead. CVQ-VAE (arXiv 2307.15139, equations 4 to 6; TA-TiTok trains so) keeps the running usage of each entry,

        u_k <- d u_k + (1 - d) n_k / M          n_k of the step's M latents chose entry k
        a_k = exp(-10 K u_k / (1 - d) - 1e-3)   about 1 for an entry that is dead, 0 for one that is used
        e_k <- (1 - a_k) e_k + a_k z_k          z_k a latent of the step

    so entries come alive where latents are, used ones stay, and at the first step the codebook starts at the latents.
    The paper takes the nearest latent as z_k. Entries that lie together, as at the start, then all move to one latent;
    here each gets a latent drawn at random without repetition (the paper's "random", as good in its table 5), from a
    generator that step and seed decide. Usage and latents are those of all processes, so all move alike.
    """

    def __init__(self, quantizer: VectorQuantizer, config: CodesConfig, accelerator: Accelerator, seed: int) -> None:
        """Watch a quantiser.

        Args:
            quantizer: the one that trains.
            config: the options; without `restart` entries are counted only.
            accelerator: of the run.
            seed: of the latents that dead entries are pulled to.
        """
        self.quantizer, self.config, self.accelerator, self.seed = quantizer, config, accelerator, seed
        size = quantizer.embedding.num_embeddings
        self.step = 0
        self.usage_K = torch.zeros(size, device=accelerator.device)
        self.counts_K = torch.zeros(size, device=accelerator.device)
        self.pictures = 0
        self.figures: dict[str, float] = {}
        self._latents: list[Tensor] = []

    def see(self, quantized: QuantizerOutput) -> Tensor:
        """Take note of a micro-batch; how often each code stands in it (K,), for the step's sums."""
        if self.config.restart:
            self._latents.append(quantized.searched)
        codes = quantized.codes.flatten()
        return torch.zeros_like(self.counts_K).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))

    @torch.no_grad()
    def after_step(self, sums: Sums, counts: Tensor) -> dict[str, float]:
        """Count, and pull dead entries; codes_used and code_perplexity are those of the last full window."""
        counts_K = sums["code_counts"]
        values = self._count(counts_K, int(counts[0]))
        if self.config.restart:
            decay = self.config.usage_decay
            self.usage_K.lerp_(counts_K / counts_K.sum(), 1 - decay)
            pull_K = torch.exp(-10 * len(counts_K) * self.usage_K / (1 - decay) - 1e-3)
            values["restarted_codes"] = float((pull_K > 0.5).sum())
            if pull_K.max() > 1e-4:
                self._pull(pull_K)
            self._latents.clear()
        self.step += 1
        return values

    def after_skipped_step(self) -> None:
        """Forget what was seen."""
        self._latents.clear()
        self.step += 1

    def _count(self, counts_K: Tensor, pictures: int) -> dict[str, float]:
        self.counts_K += counts_K
        self.pictures += pictures
        full = self.pictures >= self.config.window
        if full or not self.figures.get("full"):
            chances_K = self.counts_K / self.counts_K.sum()
            entropy = float(torch.special.entr(chances_K).sum())
            used = float((self.counts_K > 0).sum())
            self.figures = {"codes_used": used, "code_perplexity": math.exp(entropy), "full": float(full)}
        if full:
            self.counts_K.zero_()
            self.pictures = 0
        return {name: value for name, value in self.figures.items() if name != "full"}

    def _pull(self, pull_K: Tensor) -> None:
        latents_MC = torch.cat([self.accelerator.gather(part) for part in self._latents])  # type: ignore[misc]
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)
        rounds = math.ceil(len(pull_K) / len(latents_MC))
        order = torch.cat([torch.randperm(len(latents_MC), generator=generator) for _ in range(rounds)])
        chosen_KC = latents_MC[order[: len(pull_K)].to(latents_MC.device)]
        self.quantizer.embedding.weight.lerp_(chosen_KC, pull_K.unsqueeze(1))

    def state_dict(self) -> dict[str, Any]:
        """Running usage, the unfinished window and the last figures."""
        tensors = {"usage": self.usage_K.cpu(), "counts": self.counts_K.cpu()}
        return {**tensors, "step": self.step, "pictures": self.pictures, "figures": self.figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.usage_K.copy_(state["usage"])
        self.counts_K.copy_(state["counts"])
        self.step, self.pictures, self.figures = state["step"], state["pictures"], state["figures"]
