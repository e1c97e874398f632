"""Backward kernels: rows (gradient of the latents) and columns (gradients of the codes and their scales).

Shapes as in parts.py. With g_nk = dL/dp_nk and r_n = sum_k p g, the gradient of a logit is
delta_nk = p_nk (g_nk - r_n + dlse_n). The part of r that comes from dusage is known only after a walk over all codes,
so the rows pass sums p g sigma c and p sigma c apart (sigma: slope of the logit), and joins them at the end.
"""

import triton
import triton.language as tl

from .parts import LN2, NORM_EPS, base2_logits, join, load_parts, product, slope, split


@triton.jit
def _through_norms(gradient, vector, norm, slope_sum, DISTANCE: tl.constexpr):
    """Gradient of vectors from that of their products: the term that goes with their norms is taken off."""
    if DISTANCE == "cosine":  # the direction alone counts, unless a vector is too short to be normalised
        along = tl.sum(gradient * vector, axis=1) / tl.maximum(norm * norm, NORM_EPS * NORM_EPS)
        return gradient - tl.where(norm > NORM_EPS, along, 0.0)[:, None] * vector
    elif DISTANCE == "dot":
        return gradient
    else:
        return gradient - slope_sum[:, None] * vector


@triton.jit
def backward_rows(
    x_parts, x_term, x_norm, c_parts, c_term, c_scale, mean, d_parts,
    soft, best_logit, log_total, base, d_peak, d_usage, d_lse,
    d_x, rest,
    rows, rows_padded, codes, codes_padded,
    DISTANCE: tl.constexpr, UNIFORM: tl.constexpr, THROUGH_SOFT: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`d_x` (N, C), and `rest` (N,): the part of r that comes from d_usage.

    `base` (N,) is the rest of r as far as the latents feel it; THROUGH_SOFT says whether d_soft reaches them.
    UNIFORM: sigma is one number, so that sum_k p sigma c is sigma times the soft code.
    """
    start_n = tl.program_id(0) * BLOCK_N
    n = start_n + tl.arange(0, BLOCK_N)
    inside_n = n < rows
    channel = tl.arange(0, CP)
    x0, x1, x2 = load_parts(x_parts, start_n, rows_padded, BLOCK_N, CP, PARTS)
    d0, d1, d2 = x0, x1, x2
    if THROUGH_SOFT:
        d0, d1, d2 = load_parts(d_parts, start_n, rows_padded, BLOCK_N, CP, PARTS)
    row_term = tl.load(x_term + n)
    best = tl.load(best_logit + n, mask=inside_n, other=float("inf"))[:, None]
    total = tl.load(log_total + n, mask=inside_n, other=0.0)[:, None]
    base_n = tl.load(base + n, mask=inside_n, other=0.0)
    d_peak_n = 2.0 * tl.load(d_peak + n, mask=inside_n, other=0.0)
    with_g = tl.zeros([BLOCK_N, CP], tl.float32)  # sum_k p (g - base) sigma c
    without_g = tl.zeros([BLOCK_N, CP], tl.float32)  # sum_k p sigma c
    slope_with_g = tl.zeros([BLOCK_N], tl.float32)
    slope_without_g = tl.zeros([BLOCK_N], tl.float32)
    rest_n = tl.zeros([BLOCK_N], tl.float32)
    for start_k in range(0, codes, BLOCK_K):
        k = start_k + tl.arange(0, BLOCK_K)
        c0, c1, c2 = load_parts(c_parts, start_k, codes_padded, BLOCK_K, CP, PARTS)
        code_scale = tl.load(c_scale + k)[None, :]
        dot = product(x0, x1, x2, tl.trans(c0), tl.trans(c1), tl.trans(c2), PARTS)
        logits = base2_logits(dot, row_term[:, None], tl.load(c_term + k)[None, :], code_scale, DISTANCE)
        p = tl.exp2(logits - best - total)
        g = tl.load(d_usage + k, mask=k < codes, other=0.0)[None, :] / rows - base_n[:, None]
        g += d_peak_n[:, None] * p
        if THROUGH_SOFT:
            g += product(d0, d1, d2, tl.trans(c0), tl.trans(c1), tl.trans(c2), PARTS)
        pg = p * g
        rest_n += tl.sum(pg, axis=1)
        if not UNIFORM:
            sigma = slope(logits, row_term[:, None], code_scale, DISTANCE)
            p = p * sigma
            pg = pg * sigma
            slope_with_g += tl.sum(pg, axis=1)
            slope_without_g += tl.sum(p, axis=1)
            s0, s1, s2 = split(p, PARTS)
            without_g += product(s0, s1, s2, c0, c1, c2, PARTS)
        s0, s1, s2 = split(pg, PARTS)
        with_g += product(s0, s1, s2, c0, c1, c2, PARTS)
    offset_n = tl.load(d_lse + n, mask=inside_n, other=0.0) - rest_n
    inside = inside_n[:, None] & (channel < C)[None, :]
    place = n.to(tl.int64)[:, None] * C + channel[None, :]
    if UNIFORM:
        shift = tl.load(mean + channel, mask=channel < C, other=0.0)
        soft_n = tl.load(soft + place, mask=inside, other=0.0) - shift[None, :]
        sigma_all = tl.load(c_scale) * LN2
        gradient = sigma_all * (with_g + offset_n[:, None] * soft_n)
        slope_n = sigma_all * (rest_n + offset_n)
    else:
        gradient = with_g + offset_n[:, None] * without_g
        slope_n = slope_with_g + offset_n * slope_without_g
    gradient = _through_norms(gradient, join(x0, x1, x2, PARTS), tl.load(x_norm + n), slope_n, DISTANCE)
    tl.store(d_x + place, gradient, mask=inside)
    tl.store(rest + n, rest_n, mask=inside_n)


@triton.jit
def backward_columns(
    x_parts, x_term, c_parts, c_term, c_scale, c_norm, d_parts,
    best_logit, log_total, offset, d_peak, d_usage,
    d_centers, d_log_scale,
    rows, rows_padded, codes, codes_padded, rows_per_split,
    DISTANCE: tl.constexpr, WITH_SOFT: tl.constexpr, WITH_SCALE: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shares of `d_centers` (shares, K, C) and `d_log_scale` (shares, K) = sum_n delta logit; `offset` is dlse - r."""
    start_k = tl.program_id(0) * BLOCK_K
    k = start_k + tl.arange(0, BLOCK_K)
    channel = tl.arange(0, CP)
    c0, c1, c2 = load_parts(c_parts, start_k, codes_padded, BLOCK_K, CP, PARTS)
    code_term = tl.load(c_term + k)[:, None]
    code_scale = tl.load(c_scale + k)[:, None]
    d_usage_k = tl.load(d_usage + k, mask=k < codes, other=0.0) / rows
    through_logits = tl.zeros([BLOCK_K, CP], tl.float32)  # sum_n delta sigma x
    through_values = tl.zeros([BLOCK_K, CP], tl.float32)  # sum_n p d_soft
    slope_k = tl.zeros([BLOCK_K], tl.float32)
    log_scale_k = tl.zeros([BLOCK_K], tl.float32)
    first = tl.program_id(1) * rows_per_split
    for start_n in range(first, tl.minimum(first + rows_per_split, rows), BLOCK_N):
        n = start_n + tl.arange(0, BLOCK_N)
        inside_n = n < rows
        x0, x1, x2 = load_parts(x_parts, start_n, rows_padded, BLOCK_N, CP, PARTS)
        row_term = tl.load(x_term + n)[None, :]
        dot = product(c0, c1, c2, tl.trans(x0), tl.trans(x1), tl.trans(x2), PARTS)
        logits = base2_logits(dot, row_term, code_term, code_scale, DISTANCE)
        best = tl.load(best_logit + n, mask=inside_n, other=float("inf"))[None, :]
        p = tl.exp2(logits - best - tl.load(log_total + n, mask=inside_n, other=0.0)[None, :])
        g = d_usage_k[:, None] + tl.load(offset + n, mask=inside_n, other=0.0)[None, :]
        g += 2.0 * tl.load(d_peak + n, mask=inside_n, other=0.0)[None, :] * p
        if WITH_SOFT:
            d0, d1, d2 = load_parts(d_parts, start_n, rows_padded, BLOCK_N, CP, PARTS)
            g += product(c0, c1, c2, tl.trans(d0), tl.trans(d1), tl.trans(d2), PARTS)
            s0, s1, s2 = split(p, PARTS)
            through_values += product(s0, s1, s2, d0, d1, d2, PARTS)
        delta = p * g
        if WITH_SCALE:
            log_scale_k += tl.sum(delta * tl.where(p > 0, logits, 0.0), axis=1)  # padding has logits of -inf
        delta *= slope(logits, row_term, code_scale, DISTANCE)
        slope_k += tl.sum(delta, axis=1)
        s0, s1, s2 = split(delta, PARTS)
        through_logits += product(s0, s1, s2, x0, x1, x2, PARTS)
    through_logits = _through_norms(through_logits, join(c0, c1, c2, PARTS), tl.load(c_norm + k), slope_k, DISTANCE)
    share = tl.program_id(1).to(tl.int64) * codes
    inside = (k < codes)[:, None] & (channel < C)[None, :]
    place = (share + k)[:, None] * C + channel[None, :]
    tl.store(d_centers + place, through_logits + through_values, mask=inside)
    if WITH_SCALE:
        tl.store(d_log_scale + share + k, log_scale_k * LN2, mask=k < codes)
