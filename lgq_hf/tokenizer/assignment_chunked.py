"""The assignment op in plain PyTorch, block by block: no (N, K) matrix, exact gradients by recomputation.

Shapes: N rows (latent vectors), C channels, K codes, D features; logits and distances as in assignment.py.

With g_nk = dL/dp_nk = <dsoft_n, c_k> + 2 dpeak_n p_nk + dusage_k / N and r_n = sum_k p_nk g_nk, the gradient of the
logits is delta_nk = p_nk (g_nk - r_n + dlse_n): all of it follows from p, which the saved log-sum-exp gives back.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Elements of one (rows, K) block: 2 MiB in fp32, so that a block stays in the cache of a CPU core, and large enough
# for K up to 2**20 (one row at a time beyond 2**19 codes).
_CHUNK_ELEMENTS = 2**19


def chunked_forward(
    x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Soft codes, peak, usage, log-sum-exp and index for logits s_nk / scale_k; scale_K is (K,) or (1,).

    All inputs have one dtype, fp32 or fp64.
    """
    a_ND, b_KD = _features(x_NC, centers_KC, scale_K, distance)
    rows, codes = a_ND.shape[0], b_KD.shape[0]
    sums = a_ND.new_empty(rows, centers_KC.shape[1] + 1)  # sum_k e_nk [c_k, 1]
    peak, lse, usage = a_ND.new_empty(rows), a_ND.new_empty(rows), a_ND.new_zeros(codes)
    index = torch.empty(rows, dtype=torch.int64, device=a_ND.device)
    values = torch.cat([centers_KC, torch.ones_like(centers_KC[:, :1])], dim=1)
    for block in _blocks(rows, codes):
        logits = _logits(a_ND[block], b_KD, distance == "l2")
        highest, index[block] = logits.max(dim=1)
        e = logits.sub_(highest[:, None]).exp_()
        sums[block] = e @ values
        total = sums[block, -1]
        lse[block] = highest + total.log()
        peak[block] = torch.linalg.vecdot(e, e) / total.square()
        usage.addmv_(e.T, total.reciprocal() / rows)
    return sums[:, :-1] / sums[:, -1:], peak, usage, lse, index


def chunked_backward(
    d_soft_NC: Tensor | None,
    d_peak_N: Tensor | None,
    d_usage_K: Tensor | None,
    d_lse_N: Tensor | None,
    x_NC: Tensor,
    centers_KC: Tensor,
    scale_K: Tensor,
    lse_N: Tensor,
    distance: str,
    hold_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x_NC, centers_KC and scale_K; `None` stands for a gradient of zeros."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (x_NC, centers_KC, scale_K)]
        features = _features(*leaves, distance)
    a_ND, b_KD = (feature.detach() for feature in features)
    rows, codes = a_ND.shape[0], b_KD.shape[0]
    root = distance == "l2"
    d_a, d_b, d_centers = torch.empty_like(a_ND), torch.zeros_like(b_KD), torch.zeros_like(centers_KC)
    for block in _blocks(rows, codes):
        logits = _logits(a_ND[block], b_KD, root)
        slope = logits.reciprocal().mul_(0.5).nan_to_num_(posinf=0, neginf=0) if root else None
        p = logits.sub_(lse_N[block, None]).exp_()
        g = p * (0 if d_peak_N is None else 2 * d_peak_N[block, None])
        if d_usage_K is not None:
            g += d_usage_K / rows
        d_row = None if d_lse_N is None else d_lse_N[block]
        if d_soft_NC is not None and not hold_x:
            g.addmm_(d_soft_NC[block], centers_KC.T)
        delta = _softmax_backward(p, g, d_row, slope)
        d_a[block] = delta @ b_KD
        if d_soft_NC is not None:
            d_centers.addmm_(p.T, d_soft_NC[block])
            if hold_x:
                g.addmm_(d_soft_NC[block], centers_KC.T)
                delta = _softmax_backward(p, g, d_row, slope)
        d_b.addmm_(delta.T, a_ND[block])
    d_x, d_through_b, d_scale = torch.autograd.grad(features, leaves, (d_a, d_b))
    return d_x, d_centers.add_(d_through_b), d_scale


class _ChunkedSoftAssign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str, hold_x: bool
    ) -> tuple[Tensor, ...]:
        outputs = chunked_forward(x_NC, centers_KC, scale_K, distance)
        ctx.save_for_backward(x_NC, centers_KC, scale_K, outputs[3])
        ctx.distance, ctx.hold_x = distance, hold_x
        ctx.mark_non_differentiable(outputs[4])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_soft, d_peak, d_usage, d_lse, _ = grads
        x_NC, centers_KC, scale_K, lse_N = ctx.saved_tensors
        distance, hold_x = ctx.distance, ctx.hold_x
        gradients = chunked_backward(
            d_soft, d_peak, d_usage, d_lse, x_NC, centers_KC, scale_K, lse_N, distance, hold_x
        )
        return *gradients, None, None


