"""How like two sets of pictures are, by the features of a network: Frechet distance, KID, precision, recall and more.

Shape suffixes: B batch, N and M features of a set, D numbers of a feature, K neighbours.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ar_t2i.evaluation.extractors import FeatureExtractor
from ar_t2i.evaluation.frechet import FeatureMoments, frechet_distance
from ar_t2i.evaluation.statistics import Estimate

KEPT = 10_000
"""Features of a set that are kept whole, for the figures that need more than moments."""
SUBSETS, SUBSET_SIZE = 100, 1000
"""Of the kernel distance: how many, and the features of a set in each at most."""
MANIFOLD_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
"""Of precision and recall, and of density and coverage, as their papers take them."""
NOT_MEANINGFUL = "not meaningful"
"""What is said of a Frechet distance from fewer pictures than features; it has no interval."""
_ROWS = 512
"""Features whose distances to all others are held at a time."""


class FeatureSet:
    """Features of a set of pictures, in memory that does not grow: the moments of all, and a sample.

    The sample holds the pictures whose keys have the smallest digests, and the digests' last bits part the pictures
    into two halves. So both depend on the keys alone: order, batches and workers change nothing.
    """

    def __init__(self, kept: int = KEPT) -> None:
        """Start with nothing; at most `kept` features are kept whole."""
        if kept < 1:
            raise ValueError(f"kept={kept}: expected at least 1")
        self.kept = kept
        self._halves = (FeatureMoments(), FeatureMoments())
        self._digests_N, self._features_ND = np.zeros(0, np.uint64), np.zeros((0, 0), np.float32)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def count(self) -> int:
        """Pictures."""
        return sum(half.count for half in self._halves)

    @property
    def moments(self) -> FeatureMoments:
        """Those of all pictures."""
        whole = FeatureMoments()
        for half in self._halves:
            whole.join(half)
        return whole

    @property
    def sample_ND(self) -> Tensor:
        """The features that are kept, float64, in the order of their digests."""
        self._settle()
        return torch.from_numpy(self._features_ND).double()

    def add(self, features_BD: Tensor, keys: Sequence[str]) -> None:
        """Take in the features of B pictures.

        Args:
            features_BD: of a `FeatureExtractor`.
            keys: names the pictures in this set, each once: a file's name, or a number as text.

        Raises:
            ValueError: not a key for each, a key that is seen to come twice, features of another size or not finite.
        """
        if len(features_BD) != len(keys):
            raise ValueError(f"{len(features_BD)} features with {len(keys)} keys: expected one for each")
        digests_B = np.array([_digest(key) for key in keys], np.uint64)
        bits_B = torch.from_numpy((digests_B & np.uint64(1)).astype(bool)).to(features_BD.device)
        for half, rows_B in zip(self._halves, (~bits_B, bits_B), strict=True):
            half.add(features_BD[rows_B])
        self._keep(digests_B, features_BD.detach().float().cpu().numpy())

    def join(self, other: "FeatureSet") -> None:
        """Take in the pictures of another set, for example of another worker.

        Raises:
            ValueError: a key that is seen to come twice, or features of another size.
        """
        for half, more in zip(self._halves, other._halves, strict=True):
            half.join(more)
        other._settle()
        self._keep(other._digests_N, other._features_ND)
        self._settle()

    def halves(self) -> tuple["FeatureSet", "FeatureSet"]:
        """Two sets, one for each value of the digests' last bit."""
        self._settle()
        parts = FeatureSet(self.kept), FeatureSet(self.kept)
        for bit, part in enumerate(parts):
            rows_N = self._digests_N & np.uint64(1) == bit
            part._halves[bit].join(self._halves[bit])
            part._digests_N, part._features_ND = self._digests_N[rows_N], self._features_ND[rows_N]
        return parts

    def _keep(self, digests_B: np.ndarray, features_BD: np.ndarray) -> None:
        if len(self._digests_N) == self.kept:
            rows_B = digests_B <= self._digests_N[-1]
            digests_B, features_BD = digests_B[rows_B], features_BD[rows_B]
        if len(digests_B):
            self._waiting.append((digests_B, features_BD))
        if sum(len(digests) for digests, _ in self._waiting) >= self.kept:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        known = [(self._digests_N, self._features_ND)] if len(self._digests_N) else []
        parts, self._waiting = [*known, *self._waiting], []
        digests_N = np.concatenate([digests for digests, _ in parts])
        order_N = digests_N.argsort()[: self.kept]
        self._digests_N = digests_N[order_N]
        self._features_ND = np.concatenate([features for _, features in parts])[order_N]
        if (self._digests_N[1:] == self._digests_N[:-1]).any():
            raise ValueError("two pictures of a set have one key: give each its own, such as its file's name")


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def compare(
    reference: FeatureSet, generated: FeatureSet, extractor: FeatureExtractor, seed: int = 0
) -> dict[str, Any]:
    """All figures of two sets, ready for json.

    Args:
        reference: true pictures.
        generated: what is measured; all figures but precision, density and coverage would be the same the other way
            round, and recall then is precision.
        extractor: made the features of both; the figures are named by it.
        seed: of the subsets of the kernel distance.

    Returns:
        "features": name of the network. "pictures" and "kept": numbers of both sets, of which the moments, and the
        other figures, are made. "figures": by name; the Frechet distance with its 95 % interval and its count, the
        kernel distance, its deviation over the subsets ("_std") and their size, precision, recall, density and
        coverage; those for which there are too few pictures are left out. "bias": how much of the Frechet distance
        comes from these numbers of pictures, told from halves: with pictures without end it would be about so much
        less. "warnings": what a reader of the figures must know, the figures left out among them.

    Raises:
        ValueError: fewer than two pictures in a set, or features of two sizes.
    """
    first, second = reference.moments, generated.moments
    distance = frechet_distance(first, second)
    sample_ND, sample_MD = reference.sample_ND, generated.sample_ND
    figures: dict[str, Any] = {extractor.metric: {"value": distance, "low": None, "high": None, "count": second.count}}
    warnings, size = [], len(first.mean_D)
    if min(first.count, second.count) <= size:
        warnings.append(
            f"{extractor.metric} is {NOT_MEANINGFUL}: {size} features need at least {size + 1} pictures in each set, "
            "else a covariance is singular; it is far too high, has no interval, and compares only with others of "
            "these numbers of pictures"
        )
    else:
        estimate = frechet_interval(first, second, sample_ND, sample_MD)
        figures[extractor.metric] |= {"low": estimate.low, "high": estimate.high}
    subset = min(SUBSET_SIZE, len(sample_ND) // 2, len(sample_MD) // 2)
    if subset >= 2:
        mean, deviation = kernel_distance(sample_ND, sample_MD, subset, seed)
        figures[extractor.kernel_metric] = mean
        figures[f"{extractor.kernel_metric}_std"] = deviation
    else:
        warnings.append(f"{extractor.kernel_metric}: not computed, it needs 4 pictures in each set")
    if min(len(sample_ND), len(sample_MD)) > DENSITY_NEIGHBOURS:
        figures |= manifold_figures(sample_ND, sample_MD)
    else:
        warnings.append(
            f"precision to coverage: not computed, they need {DENSITY_NEIGHBOURS + 1} pictures in each set"
        )
    return {
        "features": extractor.name,
        "pictures": {"reference": first.count, "generated": second.count},
        "kept": {"reference": len(sample_ND), "generated": len(sample_MD)},
        "subset_size": subset,
        "figures": figures,
        "bias": _bias(reference, generated, distance),
        "warnings": warnings,
    }


def real_against_real(reference: FeatureSet, extractor: FeatureExtractor, seed: int = 0) -> dict[str, Any]:
    """What `compare` says of two halves of the true pictures: the best that a model can reach with so many."""
    return compare(*reference.halves(), extractor, seed)


def _bias(reference: FeatureSet, generated: FeatureSet, distance: float) -> float | None:
    """The mean distance of halves less that of the whole, as it is c / n too high (arXiv 1911.07023, section 3)."""
    pairs = list(zip(reference.halves(), generated.halves(), strict=True))
    if any(half.count < 2 for pair in pairs for half in pair):
        return None
    return sum(frechet_distance(one.moments, two.moments) for one, two in pairs) / len(pairs) - distance


def frechet_interval(
    first: FeatureMoments, second: FeatureMoments, sample_ND: Tensor, sample_MD: Tensor, z: float = 1.959964
) -> Estimate:
    """The Frechet distance with a 95 % interval, by the infinitesimal jackknife (Efron 1982, chapter 6).

    That is the bootstrap to first order. A bootstrap proper would add its own bias, as the distance is too high for
    few pictures and a resample has fewer different ones. Here each picture x of a set has the influence
    2 (m1 - m2)'(x - m1) + (x - m1)'(1 - T)(x - m1) on the distance, T = A (A S2 A)^(1/2) A with A = S1^(-1/2) being
    the optimal map from one Gaussian to the other; the variance is the sum over both sets of that of the influence,
    over the pictures. So the interval is around the distance that sets of these sizes have on average, its bias
    included, and not around that of endless sets.

    Args:
        first: moments of all pictures of a set, more than there are features.
        second: those of the other.
        sample_ND: features of the first, float64, that the influence is measured on.
        sample_MD: those of the second.
        z: half the interval's width in standard errors.
    """
    variance = 0.0
    for own, other, sample in ((first, second, sample_ND), (second, first, sample_MD)):
        around_ND = sample.numpy() - own.mean_D
        moved = np.square(around_ND).sum(1) + 2 * around_ND @ (own.mean_D - other.mean_D)
        moved -= np.einsum("nd,de,ne->n", around_ND, _transport(own.covariance_DD, other.covariance_DD), around_ND)
        variance += moved.var(ddof=1) / own.count
    distance = frechet_distance(first, second)
    half = z * float(np.sqrt(variance))
    return Estimate(distance, max(0.0, distance - half), distance + half, second.count)


def _transport(own_DD: np.ndarray, other_DD: np.ndarray) -> np.ndarray:
    """The matrix that takes a Gaussian of one covariance to the other's (Olkin and Pukelsheim 1982)."""
    root_DD, inverse_DD = _powers(own_DD)
    middle_DD, _ = _powers(root_DD @ other_DD @ root_DD)
    return inverse_DD @ middle_DD @ inverse_DD


def _powers(matrix_DD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The root of a symmetric matrix, and that of its inverse where it has one."""
    values, vectors = np.linalg.eigh(matrix_DD)
    sure = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0.0)
    roots = np.sqrt(np.where(sure, values, 0.0))
    return vectors * roots @ vectors.T, vectors * np.divide(1, roots, where=sure, out=np.zeros_like(roots)) @ vectors.T


def kernel_distance(sample_ND: Tensor, sample_MD: Tensor, size: int, seed: int) -> tuple[float, float]:
    """Mean and deviation over `SUBSETS` subsets of the unbiased MMD^2 with the kernel (x'y / D + 1)^3.

    KID, where the features are Inception's (Binkowski et al., arXiv 1801.01401, section 4). It has no bias, so it can
    be below zero. The deviation is that of subsets and no interval of the mean.

    Args:
        sample_ND: features, float64.
        sample_MD: those of the other set.
        size: features of a set in a subset, at least 2 and no more than N and M.
        seed: of the subsets.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(SUBSETS):
        one = sample_ND[torch.from_numpy(rng.choice(len(sample_ND), size, replace=False))]
        two = sample_MD[torch.from_numpy(rng.choice(len(sample_MD), size, replace=False))]
        found.append(_mmd2(one, two))
    return float(np.mean(found)), float(np.std(found))


def _mmd2(one_ND: Tensor, two_MD: Tensor) -> float:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = 0.0
    for features in (one_ND, two_MD):
        gram, number = kernel(features, features), len(features)
        within += float(gram.sum() - gram.trace()) / (number * (number - 1))
    return within - 2 * float(kernel(one_ND, two_MD).mean())


def manifold_figures(reference_ND: Tensor, generated_MD: Tensor) -> dict[str, float]:
    """Precision and recall (arXiv 1904.06991, equation 2), density and coverage (arXiv 2002.09797, equations 3 and 4).

    A feature's ball reaches to its third, for density and coverage to its fifth nearest neighbour in its own set.
    Precision is the share of generated pictures in a ball of the reference, recall that of the reference in a ball of
    the generated ones; density is the mean number of the reference's balls around a generated picture, over 5, and
    may exceed 1; coverage is the share of the reference's balls that hold a generated picture.

    Args:
        reference_ND: features, float64, at least 6.
        generated_MD: those of the other set.
    """
    middle_D = reference_ND.mean(0)
    reference_ND, generated_MD = reference_ND - middle_D, generated_MD - middle_D
    manifold_N, density_N = _radii(reference_ND)
    manifold_M, _ = _radii(generated_MD)
    dense, recalled, covered = 0, 0, 0
    inside_M = torch.zeros(len(generated_MD), dtype=torch.bool)
    for start in range(0, len(reference_ND), _ROWS):
        rows = slice(start, start + _ROWS)
        apart_BM = _apart(reference_ND[rows], generated_MD)
        inside_M |= (apart_BM <= manifold_N[rows, None]).any(0)
        recalled += int((apart_BM <= manifold_M).any(1).sum())
        within_BM = apart_BM < density_N[rows, None]
        dense += int(within_BM.sum())
        covered += int(within_BM.any(1).sum())
    return {
        "precision": int(inside_M.sum()) / len(generated_MD),
        "recall": recalled / len(reference_ND),
        "density": dense / DENSITY_NEIGHBOURS / len(generated_MD),
        "coverage": covered / len(reference_ND),
    }


def _radii(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances to the third and the fifth nearest neighbour; the feature itself is not one."""
    nearest = [
        _apart(features_ND[start : start + _ROWS], features_ND).topk(DENSITY_NEIGHBOURS + 1, largest=False).values
        for start in range(0, len(features_ND), _ROWS)
    ]
    nearest_NK = torch.cat(nearest)
    return nearest_NK[:, MANIFOLD_NEIGHBOURS], nearest_NK[:, DENSITY_NEIGHBOURS]


def _apart(one_BD: Tensor, two_ND: Tensor) -> Tensor:
    """Squared distances (B, N); what is within the error of rounding is zero."""
    norms_BN = one_BD.square().sum(1)[:, None] + two_ND.square().sum(1)
    apart_BN = norms_BN - 2 * one_BD @ two_ND.T
    return apart_BN.where(apart_BN > 1e-13 * norms_BN, 0.0)
