"""What can be said of codes among latents, as numbers; all in float64.

Shapes: N latents, C channels, K codes. Letters: x_n latents with the mean m, c_k codes, k(n) the code that stands for
x_n, n_k how many latents code k stands for (its occupancy), m_k their mean, R^2 = mean |x - m|^2.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lgq_hf.metrics.codebook import count_tokens

NEIGHBOURS = 32
_BLOCK = 2**23  # distances at a time


@dataclass(frozen=True)
class Sample:
    """Latents of pictures, and all codes; float64, on the CPU.

    Attributes:
        latents_NC: as they are compared with codes, finite, not all equal.
        tokens_N: the code of each, int64 in [0, K).
        codes_KC: finite.
        second_N: bool, whether a latent is of the second half of the pictures; at least NEIGHBOURS are in each.
        pictures: how many there were.

    Raises:
        ValueError: too few latents, NaN or infinities, or latents that are all equal.
    """

    latents_NC: Tensor
    tokens_N: Tensor
    codes_KC: Tensor
    second_N: Tensor
    pictures: int

    def __post_init__(self) -> None:
        fewest = min(int(self.second_N.sum()), int((~self.second_N).sum()))
        if fewest < NEIGHBOURS:
            raise ValueError(
                f"expected at least {NEIGHBOURS} latents in each half of the pictures, got {fewest}: take more"
            )
        if not bool(self.latents_NC.isfinite().all() and self.codes_KC.isfinite().all()):
            raise ValueError("expected finite latents and codes, got NaN or infinities: look at the encoder")
        if bool((self.latents_NC == self.latents_NC[0]).all()):
            raise ValueError("all latents are equal: the encoder has collapsed, and there is no geometry to speak of")


@dataclass(frozen=True)
class Geometry:
    """What a sample says; each attribute is computed when it is first asked for."""

    sample: Sample

    @cached_property
    def counts_K(self) -> Tensor:
        """(K,) int64, the occupancy n_k."""
        return count_tokens(self.sample.tokens_N, len(self.sample.codes_KC))

    @cached_property
    def mean_C(self) -> Tensor:
        """(C,) m."""
        return self.sample.latents_NC.mean(0)

    @cached_property
    def _principal(self) -> tuple[Tensor, Tensor]:
        centred = self.sample.latents_NC - self.mean_C
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        return values.flip(0).clamp_min(0), vectors.flip(1)

    @cached_property
    def spectrum_C(self) -> Tensor:
        """(C,) eigenvalues of the covariance (divided by N), falling; their sum is R^2."""
        return self._principal[0]

    @cached_property
    def axes_CC(self) -> Tensor:
        """(C,C) principal axes of the latents, one a column, in the order of the eigenvalues."""
        return self._principal[1]

    @cached_property
    def radius(self) -> float:
        """R, the root mean square distance of the latents to their mean; above 0."""
        return float((self.sample.latents_NC - self.mean_C).square().sum(1).mean().sqrt())

    @cached_property
    def dimension(self) -> float:
        """(sum v)^2 / sum v^2 of the eigenvalues, in [1, C]."""
        return float(self.spectrum_C.sum().square() / self.spectrum_C.square().sum())

    @cached_property
    def _nearest(self) -> tuple[Tensor, Tensor]:
        """Distances of each code to its nearest latents, (K,NEIGHBOURS) rising, in either half of the pictures."""
        sample = self.sample
        first, second = (
            nearest_distances(sample.codes_KC, sample.latents_NC[half], NEIGHBOURS)
            for half in (~sample.second_N, sample.second_N)
        )
        return first, second

    @cached_property
    def _nearest_of_all(self) -> Tensor:
        return torch.cat(self._nearest, dim=1).sort(dim=1).values[:, :NEIGHBOURS]

    @cached_property
    def code_to_latent_K(self) -> Tensor:
        """(K,) distance of each code to its nearest latent, in units of R, at least 0."""
        return self._nearest_of_all[:, 0] / self.radius

    @cached_property
    def latent_to_code_N(self) -> Tensor:
        """(N,) distance of each latent to the code that stands for it, in units of R, at least 0."""
        gaps_NC = self.sample.latents_NC - self.sample.codes_KC[self.sample.tokens_N]
        return gaps_NC.norm(dim=1) / self.radius

    @cached_property
    def density_K(self) -> Tensor:
        """(K,) (j / N) (R / r_k)^d, at least 0: how dense latents lie at each code; r_k leads to its jth nearest.

        j is NEIGHBOURS. It is 1 where they are as dense as if all filled a ball of radius R evenly; infinite where j
        of them are the code itself. The exponent d, their effective dimension, does not change the order.
        """
        distances_K = self._nearest_of_all[:, -1] / self.radius
        return NEIGHBOURS / len(self.sample.latents_NC) * distances_K.pow(-self.dimension)

    def spearman(self) -> float | None:
        """Rank correlation of occupancy and density over all codes, in [-1, 1]; `None`: one of them is constant."""
        return spearman(self.counts_K, -self._nearest_of_all[:, -1])

    def spearman_used(self) -> float | None:
        """The same over the codes with an occupancy of at least 1."""
        used_K = self.counts_K > 0
        return spearman(self.counts_K[used_K], -self._nearest_of_all[used_K, -1])

    def spearman_halves(self) -> float | None:
        """The same over all codes, with occupancy and density from different pictures; mean of both ways."""
        sample, both = self.sample, []
        for half, nearest in zip((sample.second_N, ~sample.second_N), self._nearest, strict=True):
            counts_K = count_tokens(sample.tokens_N[half], len(sample.codes_KC))
            both.append(spearman(counts_K, -nearest[:, -1]))
        first, second = both
        return None if first is None or second is None else (first + second) / 2

    def relative_error(self) -> float:
        """mean |x - c_k(n)|^2 / R^2, at least 0."""
        return float(self.latent_to_code_N.square().mean())

    def within_cell_variance(self) -> float:
        """sum_n |x_n - m_k(n)|^2 / sum_n |x_n - m|^2, in [0, 1]."""
        x_NC, tokens_N = self.sample.latents_NC, self.sample.tokens_N
        means_KC = torch.zeros_like(self.sample.codes_KC).index_add_(0, tokens_N, x_NC - self.mean_C)
        means_KC = means_KC / self.counts_K.clamp_min(1)[:, None]
        within = (x_NC - self.mean_C - means_KC[tokens_N]).square().sum(1).mean()
        return float(within) / self.radius**2

    def numbers(self) -> dict[str, Any]:
        """All of it, of JSON's types; geometry.py's `DEFINITIONS` says what each number is.

        Returns:
            Sizes; the numbers; and medians of `code_to_latent`, of `orphan_to_latent` (of the codes without a latent;
            `None`: there are none) and of `latent_to_code`.
        """
        used_K = self.counts_K > 0
        return {
            "pictures": self.sample.pictures,
            "latents": len(self.sample.latents_NC),
            "codebook_size": len(used_K),
            "channels": len(self.mean_C),
            "neighbours": NEIGHBOURS,
            "codes_used": int(used_K.sum()),
            "orphan_share": float((~used_K).double().mean()),
            "gini": gini(self.counts_K),
            "gini_used": gini(self.counts_K[used_K]),
            "spearman": self.spearman(),
            "spearman_used": self.spearman_used(),
            "spearman_halves": self.spearman_halves(),
            "relative_quantization_error": self.relative_error(),
            "within_cell_variance": self.within_cell_variance(),
            "effective_dimension": self.dimension,
            "rms_radius": self.radius,
            "code_to_latent": _median(self.code_to_latent_K),
            "orphan_to_latent": _median(self.code_to_latent_K[~used_K]),
            "latent_to_code": _median(self.latent_to_code_N),
        }


def nearest_distances(a_KC: Tensor, b_NC: Tensor, count: int) -> Tensor:
    """Distances of each row of `a_KC` to its `count` nearest rows of `b_NC` (at least as many), (K,count) rising.

    From differences, so that a distance of 0 is 0; memory: O(K count) and one block.
    """
    step = max(1, _BLOCK // len(b_NC))
    mode = "donot_use_mm_for_euclid_dist"
    blocks = (torch.cdist(block_kC, b_NC, compute_mode=mode) for block_kC in a_KC.split(step))
    return torch.cat([block.topk(count, largest=False).values for block in blocks])


def ranks(values: Tensor) -> Tensor:
    """Ranks 1 to n of (n,) values, float64; equal ones share the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Spearman's rank correlation of two (n,) tensors, in [-1, 1]; `None` where all values of one are equal."""
    if not len(a):
        return None
    a, b = (rank - rank.mean() for rank in (ranks(a), ranks(b)))
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else None


def gini(counts: Tensor) -> float:
    """Gini coefficient of (K,) counts that are not all 0, in [0, 1 - 1/K]: 0 where all are equal."""
    rising = counts.sort().values.double()
    places = torch.arange(1, len(rising) + 1, dtype=torch.float64)
    return float((2 * places - len(rising) - 1) @ rising / (len(rising) * rising.sum()))


def _median(values: Tensor) -> dict[str, float] | None:
    """`None` without values."""
    return {"median": float(values.sort().values[round(0.5 * (len(values) - 1))])} if len(values) else None
