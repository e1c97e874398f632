"""Soft and hard assignment of vectors to codes, without an N x K matrix.

Shapes: N rows (latent vectors), C channels, K codes.

Logits are  l_nk = s_nk / (tau * width_k)  with the similarity s of a distance:

    sq_l2    -||x_n - c_k||^2        (arXiv 2602.16086, section 3; the published default)
    l2       -||x_n - c_k||
    cosine   <x_n, c_k> / (||x_n|| ||c_k||)
    dot      <x_n, c_k>

and p_nk = softmax_k(l_nk). Everything that a quantizer needs is a sum over rows or columns of p, so two backends
exist: `reference` materialises the (N, K) matrix and is differentiated by autograd: it is the definition. `chunked`
walks over blocks of rows and recomputes p in the backward pass: memory O(NC + KC) plus one block.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Distance = Literal["sq_l2", "l2", "cosine", "dot"]
Backend = Literal["auto", "reference", "chunked"]

# Elements of one (rows, K) block in the chunked backend: 2 MiB in fp32, so that a block stays in the cache of a CPU
# core, and large enough for K up to 2**20 (one row at a time beyond 2**19 codes).
_CHUNK_ELEMENTS = 2**19


class SoftAssignment(NamedTuple):
    """What [`soft_assign`] returns; all but `index_N` are differentiable.

    Attributes:
        soft_codes_NC: sum_k p_nk c_k, the soft average of the codes.
        peak_N: sum_k p_nk^2 in [1/K, 1]; 1 where the assignment is one-hot.
        usage_K: mean_n p_nk in [0, 1]; sums to 1.
        lse_N: log sum_k exp(l_nk).
        index_N: argmax_k l_nk, int64; the lowest index on ties.
    """

    soft_codes_NC: Tensor
    peak_N: Tensor
    usage_K: Tensor
    lse_N: Tensor
    index_N: Tensor


def soft_assign(
    x_NC: Tensor,
    centers_KC: Tensor,
    temperature: float | Tensor,
    *,
    widths_K: Tensor | None = None,
    distance: Distance = "sq_l2",
    hold_x: bool = False,
    backend: Backend = "auto",
) -> SoftAssignment:
    """Softmax assignment of each row of `x_NC` to the codes, computed in fp32 (fp64 for fp64 input).

    Args:
        x_NC: (N, C) latent vectors, any float dtype; N may be 0 (`usage_K` is then all zero).
        centers_KC: (K, C) codes.
        temperature: tau > 0; a tensor with one element gets a gradient if it requires one (its value is not checked:
            that would wait for the device).
        widths_K: (K,) positive widths by which similarities are divided; `None` for 1.
        distance: `"sq_l2"`, `"l2"`, `"cosine"` or `"dot"`; see the top of this file.
        hold_x: `soft_codes_NC` passes its gradient to the centers (and widths and temperature) alone, as if it had
            been computed from `x_NC.detach()`; the other outputs still pass theirs to `x_NC`.
        backend: `"auto"` takes `"chunked"`; `"reference"` holds the (N, K) matrix.

    Returns:
        [`SoftAssignment`].

    Raises:
        ValueError: for shapes that do not fit, an unknown distance or backend, or a temperature that is not positive.
        TypeError: for tensors that are not floating point.
    """
    _check(x_NC, centers_KC, widths_K, distance, backend)
    dtype = torch.float64 if torch.float64 in (x_NC.dtype, centers_KC.dtype) else torch.float32
    device = x_NC.device
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        temperature = torch.tensor(float(temperature), dtype=dtype, device=device)
    elif temperature.numel() != 1:
        raise ValueError(f"temperature must have one element, got shape {tuple(temperature.shape)}")
    with torch.autocast(device.type, enabled=False):
        x, centers, tau = x_NC.to(dtype), centers_KC.to(dtype), temperature.reshape(()).to(dtype)
        scale = tau.reshape(1, 1) if widths_K is None else (tau * widths_K.to(dtype))[:, None]  # (1 or K, 1)
        if backend == "reference":
            return _soft_assign_reference(x, centers, scale, distance, hold_x)
        features = _features(x, centers, scale, distance)
        return SoftAssignment(*_ChunkedSoftAssign.apply(*features, centers, distance == "l2", hold_x))


def nearest_code(
    x_NC: Tensor,
    centers_KC: Tensor,
    *,
    widths_K: Tensor | None = None,
    distance: Distance = "sq_l2",
    backend: Backend = "auto",
) -> Tensor:
    """Index (N,) int64 of the code that wins each row: argmax_k s_nk / width_k, the lowest index on ties.

    Arguments and errors as in [`soft_assign`]; fp32, or fp64 for fp64 input. Not differentiable. Euclidean distances
    are computed from differences, so that the result does not depend on how many rows are looked up together; cosine
    and dot are matrix products, where it may within rounding. `"l2"` and `"sq_l2"` choose the same code unless there
    are widths.
    """
    _check(x_NC, centers_KC, widths_K, distance, backend)
    dtype = torch.float64 if torch.float64 in (x_NC.dtype, centers_KC.dtype) else torch.float32
    with torch.no_grad(), torch.autocast(x_NC.device.type, enabled=False):
        x, centers = x_NC.to(dtype), centers_KC.to(dtype)
        widths = None if widths_K is None else widths_K.to(dtype)
        if backend == "reference":
            return _winner(x, centers, widths, distance)
        blocks = [_winner(x[block], centers, widths, distance) for block in _blocks(len(x), len(centers))]
        return torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.int64, device=x.device)


def _check(x: Tensor, centers: Tensor, widths: Tensor | None, distance: str, backend: str) -> None:
    if not (x.is_floating_point() and centers.is_floating_point()):
        raise TypeError(f"x_NC and centers_KC must be floating point, got {x.dtype} and {centers.dtype}")
    if x.ndim != 2 or centers.ndim != 2 or x.shape[1] != centers.shape[1]:
        raise ValueError(
            f"expected x_NC (N, C) and centers_KC (K, C) with the same C, got {tuple(x.shape)} and "
            f"{tuple(centers.shape)}"
        )
    if centers.shape[0] < 1:
        raise ValueError("centers_KC has no codes: K must be at least 1")
    if widths is not None and tuple(widths.shape) != (centers.shape[0],):
        raise ValueError(f"widths_K must have shape ({centers.shape[0]},), got {tuple(widths.shape)}")
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be one of {get_args(Distance)}, got '{distance}'")
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got '{backend}'")


def _pairwise_l2(x: Tensor, centers: Tensor) -> Tensor:
    """(N, K) Euclidean distances from differences: slower than a matrix product, and exact to rounding."""
    return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist")


def _winner(x: Tensor, centers: Tensor, widths: Tensor | None, distance: Distance) -> Tensor:
    if distance in ("sq_l2", "l2"):
        score = _pairwise_l2(x, centers)
        if widths is not None:
            score = (score.square() if distance == "sq_l2" else score) / widths
        return score.argmin(dim=1)
    if distance == "cosine":
        x, centers = F.normalize(x, dim=1), F.normalize(centers, dim=1)
    score = x @ centers.T
    return (score if widths is None else score / widths).argmax(dim=1)


def _soft_assign_reference(
    x: Tensor, centers: Tensor, scale: Tensor, distance: Distance, hold_x: bool
) -> SoftAssignment:
    """The definition, with the (N, K) matrix, differentiable by autograd; scale is tau * width, (1 or K, 1)."""
    if distance == "sq_l2":
        similarity_NK = -_pairwise_l2(x, centers).square()
    elif distance == "l2":
        similarity_NK = -_pairwise_l2(x, centers)
    elif distance == "cosine":
        similarity_NK = F.normalize(x, dim=1) @ F.normalize(centers, dim=1).T
    else:
        similarity_NK = x @ centers.T
    logits_NK = similarity_NK / scale.T
    lse_N = logits_NK.logsumexp(dim=1)
    p_NK = (logits_NK - lse_N[:, None]).exp()
    if hold_x:
        soft_codes_NC = _soft_assign_reference(x.detach(), centers, scale, distance, False).soft_codes_NC
    else:
        soft_codes_NC = p_NK @ centers
    usage_K = p_NK.sum(dim=0) / max(x.shape[0], 1)
    return SoftAssignment(soft_codes_NC, p_NK.square().sum(dim=1), usage_K, lse_N, logits_NK.argmax(dim=1))


def _features(x: Tensor, centers: Tensor, scale: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Features A (N, D) and B (K, D) with A B^T = logits; for l2 A B^T = logits^2.

    The expansion ||x||^2 - 2<x, c> + ||c||^2 is taken around the mean code: a common shift changes no distance, and
    keeps the terms from cancelling where the codes lie far from the origin.
    """
    if distance == "cosine":
        return F.normalize(x, dim=1), F.normalize(centers, dim=1) / scale
    if distance == "dot":
        return x, centers / scale
    mean = centers.detach().mean(0)
    x, centers = x - mean, centers - mean
    a = torch.cat([2 * x, -torch.ones_like(x[:, :1]), -x.square().sum(1, keepdim=True)], dim=1)
    b = torch.cat([centers, centers.square().sum(1, keepdim=True), torch.ones_like(centers[:, :1])], dim=1)
    return a, b / scale if distance == "sq_l2" else -b / scale.square()


