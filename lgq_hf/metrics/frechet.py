"""Fréchet distance between two sets of feature vectors (Heusel et al. 2017, section 2 and equation 6).

Which network made the features decides what the number means. It is FID only with the Inception network of that paper;
with any other, name the network: a number from one cannot be compared with a number from another.

Shapes: N feature vectors (one per picture), D features.
"""

import torch
from torch import Tensor


class FeatureStatistics:
    """Number, mean and covariance of feature vectors, gathered batch by batch in float64.

    Sums are kept of what is left after the first vector is subtracted, so that a large common offset of the features
    costs no digits (Chan, Golub and LeVeque 1983, "shifted data"). Processes share their sums through `state`:

        state = statistics.state
        torch.distributed.all_reduce(state)
        whole = FeatureStatistics.from_state(state)

    `state` holds sums of x - origin and of its products. The covariance made from it is off by about
    1e-16 |mean - origin|^2, which is nothing for features of a network; where means are above 1e4 standard deviations,
    give all processes one `origin` near the features: it is then subtracted in place of the first vector.

    Args:
        dimensions: D.
        device: where the sums are kept; it must have float64.
        origin: (D,) finite numbers, the same in all processes; 0 by default.

    Raises:
        ValueError: `dimensions` below 1, or an origin of another shape or with NaN or infinities.
    """

    def __init__(
        self, dimensions: int, *, device: torch.device | str | None = None, origin: Tensor | None = None
    ) -> None:
        if dimensions < 1:
            raise ValueError(f"dimensions: expected at least 1, got {dimensions}")
        self.dimensions, self.count = dimensions, 0
        self._sum = torch.zeros(dimensions, dtype=torch.float64, device=device)
        self._products = torch.zeros(dimensions, dimensions, dtype=torch.float64, device=device)
        self._origin = torch.zeros_like(self._sum)
        self._shift: Tensor | None = None
        if origin is not None:
            if tuple(origin.shape) != (dimensions,) or not bool(origin.isfinite().all()):
                raise ValueError(f"origin: expected finite numbers ({dimensions},), got shape {tuple(origin.shape)}")
            self._shift = self._origin.copy_(origin.detach())

    def update(self, features: Tensor) -> None:
        """Takes in feature vectors (N,D), floating point, on any device; N may be 0. They are not looked at for NaN.

        Raises:
            ValueError: another shape or dtype.
        """
        if features.ndim != 2 or features.shape[1] != self.dimensions or not features.is_floating_point():
            expected = f"features: expected floats (N,{self.dimensions})"
            raise ValueError(f"{expected}, got shape {tuple(features.shape)}, {features.dtype}")
        if not len(features):
            return
        features = features.detach().to(self._sum.device, torch.float64)
        if self._shift is None:
            self._shift = features[0].clone()
        rest = features - self._shift
        self._sum += rest.sum(0)
        self._products += rest.T @ rest
        self.count += len(features)

    @property
    def mean(self) -> Tensor:
        """(D,) float64.

        Raises:
            ValueError: there are no feature vectors yet.
        """
        if self._shift is None or not self.count:
            raise ValueError("the mean needs at least 1 feature vector, got none: call update first")
        return self._shift + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(D,D) float64, unbiased: divided by N - 1.

        Raises:
            ValueError: there are fewer than 2 feature vectors.
        """
        if self.count < 2:
            raise ValueError(f"the covariance needs at least 2 feature vectors, got {self.count}: call update first")
        return (self._products - torch.outer(self._sum, self._sum) / self.count) / (self.count - 1)

    @property
    def state(self) -> Tensor:
        """(1 + D + D*D,) float64, new: N, sum (x - origin), sum (x - origin)(x - origin)^T; states add up."""
        shift = torch.zeros_like(self._sum) if self._shift is None else self._shift - self._origin
        count = torch.full_like(self._sum[:1], self.count)
        total = self._sum + self.count * shift
        cross = torch.outer(shift, self._sum)
        products = self._products + cross + cross.T + self.count * torch.outer(shift, shift)
        return torch.cat([count, total, products.flatten()])

    @classmethod
    def from_state(cls, state: Tensor, *, origin: Tensor | None = None) -> "FeatureStatistics":
        """The statistics of all feature vectors whose states were added up, on the device of the sum.

        Args:
            state: (1 + D + D*D,) float64, a sum of `state` from statistics with the same origin.
            origin: (D,), that origin.

        Raises:
            ValueError: another dtype or length, or a number of feature vectors that is no whole number.
        """
        dimensions = round((max(state.numel(), 1) - 0.75) ** 0.5 - 0.5)
        if state.ndim != 1 or dimensions < 1 or 1 + dimensions + dimensions**2 != len(state):
            raise ValueError(f"state: expected a shape (1 + D + D*D,), got {tuple(state.shape)}")
        if state.dtype != torch.float64:
            raise ValueError(f"state: expected torch.float64, got {state.dtype}")
        count = float(state[0])
        if not (count >= 0 and count.is_integer()):
            raise ValueError(f"state: expected a whole number of feature vectors first, got {count}")
        statistics = cls(dimensions, device=state.device, origin=origin)
        statistics.count = int(count)
        if statistics.count:
            statistics._shift = statistics._origin
        statistics._sum += state[1 : 1 + dimensions]
        statistics._products += state[1 + dimensions :].view(dimensions, dimensions)
        return statistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of two sets of features.

    See `gaussian_frechet_distance`. With fewer pictures than features the covariances are singular: the number is
    still exact for these sets, but as an estimate for more pictures it is biased upwards. Compare numbers of equal N.

    Raises:
        ValueError: fewer than 2 feature vectors in one of them, different D, or features with NaN or infinities.
    """
    return gaussian_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def gaussian_frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson and Landau 1982).

    The trace is computed as min over Q of |R_a - R_b Q|^2 in the Frobenius norm, with S = R R^T and orthonormal rows
    in Q (Bhatia, Jain and Lim 2019, "On the Bures-Wasserstein distance between positive definite
    matrices"). R comes from the eigenvalues of
    S, Q from the singular values of R_b^T R_a. A sum of squares is never negative, does not cancel where the two are
    close, and needs no matrix to be invertible. Eigenvalues within rounding of 0 count as 0.

    Args:
        mean_a: (D,), any float dtype and device; computed in float64 on the CPU.
        covariance_a: (D,D), symmetric and positive semidefinite.
        mean_b: as the first.
        covariance_b: as the second.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        ValueError: shapes that do not fit, NaN or infinities, or a covariance that is not symmetric or has negative
            eigenvalues.
    """
    means = [mean.detach().cpu().double() for mean in (mean_a, mean_b)]
    covariances = [covariance.detach().cpu().double() for covariance in (covariance_a, covariance_b)]
    size = len(means[0]) if means[0].ndim else 0
    for name, mean, covariance in zip("ab", means, covariances, strict=True):
        if tuple(mean.shape) != (size,) or tuple(covariance.shape) != (size, size) or not size:
            got = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise ValueError(f"{name}: expected a mean (D,) and a covariance (D,D), D the same in both, got {got}")
        if not (bool(mean.isfinite().all()) and bool(covariance.isfinite().all())):
            raise ValueError(f"{name}: expected finite moments, got NaN or infinities: look at the features")
    smaller, larger = sorted(
        (_root(c, name) for c, name in zip(covariances, "ab", strict=True)), key=lambda r: r.shape[1]
    )
    left, _, right = torch.linalg.svd(smaller.T @ larger, full_matrices=False)
    gap = larger - smaller @ (left @ right)
    return float((means[0] - means[1]).square().sum() + gap.square().sum())


def _root(covariance: Tensor, name: str) -> Tensor:
    """R (D, rank) with R R^T = the covariance."""
    scale = float(covariance.abs().max())
    if float((covariance - covariance.T).abs().max()) > 1e-8 * scale:
        raise ValueError(f"{name}: expected a symmetric covariance")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    largest = float(values.abs().max())
    if float(values[0]) < -1e-6 * largest:
        raise ValueError(
            f"{name}: expected a positive semidefinite covariance, got an eigenvalue {float(values[0]):.3g}"
        )
    kept = values > len(values) * torch.finfo(torch.float64).eps * largest
    return vectors[:, kept] * values[kept].sqrt()


__all__ = ["FeatureStatistics", "frechet_distance", "gaussian_frechet_distance"]
