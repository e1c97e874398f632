"""Improved precision and recall of generated pictures (Kynkäänniemi et al. 2019, arXiv 1904.06991, equations 1 and 2).

Each set is taken for the union of balls around its feature vectors, a ball reaching to its vector's k-th neighbour in
the same set. Precision is the share of generated vectors inside the balls of the real ones (are the pictures
plausible), recall the share of real vectors inside the balls of the generated ones (are all kinds there).

Both depend on the features, on k and on how many vectors there are: more vectors make smaller balls. Compare numbers
of the same network, k and counts, and as in the paper let both sets have the same count.

Shapes: N real and M generated feature vectors (one per picture), D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(real_ND: Tensor, generated_MD: Tensor, *, k: int = 3, block: int = 512) -> PrecisionRecall:
    """How many generated vectors lie where real ones do, and how many real ones lie where generated ones do.

    Distances are Euclidean, in float64, each summed over differences and not made from products: so equal distances
    stay equal, a vector exactly on the surface of a ball is inside, and neither `block` nor the order of the vectors
    changes anything. A vector is not its own neighbour; another one that is equal to it is, at distance 0. That takes
    about D (N^2 + M^2 + N M) operations, on the device of the vectors, which must have float64.

    Args:
        real_ND: features of real pictures (N,D), floating point, finite; N at least k + 1.
        generated_MD: those of generated pictures (M,D), on the same device; M at least k + 1.
        k: which neighbour a ball reaches to, at least 1; 3 in the paper.
        block: how many rows of a matrix of distances are held at once; memory is 8 max(N, M) block bytes.

    Returns:
        precision and recall.

    Raises:
        ValueError: another shape or dtype, different D, NaN or infinities, no more than k vectors in a set, or k or
            `block` below 1.
    """
    for name, value in (("k", k), ("block", block)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    real_ND, generated_MD = _checked(real_ND, "real", k), _checked(generated_MD, "generated", k)
    if real_ND.shape[1] != generated_MD.shape[1]:
        sizes = f"real {real_ND.shape[1]} and generated {generated_MD.shape[1]}"
        raise ValueError(f"expected two sets of equally many features, got {sizes}: use one network for both")
    real_radii_N, generated_radii_M = _radii(real_ND, k, block), _radii(generated_MD, k, block)
    precise = 0
    recalled_N = torch.zeros_like(real_radii_N, dtype=torch.bool)
    for rows_BD, radii_B in zip(generated_MD.split(block), generated_radii_M.split(block), strict=True):
        distances_BN = _distances(rows_BD, real_ND)
        precise += int((distances_BN <= real_radii_N).any(1).sum())
        recalled_N |= (distances_BN <= radii_B[:, None]).any(0)
    return PrecisionRecall(precise / len(generated_MD), int(recalled_N.sum()) / len(real_ND))


def _radii(features_ND: Tensor, k: int, block: int) -> Tensor:
    """(N,) distance of each vector to its k-th neighbour; the smallest of its distances is the 0 to itself."""
    return torch.cat(
        [_distances(rows, features_ND).kthvalue(k + 1, dim=1).values for rows in features_ND.split(block)]
    )


def _distances(rows_BD: Tensor, features_ND: Tensor) -> Tensor:
    return torch.cdist(rows_BD, features_ND, compute_mode="donot_use_mm_for_euclid_dist")


def _checked(features: Tensor, name: str, k: int) -> Tensor:
    """The features in float64."""
    if features.ndim != 2 or not features.shape[1] or not features.is_floating_point():
        got = f"shape {tuple(features.shape)}, {features.dtype}"
        raise ValueError(f"{name}: expected floats (vectors, features), got {got}")
    if len(features) <= k:
        raise ValueError(f"{name}: expected at least {k + 1} vectors for k = {k}, got {len(features)}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name}: expected finite features, got NaN or infinities: look at the pictures")
    return features.detach().double()


__all__ = ["PrecisionRecall", "precision_recall"]
