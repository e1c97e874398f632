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


def reference_nearest_code(x_NC: Tensor, centers_KC: Tensor, widths_K: Tensor | None, distance: str) -> Tensor:
    """argmax_k s_nk / width_k in float64, the lowest index on ties, int64 (N,)."""
    score_NK = similarity(x_NC.double(), centers_KC.double(), distance)
    return (score_NK if widths_K is None else score_NK / widths_K.double()).argmax(dim=1)


__all__ = ["reference_nearest_code", "reference_soft_assign", "similarity"]
