"""The assignment op in plain PyTorch, block by block: no (N, K) matrix, exact gradients by recomputation.

Shapes: N rows (latent vectors), n of them in a block, C channels, K codes, D features; logits and distances as in
assignment.py.

With g_nk = dL/dp_nk = <dsoft_n, c_k> + 2 dpeak_n p_nk + dusage_k / N and r_n = sum_k p_nk g_nk, the gradient of the
logits is delta_nk = p_nk (g_nk - r_n + dlse_n): all of it follows from p, which the backward pass computes again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Bytes of one (n, K) block of the input's dtype; about eight of that size are held at a time. On a CPU they should
# stay in the cache; elsewhere they should be large, as starting an operation takes longer than a small one runs.
_BLOCK_BYTES = {"cpu": 3 * 2**20}
_BLOCK_BYTES_ELSEWHERE = 256 * 2**20
# But no block has fewer rows than this, or D: the codes are read once per block. It is then no larger than they are.
_MIN_ROWS = 32
# Codes that one product sums over: some CPUs add one term after another, and a million of them in fp32 lose digits.
_MOST_TERMS = 2**16


def chunked_forward(
    x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Soft codes, peak, usage, log-sum-exp and index for logits s_nk / scale_k; scale_K is (K,) or (1,).

    All inputs have one dtype, fp32 or fp64.
    """
    rows, codes = x_NC.shape[0], centers_KC.shape[0]
    soft_NC, peak_N, lse_N = x_NC.new_empty(x_NC.shape), x_NC.new_empty(rows), x_NC.new_empty(rows)
    usage_K, index_N = x_NC.new_zeros(codes), torch.empty(rows, dtype=torch.int64, device=x_NC.device)
    features = _Features(centers_KC, distance)
    a_ND, b_KD = features.of_rows(x_NC), features.of_codes(centers_KC, scale_K)
    for block, logits in _logits(a_ND, b_KD, x_NC.dtype, distance):
        highest, index_N[block] = logits.max(dim=1)
        e, total = _exponentials(logits, highest, x_NC.dtype)
        soft = torch.mm(e[:, :_MOST_TERMS], centers_KC[:_MOST_TERMS], out=soft_NC[block])
        for start in range(_MOST_TERMS, codes, _MOST_TERMS):
            soft += e[:, start : start + _MOST_TERMS] @ centers_KC[start : start + _MOST_TERMS]
        soft.div_(total[:, None])
        peak_N[block] = (torch.linalg.vector_norm(e, dim=1) / total).square()
        lse_N[block] = highest + total.log()
        usage_K.addmv_(e.T, total.reciprocal() / rows)
    return soft_NC, peak_N, usage_K, lse_N, index_N


