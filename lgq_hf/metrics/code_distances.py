"""How far latent vectors lie from the codes that stand for them, over a whole set of pictures.

Shapes: N latent vectors, C channels, K codes.
"""

import math

import torch
from torch import Tensor


class CodeDistances:
    """Distances of latent vectors x_n to their codes c_k(n), gathered batch by batch in float64.

    Processes share their sums through `state`:

        state = distances.state
        torch.distributed.all_reduce(state)
        whole = CodeDistances.from_state(state, codebook_size, dim)

    Give latents and codes of one space: where the quantizer projects or normalises, what it compares with its codes.
    Sums are kept for each code, of x and of x - c, which takes 16 K C bytes. From them the variance of the latents
    comes out as that within cells plus that between cells (the law of total variance), so that a large common offset
    of latents and codes costs no digits, and no origin has to be agreed on.

    Args:
        codebook_size: K.
        dim: C.
        device: where the sums are kept; it must have float64.

    Raises:
        ValueError: K or C below 1.
    """

    def __init__(self, codebook_size: int, dim: int, device: torch.device | str | None = None) -> None:
        for name, value in (("codebook_size", codebook_size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.codebook_size, self.dim = codebook_size, dim
        self._take(torch.zeros(_length(codebook_size, dim), dtype=torch.float64, device=device))

    def _take(self, sums: Tensor) -> None:
        """Makes `sums` its own, the parts being views of it."""
        self._sums = sums
        size = self.codebook_size * self.dim
        totals, self._counts_K, latents, gaps = sums.split([2, self.codebook_size, size, size])
        self._squared, self._lengths = totals
        self._latents_KC = latents.view(self.codebook_size, self.dim)
        self._gaps_KC = gaps.view(self.codebook_size, self.dim)

    def update(self, latents_NC: Tensor, codes_NC: Tensor, tokens_N: Tensor) -> None:
        """Takes in latent vectors with their codes, on any device; N may be 0. They are not looked at for NaN.

        Args:
            latents_NC: what was quantized (N,C), floating point.
            codes_NC: the code of each (N,C), floating point; every token has one code, in all calls.
            tokens_N: its index (N,), integers in [0, K). On an accelerator their range is not looked at, as that
                would wait for the device; there a token out of range ends in the device's own index error.

        Raises:
            ValueError: another shape or dtype, or (on a CPU) tokens outside [0, K).
        """
        for name, vectors in (("latents", latents_NC), ("codes", codes_NC)):
            if vectors.ndim != 2 or vectors.shape[1] != self.dim or not vectors.is_floating_point():
                got = f"shape {tuple(vectors.shape)}, {vectors.dtype}"
                raise ValueError(f"{name}: expected floats (N,{self.dim}), got {got}")
        if tokens_N.is_floating_point() or tokens_N.is_complex() or tokens_N.dtype == torch.bool:
            raise ValueError(f"tokens: expected integers, got {tokens_N.dtype}")
        if codes_NC.shape != latents_NC.shape or tokens_N.shape != latents_NC.shape[:1]:
            sizes = f"{tuple(latents_NC.shape)}, {tuple(codes_NC.shape)} and {tuple(tokens_N.shape)}"
            raise ValueError(f"expected a code and a token for each latent vector, got shapes {sizes}")
        tokens = tokens_N.to(self._sums.device).long()
        if tokens.device.type == "cpu" and len(tokens):
            low, high = (int(value) for value in tokens.aminmax())
            if low < 0 or high >= self.codebook_size:
                raise ValueError(f"tokens: expected tokens in [0, {self.codebook_size}), got {low} to {high}")
        latents = latents_NC.detach().to(self._sums.device, torch.float64)
        gaps = latents - codes_NC.detach().to(self._sums.device, torch.float64)
        squares = gaps.square().sum(1)
        self._squared += squares.sum()
        self._lengths += squares.sqrt().sum()
        self._counts_K.index_add_(0, tokens, torch.ones_like(squares))
        self._latents_KC.index_add_(0, tokens, latents)
        self._gaps_KC.index_add_(0, tokens, gaps)

    @property
    def state(self) -> Tensor:
        """(2 + K + 2 K C,) float64, new; states add up.

        Sums of |x - c|^2 and |x - c|, counts of the codes, and for each code the sums of x and of x - c.
        """
        return self._sums.clone()

    @classmethod
    def from_state(cls, state: Tensor, codebook_size: int, dim: int) -> "CodeDistances":
        """The distances of all latent vectors whose states were added up, on the device of the sum.

        Args:
            state: (2 + K + 2 K C,) float64, a sum of `state` from distances with the same K and C.
            codebook_size: K.
            dim: C.

        Raises:
            ValueError: K or C below 1, another dtype or length, or counts that are no whole numbers.
        """
        distances = cls(codebook_size, dim, device="meta")  # nothing is laid out twice
        expected = _length(codebook_size, dim)
        if tuple(state.shape) != (expected,):
            meant = f"({expected},) for {codebook_size} codes of {dim} channels"
            raise ValueError(f"state: expected a shape {meant}, got {tuple(state.shape)}")
        if state.dtype != torch.float64:
            raise ValueError(f"state: expected torch.float64, got {state.dtype}")
        counts = state[2 : 2 + codebook_size]
        if not bool(((counts >= 0) & (counts == counts.floor()) & counts.isfinite()).all()):
            largest = float(counts.max())
            raise ValueError(f"state: expected whole numbers of latent vectors, got counts up to {largest}")
        distances._take(state.detach().clone())
        return distances

    def statistics(self) -> dict[str, float]:
        """What the sums say. Distances are Euclidean over the C channels, means are over the N latent vectors.

        Returns:
            mean_squared_distance: mean |x - c|^2, in squared units of the latents, at least 0.
            mean_latent_variance: mean |x - m|^2 with m the mean of the latents (the trace of their covariance,
                divided by N), in squared units of the latents, at least 0.
            relative_quantization_error: mean |x - c|^2 / mean |x - m|^2, without unit, at least 0: the share of
                unexplained variance, 1 - R^2. 0 where nothing is lost; 1 for a single code at the mean; above 1 where
                the codes are worse than that.
            mean_distance: mean |x - c|, in units of the latents, at least 0.
            mean_code_to_centroid_distance: mean over codes in use of |c_k - m_k| / (mean |x - m|^2)^(1/2), with m_k
                the mean of the latents the code stands for, without unit, at least 0. 0 where every code lies at its
                centroid, one of the two conditions for the least error (Lloyd 1982, "Least squares quantization in
                PCM"). A code counts once, however often it is used.

            A variance within rounding of 0 (1e-14 of mean_squared_distance) counts as 0; what is divided by it is then
            infinite, or 0 where the distance is 0 too.

        Raises:
            ValueError: there are no latent vectors yet, or they or their codes had NaN or infinities.
        """
        count = float(self._counts_K.sum())
        if not count:
            raise ValueError("distances need at least 1 latent vector, got none: call update first")
        if not bool(self._sums.isfinite().all()):
            raise ValueError("expected finite latents and codes, got NaN or infinities: look at the encoder")
        used = self._counts_K > 0
        counts, centroids, gaps = self._counts_K[used], self._latents_KC[used], self._gaps_KC[used]
        centroids, gaps = centroids / counts[:, None], gaps / counts[:, None]
        mean = (counts / count) @ centroids
        within = self._squared - counts @ gaps.square().sum(1)
        between = counts @ (centroids - mean).square().sum(1)
        squared = float(self._squared) / count
        variance = max(float(within), 0.0) / count + float(between) / count  # rounding may take `within` below 0
        if variance <= 1e-14 * squared:
            variance = 0.0
        return {
            "mean_squared_distance": squared,
            "mean_latent_variance": variance,
            "relative_quantization_error": _ratio(squared, variance),
            "mean_distance": float(self._lengths) / count,
            "mean_code_to_centroid_distance": _ratio(float(gaps.norm(dim=1).mean()), math.sqrt(variance)),
        }


def _length(codebook_size: int, dim: int) -> int:
    return 2 + codebook_size + 2 * codebook_size * dim


def _ratio(distance: float, scale: float) -> float:
    if not scale:
        return math.inf if distance else 0.0
    return distance / scale


__all__ = ["CodeDistances"]
