"""The definition of the assignment op: the (N, K) matrix as it stands in the formulas, differentiated by autograd.

Shapes: N rows (latent vectors), C channels, K codes; logits and distances as in assignment.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity(x_NC: Tensor, centers_KC: Tensor, distance: str) -> Tensor:
    """(N, K) similarities s_nk; Euclidean ones from differences: slower than a matrix product, exact to rounding."""
    if distance in ("sq_l2", "l2"):
        apart_NK = torch.cdist(x_NC, centers_KC, compute_mode="donot_use_mm_for_euclid_dist")
        return -apart_NK.square() if distance == "sq_l2" else -apart_NK
    if distance == "cosine":
        return F.normalize(x_NC, dim=1) @ F.normalize(centers_KC, dim=1).T
    return x_NC @ centers_KC.T


def reference_soft_assign(
    x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str, hold_x: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Soft codes, peak, usage, log-sum-exp and index for logits s_nk / scale_k; scale_K is (K,) or (1,)."""
    logits_NK = similarity(x_NC, centers_KC, distance) / scale_K
    lse_N = logits_NK.logsumexp(dim=1)
    p_NK = (logits_NK - lse_N[:, None]).exp()
    if hold_x:
        soft_codes_NC = reference_soft_assign(x_NC.detach(), centers_KC, scale_K, distance, False)[0]
    else:
        soft_codes_NC = p_NK @ centers_KC
    usage_K = p_NK.sum(dim=0) / max(x_NC.shape[0], 1)
    return soft_codes_NC, p_NK.square().sum(dim=1), usage_K, lse_N, logits_NK.argmax(dim=1)


def score_divisors(centers_KC: Tensor, widths_K: Tensor | None, distance: str) -> Tensor:
    """(K,) float64 positive numbers by which [`exact_scores`] divides: widths, and the norms of codes for cosine."""
    divisors_K = centers_KC.new_ones(len(centers_KC), dtype=torch.float64) if widths_K is None else widths_K.double()
    if distance == "cosine":
        return torch.cat(
            [_sum_channels(part.double().square()).sqrt().clamp_(min=1e-12) for part in centers_KC.split(2**12)]
        ).mul_(divisors_K)
    return divisors_K.square() if distance == "l2" else divisors_K


def exact_scores(x: Tensor, centers: Tensor, divisors: Tensor, distance: str) -> Tensor:
    """Float64 scores of rows (..., C) for codes (..., C), broadcast against each other: the highest marks the winner.

    s_nk / width_k up to what does not change the winner: l2 is compared by squares, and cosine without ||x||. Equal
    arguments give equal bits, whatever the shapes and the device.
    """
    x, centers = x.double(), centers.double()
    if distance in ("sq_l2", "l2"):
        return _sum_channels((x - centers).square_()).neg_() / divisors
    return _sum_channels(x * centers) / divisors


def _sum_channels(terms: Tensor) -> Tensor:
    """Sum over the last dimension, halves added to halves: the order depends on C alone. Overwrites `terms`."""
    while terms.shape[-1] > 1:
        half = (terms.shape[-1] + 1) // 2
        terms[..., : terms.shape[-1] - half] += terms[..., half:]
        terms = terms[..., :half]
    return terms[..., 0]


def reference_nearest_code(x_NC: Tensor, centers_KC: Tensor, widths_K: Tensor | None, distance: str) -> Tensor:
    """argmax_k s_nk / width_k from [`exact_scores`], the lowest index on ties, int64 (N,); about 64 MiB at a time."""
    divisors_K = score_divisors(centers_KC, widths_K, distance)
    index = [
        exact_scores(x[:, None], centers_KC, divisors_K, distance).argmax(dim=1)
        for x in x_NC.split(max(1, 2**23 // centers_KC.numel()))
    ]
    return torch.cat(index) if index else torch.empty(0, dtype=torch.int64, device=x_NC.device)


__all__ = ["exact_scores", "reference_nearest_code", "reference_soft_assign", "score_divisors", "similarity"]
