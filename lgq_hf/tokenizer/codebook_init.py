"""Where a codebook starts: four ways to place K codes according to N latent vectors.

Shapes: N latents, C channels, K codes.
"""

import torch
from torch import Tensor

from .assignment import nearest_code

INIT_METHODS = ("random", "uniform", "gaussian", "kmeans")


@torch.no_grad()
def initial_centers(
    x_NC: Tensor, codebook_size: int, method: str = "random", generator: torch.Generator | None = None
) -> Tensor:
    """K codes (K, C) in the dtype of `x_NC`.

    Args:
        x_NC: (N, C) latents, N >= 1, finite.
        codebook_size: K >= 1; may exceed N.
        method: `"random"`: K of the latents, and where K > N points between pairs of them (the published code
            repeats latents instead, which leaves every code with a twin). `"uniform"`: evenly over the bounding box,
            by a scrambled Sobol sequence; equally spaced for C = 1 (the published code puts all K on the box's
            diagonal, whatever C). `"gaussian"`: normal with each channel's mean and standard deviation. `"kmeans"`:
            `"random"`, then ten Lloyd iterations; a code that holds no latent stays where it is.
        generator: CPU generator; `None` for torch's default one.

    Raises:
        ValueError: for no latents, latents that are not finite, or an unknown method.
    """
    if x_NC.ndim != 2 or x_NC.shape[0] < 1:
        raise ValueError(f"expected latents (N, C) with N >= 1, got shape {tuple(x_NC.shape)}")
    if not torch.isfinite(x_NC).all():
        raise ValueError("cannot place codes: the latents hold NaN or infinite values")
    if method == "random":
        return _random(x_NC, codebook_size, generator)
    if method == "uniform":
        return _uniform(x_NC, codebook_size, generator)
    if method == "gaussian":
        noise = torch.randn(codebook_size, x_NC.shape[1], generator=generator).to(x_NC)
        spread = x_NC.std(0) if x_NC.shape[0] > 1 else torch.ones_like(x_NC[0])
        return noise * spread + x_NC.mean(0)
    if method == "kmeans":
        return _kmeans(x_NC, _random(x_NC, codebook_size, generator))
    raise ValueError(f"init method must be one of {INIT_METHODS}, got '{method}'")


def _random(x_NC: Tensor, codebook_size: int, generator: torch.Generator | None) -> Tensor:
    rows = x_NC.shape[0]
    chosen = x_NC[torch.randperm(rows, generator=generator)[:codebook_size].to(x_NC.device)]
    missing = codebook_size - chosen.shape[0]
    if missing == 0:
        return chosen
    # between two different latents, away from both, with a little noise for latents that coincide or stand alone
    first = torch.randint(rows, (missing,), generator=generator)
    second = (first + torch.randint(1, max(rows, 2), (missing,), generator=generator)) % rows
    share = (0.25 + 0.5 * torch.rand(missing, 1, generator=generator)).to(x_NC)
    between = torch.lerp(x_NC[first.to(x_NC.device)], x_NC[second.to(x_NC.device)], share)
    spread = x_NC.std() if x_NC.numel() > 1 else torch.zeros_like(x_NC.sum())
    noise = torch.randn(missing, x_NC.shape[1], generator=generator).to(x_NC)
    return torch.cat([chosen, between + 0.01 * torch.where(spread > 0, spread, 1.0) * noise])


def _uniform(x_NC: Tensor, codebook_size: int, generator: torch.Generator | None) -> Tensor:
    low, high = x_NC.amin(0), x_NC.amax(0)
    flat = low == high
    low, high = torch.where(flat, low - 0.5, low), torch.where(flat, high + 0.5, high)
    if x_NC.shape[1] == 1:
        unit = torch.linspace(0, 1, codebook_size, dtype=torch.float64)[:, None]
    else:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        sobol = torch.quasirandom.SobolEngine(x_NC.shape[1], scramble=True, seed=seed)
        unit = sobol.draw(codebook_size, dtype=torch.float64)
    return low + unit.to(x_NC) * (high - low)


def _kmeans(x_NC: Tensor, centers_KC: Tensor, iterations: int = 10) -> Tensor:
    ones_N = torch.ones_like(x_NC[:, 0])
    for _ in range(iterations):
        nearest_N = nearest_code(x_NC, centers_KC)
        counts_K = torch.zeros_like(centers_KC[:, 0]).index_add_(0, nearest_N, ones_N)
        sums_KC = torch.zeros_like(centers_KC).index_add_(0, nearest_N, x_NC)
        means_KC = sums_KC / counts_K.clamp_min(1)[:, None]
        centers_KC = torch.where(counts_K[:, None] > 0, means_KC, centers_KC)
    return centers_KC


__all__ = ["INIT_METHODS", "initial_centers"]