def chunked_backward(
    d_soft_NC: Tensor | None,
    d_peak_N: Tensor | None,
    d_usage_K: Tensor | None,
    d_lse_N: Tensor | None,
    x_NC: Tensor,
    centers_KC: Tensor,
    scale_K: Tensor,
    distance: str,
    hold_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x_NC, centers_KC and scale_K; `None` stands for a gradient of zeros."""
    features = _Features(centers_KC, distance)
    a_ND, b_KD = features.of_rows(x_NC), features.of_codes(centers_KC, scale_K)
    # transposed: a product is quickest where the longest side of its result is contiguous
    d_a_ND, d_b_DK = torch.empty_like(a_ND), b_KD.new_zeros(b_KD.T.shape)
    d_codes_CK = centers_KC.new_zeros(centers_KC.T.shape)
    for block, logits in _logits(a_ND, b_KD, x_NC.dtype, distance):
        slope = (0.5 / logits).masked_fill_(logits == 0, 0) if distance == "l2" else None
        p, total = _exponentials(logits, logits.amax(dim=1), x_NC.dtype)
        p.mul_(total.reciprocal()[:, None])
        g = torch.zeros_like(p) if d_peak_N is None else p * (2 * d_peak_N[block, None])
        if d_usage_K is not None:
            g += d_usage_K / len(a_ND)
        d_row = None if d_lse_N is None else d_lse_N[block]
        if d_soft_NC is not None and not hold_x:
            g.addmm_(d_soft_NC[block], centers_KC.T)
        delta = _softmax_backward(p, g, d_row, slope, logits)
        torch.mm(delta, b_KD, out=d_a_ND[block])
        if d_soft_NC is not None:
            d_codes_CK.addmm_(d_soft_NC[block].T, p)
            if hold_x:
                g.addmm_(d_soft_NC[block], centers_KC.T)
                delta = _softmax_backward(p, g, d_row, slope, logits)
        d_b_DK.addmm_(a_ND[block].T, delta)
    d_centers_KC, d_scale_K = features.codes_backward(d_b_DK.T, b_KD, centers_KC, scale_K)
    return features.rows_backward(d_a_ND, x_NC), d_centers_KC.add_(d_codes_CK.T), d_scale_K


class _ChunkedSoftAssign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str, hold_x: bool
    ) -> tuple[Tensor, ...]:
        outputs = chunked_forward(x_NC, centers_KC, scale_K, distance)
        ctx.save_for_backward(x_NC, centers_KC, scale_K)
        ctx.distance, ctx.hold_x = distance, hold_x
        ctx.mark_non_differentiable(outputs[4])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_soft, d_peak, d_usage, d_lse, _ = grads
        x_NC, centers_KC, scale_K = ctx.saved_tensors
        distance, hold_x = ctx.distance, ctx.hold_x
        with torch.autocast(x_NC.device.type, enabled=False):  # a backward pass may run inside of it
            gradients = chunked_backward(d_soft, d_peak, d_usage, d_lse, x_NC, centers_KC, scale_K, distance, hold_x)
        return *gradients, None, None


def chunked_soft_assign(
    x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str, hold_x: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[`chunked_forward`] with [`chunked_backward`] as its gradient."""
    return _ChunkedSoftAssign.apply(x_NC, centers_KC, scale_K, distance, hold_x)


class _Features:
    """Features A (N, D) and B (K, D) with A B^T = logits, and their gradients; for l2 A B^T = logits^2.

    The expansion ||x||^2 - 2<x, c> + ||c||^2 is taken around the mean code: a common shift changes no distance, and
    keeps the terms from cancelling where the codes lie far from the origin. On a CPU features are fp64: the expansion
    and its derivative still cancel where latents lie close to codes or far from all, in fp32 a hundred times worse
    than differences and more for small temperatures. In fp64 its products cost half as much again.
    """

    def __init__(self, centers_KC: Tensor, distance: str) -> None:
        self.distance = distance
        self.mean_C = centers_KC.mean(dim=0) if distance in ("sq_l2", "l2") else None

    def of_rows(self, x_NC: Tensor) -> Tensor:
        def features(x: Tensor) -> list[Tensor]:
            if self.mean_C is None:
                return [F.normalize(x, dim=1) if self.distance == "cosine" else x]
            x = x - self.mean_C
            return [torch.cat([2 * x, -torch.ones_like(x[:, :1]), -x.square().sum(1, keepdim=True)], dim=1)]

        return _in_parts(features, [x_NC])[0]

    def of_codes(self, centers_KC: Tensor, scale_K: Tensor) -> Tensor:
        def features(centers: Tensor, scale: Tensor) -> list[Tensor]:
            if self.mean_C is None:
                return [(F.normalize(centers, dim=1) if self.distance == "cosine" else centers) / scale[:, None]]
            c = centers - self.mean_C
            b = torch.cat([c, c.square().sum(1, keepdim=True), torch.ones_like(c[:, :1])], dim=1)
            return [b.div_(scale[:, None] if self.distance == "sq_l2" else -scale.square()[:, None])]

        return _in_parts(features, [centers_KC, scale_K.expand(len(centers_KC))])[0]

    def rows_backward(self, d_a_ND: Tensor, x_NC: Tensor) -> Tensor:
        def gradient(d_a: Tensor, x: Tensor) -> list[Tensor]:
            if self.mean_C is None:
                return [_normalize_backward(d_a, x) if self.distance == "cosine" else d_a]
            return [2 * (d_a[:, :-2] - (x - self.mean_C) * d_a[:, -1:])]

        return _in_parts(gradient, [d_a_ND, x_NC], x_NC.dtype)[0]

    def codes_backward(
        self, d_b_KD: Tensor, b_KD: Tensor, centers_KC: Tensor, scale_K: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of centers_KC and scale_K."""
        power = 2 if self.distance == "l2" else 1  # B is inversely proportional to this power of the scale

        def gradients(d_b: Tensor, b: Tensor, centers: Tensor, scale: Tensor) -> list[Tensor]:
            d_scale = -power * (d_b * b).sum(1) / scale
            d_b = d_b / (scale if power == 1 else -scale.square())[:, None]
            if self.mean_C is None:
                return [_normalize_backward(d_b, centers) if self.distance == "cosine" else d_b, d_scale]
            return [d_b[:, :-2] + 2 * (centers - self.mean_C) * d_b[:, -2:-1], d_scale]

        inputs = [d_b_KD, b_KD, centers_KC, scale_K.expand(len(b_KD))]
        d_centers_KC, d_scale_K = _in_parts(gradients, inputs, centers_KC.dtype)
        return d_centers_KC, d_scale_K if len(scale_K) == len(b_KD) else d_scale_K.sum(0, keepdim=True)


def _normalize_backward(d_unit: Tensor, vector: Tensor) -> Tensor:
    """Gradient of `vector` through `F.normalize`."""
    norm = vector.norm(dim=1, keepdim=True)
    d_vector = d_unit / norm.clamp_min(1e-12)
    along = (d_vector * vector).sum(1, keepdim=True) / norm.square().clamp_min(1e-24)
    return d_vector - torch.where(norm > 1e-12, along, 0) * vector


def _in_parts(
    function: Callable[..., list[Tensor]], tensors: Sequence[Tensor], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Results of a function of rows, fed with part after part in fp64 (on CPU); to hold few copies at a time."""
    rows = len(tensors[0])
    results: list[Tensor] = []
    step = max(1, _budget(tensors[0].device) // (32 * tensors[0].shape[1]))
    for start in range(0, max(rows, 1), step):
        parts = (tensor[start : start + step] for tensor in tensors)
        found = function(*(part.double() if part.device.type == "cpu" else part for part in parts))
        results = results or [part.new_empty(rows, *part.shape[1:], dtype=dtype) for part in found]
        for result, part in zip(results, found, strict=True):
            result[start : start + step] = part
    return results


def _budget(device: torch.device) -> int:
    return _BLOCK_BYTES.get(device.type, _BLOCK_BYTES_ELSEWHERE)


def _logits(a_ND: Tensor, b_KD: Tensor, dtype: torch.dtype, distance: str) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows and their logits (n, K), which the caller may overwrite; `dtype` is that of the other blocks."""
    rows, codes = len(a_ND), len(b_KD)
    step = max(_budget(a_ND.device) // (codes * dtype.itemsize), min(_MIN_ROWS, b_KD.shape[1]))
    buffer_nK = a_ND.new_empty(min(step, rows), codes)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        logits = torch.mm(a_ND[block], b_KD.T, out=buffer_nK[: block.stop - start])
        yield block, logits.clamp_(min=0).sqrt_().neg_() if distance == "l2" else logits


def _exponentials(logits: Tensor, highest: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """exp(l_nk - highest_n) in `dtype` and its sum over k; overwrites the logits.

    What is below sqrt(tiny) (1e-19 in fp32) counts as 0: subnormal numbers, and squares and products that become
    subnormal, make a CPU a hundred times slower.
    """
    floor = 0.5 * math.log(torch.finfo(dtype).tiny)
    e = logits.sub_(highest[:, None]).to(dtype).clamp_(min=floor).exp_()
    torch.threshold_(e, 1.01 * math.exp(floor), 0)
    return e, e.sum(dim=1)


def _softmax_backward(p: Tensor, g: Tensor, d_lse: Tensor | None, slope: Tensor | None, room: Tensor) -> Tensor:
    """Gradient of A B^T given p and g = dL/dp; `slope` is d logits / d (A B^T) where that is not 1.

    In the dtype of `room`, the logits' buffer, and in it where that dtype is not p's (else p itself lies there).
    """
    delta = p * g
    r = delta.sum(dim=1)
    delta.addcmul_(p, (-r if d_lse is None else d_lse - r)[:, None])
    if delta.dtype != room.dtype:
        delta = room.copy_(delta)
    return delta if slope is None else delta.mul_(slope)


__all__ = ["chunked_backward", "chunked_forward", "chunked_soft_assign"]