class _ChunkedSoftAssign(torch.autograd.Function):
    """Softmax of A B^T (or of its negative root, for l2) and its sums, block by block of rows.

    The backward pass recomputes p from the saved log-sum-exp: with g_nk = dL/dp_nk and r_n = sum_k p_nk g_nk, the
    gradient of the logits is delta_nk = p_nk (g_nk - r_n + dlse_n), where
    g_nk = <dsoft_n, c_k> + 2 dpeak_n p_nk + dusage_k / N. Sums over rows and columns are matrix products with a
    column of ones, which CPUs do much faster than `sum`.
    """

    @staticmethod
    def forward(
        ctx: Any, a_ND: Tensor, b_KD: Tensor, centers_KC: Tensor, root: bool, hold_x: bool
    ) -> tuple[Tensor, ...]:
        rows, codes = a_ND.shape[0], b_KD.shape[0]
        sums = a_ND.new_empty(rows, centers_KC.shape[1] + 1)  # sum_k e_nk [c_k, 1]
        peak, lse, usage = a_ND.new_empty(rows), a_ND.new_empty(rows), a_ND.new_zeros(codes)
        index = torch.empty(rows, dtype=torch.int64, device=a_ND.device)
        values = torch.cat([centers_KC, torch.ones_like(centers_KC[:, :1])], dim=1)
        for block in _blocks(rows, codes):
            logits = _logits(a_ND[block], b_KD, root)
            highest, index[block] = logits.max(dim=1)
            e = logits.sub_(highest[:, None]).exp_()
            sums[block] = e @ values
            total = sums[block, -1]
            lse[block] = highest + total.log()
            peak[block] = torch.linalg.vecdot(e, e) / total.square()
            usage.addmv_(e.T, total.reciprocal() / rows)
        ctx.save_for_backward(a_ND, b_KD, centers_KC, lse)
        ctx.root, ctx.hold_x = root, hold_x
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return sums[:, :-1] / sums[:, -1:], peak, usage, lse, index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_soft, d_peak, d_usage, d_lse, _ = grads
        a_ND, b_KD, centers_KC, lse = ctx.saved_tensors
        rows, codes = a_ND.shape[0], b_KD.shape[0]
        d_a, d_b, d_centers = torch.empty_like(a_ND), torch.zeros_like(b_KD), torch.zeros_like(centers_KC)
        for block in _blocks(rows, codes):
            logits = _logits(a_ND[block], b_KD, ctx.root)
            slope = logits.reciprocal().mul_(0.5).nan_to_num_(posinf=0, neginf=0) if ctx.root else None
            p = logits.sub_(lse[block, None]).exp_()
            g = p * (0 if d_peak is None else 2 * d_peak[block, None])
            if d_usage is not None:
                g += d_usage / rows
            d_row = None if d_lse is None else d_lse[block]
            if d_soft is not None and not ctx.hold_x:
                g.addmm_(d_soft[block], centers_KC.T)
            delta = _softmax_backward(p, g, d_row, slope)
            d_a[block] = delta @ b_KD
            if d_soft is not None:
                d_centers.addmm_(p.T, d_soft[block])
                if ctx.hold_x:
                    g.addmm_(d_soft[block], centers_KC.T)
                    delta = _softmax_backward(p, g, d_row, slope)
            d_b.addmm_(delta.T, a_ND[block])
        return d_a, d_b, d_centers, None, None


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


__all__ = ["Backend", "Distance", "SoftAssignment", "nearest_code", "soft_assign"]
