"""The Frechet distance between two sets of features, each seen as a Gaussian, in double precision.

Shape suffixes: B batch, D features. FID is this distance of the features of one certain network
(`ar_t2i.evaluation.inception`) and of no other.
"""

import numpy as np
import torch
from torch import Tensor


class FeatureMoments:
    """Mean and covariance of features that come in batches; memory does not grow with their number.

    Attributes:
        count: features taken in.
        mean_D: their mean, float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean_D = np.zeros(0)
        self._scatter_DD = np.zeros((0, 0))

    def add(self, features_BD: Tensor) -> None:
        """Take in B features of D numbers.

        Deviations are taken from the batch's own mean and batches are joined by the update of Chan, Golub and LeVeque
        (1983), so that no large numbers cancel.

        Raises:
            ValueError: not of the shape (B, D) of the batches before, or not finite.
        """
        batch_BD = features_BD.detach().cpu().double().numpy()
        if batch_BD.ndim != 2 or (self.count and batch_BD.shape[1] != len(self.mean_D)):
            expected = f"(B, {len(self.mean_D)})" if self.count else "(B, D)"
            raise ValueError(f"features of shape {batch_BD.shape}: expected {expected}")
        if not np.isfinite(batch_BD).all():
            raise ValueError("features that are not finite: the network or its weights are damaged")
        if not len(batch_BD):
            return
        batch = FeatureMoments()
        batch.count, batch.mean_D = len(batch_BD), batch_BD.mean(0)
        around_BD = batch_BD - batch.mean_D
        batch._scatter_DD = around_BD.T @ around_BD
        self.join(batch)

    def join(self, other: "FeatureMoments") -> None:
        """Take in all that another has taken in.

        Raises:
            ValueError: features of another size.
        """
        if not other.count:
            return
        if not self.count:
            self.count, self.mean_D, self._scatter_DD = other.count, other.mean_D, other._scatter_DD.copy()
            return
        if len(self.mean_D) != len(other.mean_D):
            raise ValueError(f"features of {len(self.mean_D)} and {len(other.mean_D)} numbers: expected one network's")
        apart_D, count = other.mean_D - self.mean_D, self.count + other.count
        self._scatter_DD += other._scatter_DD
        self._scatter_DD += np.outer(apart_D, apart_D) * (self.count * other.count / count)
        self.mean_D = self.mean_D + apart_D * (other.count / count)
        self.count = count

    @property
    def covariance_DD(self) -> np.ndarray:
        """The unbiased covariance (divided by count - 1), float64.

        Raises:
            ValueError: fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} pictures: a covariance needs at least 2")
        return self._scatter_DD / (self.count - 1)


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)) (Dowson and Landau 1982; Heusel et al., arXiv 1706.08500).

    Raises:
        ValueError: fewer than two features in a set, or features of two sizes.
    """
    return gaussian_distance(first.mean_D, first.covariance_DD, second.mean_D, second.covariance_DD)


def gaussian_distance(
    mean_1_D: np.ndarray, covariance_1_DD: np.ndarray, mean_2_D: np.ndarray, covariance_2_DD: np.ndarray
) -> float:
    """The distance of `frechet_distance` from means and covariances.

    With S1 = A A' and S2 = B B', the eigenvalues of S1 S2 are the squared singular values of A' B, so the trace of its
    root is their sum. No root of an asymmetric matrix is taken and no eigenvalue is squared and rooted again, which
    would turn an error of 1e-16 into one of 1e-8; singular covariances (fewer pictures than features) need no care.

    Raises:
        ValueError: the sizes differ.
    """
    if mean_1_D.shape != mean_2_D.shape:
        raise ValueError(f"features of {len(mean_1_D)} and {len(mean_2_D)} numbers: expected one network's")
    roots = torch.from_numpy(_factor(covariance_1_DD).T @ _factor(covariance_2_DD))
    cross = float(torch.linalg.svdvals(roots).sum())
    distance = np.square(mean_1_D - mean_2_D).sum() + np.trace(covariance_1_DD) + np.trace(covariance_2_DD) - 2 * cross
    return max(0.0, float(distance))


def _factor(covariance_DD: np.ndarray) -> np.ndarray:
    """A, (D, D), with A A' equal to the covariance; eigenvalues within the error of rounding are zero."""
    values, vectors = np.linalg.eigh(covariance_DD)
    error = len(values) * np.finfo(np.float64).eps * values.max(initial=0.0)
    return vectors * np.sqrt(np.where(values > error, values, 0.0))
