"""Nearest-code kernels: a fast filter whose error is bounded, and an exact second look at the rows it cannot decide.

Shapes as in parts.py. A score is the base-2 logit at temperature 1, or a monotone function of it. README.md here
derives the bound.
"""

import triton
import triton.language as tl

from .parts import load_parts, product


@triton.jit
def _scores(dot, row_term, code_term, code_scale, EUCLIDEAN: tl.constexpr):
    if EUCLIDEAN:
        return (dot + (row_term + code_term)) * code_scale
    return (dot + code_term) * code_scale


@triton.jit
def filter_codes(
    x_parts, x_term, c_parts, c_term, c_scale,
    best, second, index,
    rows, rows_padded, codes, codes_padded, codes_per_split,
    EUCLIDEAN: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of rows against one share of the codes: the two highest scores and the index of the highest."""
    start_n = tl.program_id(0) * BLOCK_N
    n = start_n + tl.arange(0, BLOCK_N)
    x0, x1, x2 = load_parts(x_parts, start_n, rows_padded, BLOCK_N, CP, PARTS)
    row_term = tl.load(x_term + n)[:, None]
    top = tl.full([BLOCK_N], -float("inf"), tl.float32)
    runner_up = tl.full([BLOCK_N], -float("inf"), tl.float32)
    winner = tl.zeros([BLOCK_N], tl.int32)
    first = tl.program_id(1) * codes_per_split
    for start_k in range(first, tl.minimum(first + codes_per_split, codes), BLOCK_K):
        k = start_k + tl.arange(0, BLOCK_K)
        c0, c1, c2 = load_parts(c_parts, start_k, codes_padded, BLOCK_K, CP, PARTS)
        dot = product(x0, x1, x2, tl.trans(c0), tl.trans(c1), tl.trans(c2), PARTS)
        score = _scores(dot, row_term, tl.load(c_term + k)[None, :], tl.load(c_scale + k)[None, :], EUCLIDEAN)
        highest, place = tl.max(score, axis=1, return_indices=True)
        others = tl.where(tl.arange(0, BLOCK_K)[None, :] == place[:, None], -float("inf"), score)
        runner_up = tl.maximum(tl.minimum(top, highest), tl.maximum(runner_up, tl.max(others, axis=1)))
        winner = tl.where(highest > top, place + start_k, winner)
        top = tl.maximum(top, highest)
    place = tl.program_id(1).to(tl.int64) * rows + n
    tl.store(best + place, top, mask=n < rows)
    tl.store(second + place, runner_up, mask=n < rows)
    tl.store(index + place, winner, mask=n < rows)


@triton.jit
def exact_codes(
    x, centers, widths, x_parts, x_term, c_parts, c_term, c_scale, threshold, order, count,
    best, index,
    rows, rows_padded, codes, codes_padded, codes_per_split, width_stride,
    DISTANCE: tl.constexpr, EUCLIDEAN: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Undecided rows `order[:count]` against one share of the codes, in float64 where a score reaches `threshold`."""
    position = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if tl.program_id(0) * BLOCK_N >= tl.load(count):
        return
    inside_n = position < tl.load(count)
    n = tl.load(order + position, mask=inside_n, other=0)
    channel = tl.arange(0, CP)
    tile = n[:, None] * CP + channel[None, :]
    step = tl.cast(rows_padded, tl.int64) * CP
    x0 = tl.load(x_parts + tile)
    x1 = x0
    if PARTS > 1:
        x1 = tl.load(x_parts + step + tile)
    row_term = tl.load(x_term + n)[:, None]
    enough = tl.load(threshold + n, mask=inside_n, other=float("inf"))
    top = tl.full([BLOCK_N], -float("inf"), tl.float64)
    winner = tl.zeros([BLOCK_N], tl.int32)
    first = tl.program_id(1) * codes_per_split
    for start_k in range(first, tl.minimum(first + codes_per_split, codes), BLOCK_K):
        k = start_k + tl.arange(0, BLOCK_K)
        inside_k = k < codes
        c0, c1, c2 = load_parts(c_parts, start_k, codes_padded, BLOCK_K, CP, PARTS)
        dot = product(x0, x1, x1, tl.trans(c0), tl.trans(c1), tl.trans(c2), PARTS)
        score = _scores(dot, row_term, tl.load(c_term + k)[None, :], tl.load(c_scale + k)[None, :], EUCLIDEAN)
        candidate = ~(score < enough[:, None]) & inside_k[None, :]  # not a number is a candidate
        if tl.max(candidate.to(tl.int32)) > 0:
            total = tl.zeros([BLOCK_N, BLOCK_K], tl.float64)
            square = tl.zeros([BLOCK_K], tl.float64)
            for c in range(C):
                x_c = tl.load(x + n * C + c).to(tl.float64)[:, None]
                code_c = tl.load(centers + k.to(tl.int64) * C + c, mask=inside_k, other=0.0).to(tl.float64)
                if EUCLIDEAN:
                    apart = x_c - code_c[None, :]
                    total -= apart * apart
                else:
                    total += x_c * code_c[None, :]
                square += code_c * code_c
            width = tl.load(widths + k * width_stride, mask=inside_k, other=1.0).to(tl.float64)
            if DISTANCE == "cosine":
                width *= tl.maximum(tl.sqrt(square), tl.full([BLOCK_K], 1e-12, tl.float64))
            if DISTANCE == "l2":
                width *= width
            total = tl.where(candidate, total / width[None, :], -float("inf"))
            highest, place = tl.max(total, axis=1, return_indices=True)
            winner = tl.where(highest > top, place + start_k, winner)
            top = tl.maximum(top, highest)
    place_n = tl.program_id(1).to(tl.int64) * rows + position
    tl.store(best + place_n, top, mask=inside_n)
    tl.store(index + place_n, winner, mask=inside_n)