def chunked_soft_assign(
    x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str, hold_x: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[`chunked_forward`] with [`chunked_backward`] as its gradient."""
    return _ChunkedSoftAssign.apply(x_NC, centers_KC, scale_K, distance, hold_x)


def chunked_nearest_code(x_NC: Tensor, centers_KC: Tensor, widths_K: Tensor | None, distance: str) -> Tensor:
    """argmax_k s_nk / width_k, the lowest index on ties, int64 (N,)."""
    blocks = []
    for block in _blocks(len(x_NC), len(centers_KC)):
        x = x_NC[block]
        if distance in ("sq_l2", "l2"):
            score = -torch.cdist(x, centers_KC, compute_mode="donot_use_mm_for_euclid_dist")
            if widths_K is not None and distance == "sq_l2":
                score = -score.square()
        elif distance == "cosine":
            score = F.normalize(x, dim=1) @ F.normalize(centers_KC, dim=1).T
        else:
            score = x @ centers_KC.T
        blocks.append((score if widths_K is None else score / widths_K).argmax(dim=1))
    return torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.int64, device=x_NC.device)


def _features(x: Tensor, centers: Tensor, scale: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """Features A (N, D) and B (K, D) with A B^T = logits; for l2 A B^T = logits^2.

    The expansion ||x||^2 - 2<x, c> + ||c||^2 is taken around the mean code: a common shift changes no distance, and
    keeps the terms from cancelling where the codes lie far from the origin.
    """
    scale = scale[:, None]
    if distance == "cosine":
        return F.normalize(x, dim=1), F.normalize(centers, dim=1) / scale
    if distance == "dot":
        return x.view_as(x), centers / scale
    mean = centers.detach().mean(0)
    x, centers = x - mean, centers - mean
    a = torch.cat([2 * x, -torch.ones_like(x[:, :1]), -x.square().sum(1, keepdim=True)], dim=1)
    b = torch.cat([centers, centers.square().sum(1, keepdim=True), torch.ones_like(centers[:, :1])], dim=1)
    return a, b / scale if distance == "sq_l2" else -b / scale.square()


def _blocks(rows: int, codes: int) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS // codes)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _logits(a_nD: Tensor, b_KD: Tensor, root: bool) -> Tensor:
    product = a_nD @ b_KD.T
    return product.clamp_(min=0).sqrt_().neg_() if root else product


def _softmax_backward(p: Tensor, g: Tensor, d_lse: Tensor | None, slope: Tensor | None) -> Tensor:
    """Gradient of A B^T given p and g = dL/dp; `slope` is d logits / d (A B^T) where that is not 1."""
    r = torch.linalg.vecdot(p, g)
    delta = (g - (r if d_lse is None else r - d_lse)[:, None]).mul_(p)
    return delta if slope is None else delta.mul_(slope)


__all__ = ["chunked_backward", "chunked_forward", "chunked_nearest_code", "chunked_soft_assign"]
