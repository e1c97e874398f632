"""Forward kernels: rows (online softmax: soft codes, peak, log-sum-exp, index) and columns (usage).

Shapes as in parts.py. The columns are a pass of their own, in a fixed order, because p needs the finished log-sum-exp.
"""

import triton
import triton.language as tl

from .parts import LN2, base2_logits, load_parts, product, split


@triton.jit
def forward_rows(
    x_parts, x_term, c_parts, c_term, c_scale, mean,
    soft, peak, lse, index, best_logit, log_total,
    rows, rows_padded, codes, codes_padded,
    DISTANCE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of rows against all codes; `soft` (N, C), all others (N,).

    `best_logit` and `log_total` are the highest logit and log2 of the sum of its exponentials, in base 2: their sum is
    `lse`, and apart they keep p exact where logits are large.
    """
    start_n = tl.program_id(0) * BLOCK_N
    n = start_n + tl.arange(0, BLOCK_N)
    x0, x1, x2 = load_parts(x_parts, start_n, rows_padded, BLOCK_N, CP, PARTS)
    row_term = tl.load(x_term + n)
    best = tl.full([BLOCK_N], -float("inf"), tl.float32)
    winner = tl.zeros([BLOCK_N], tl.int32)
    total = tl.zeros([BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_N], tl.float32)
    average = tl.zeros([BLOCK_N, CP], tl.float32)
    for start_k in range(0, codes, BLOCK_K):
        k = start_k + tl.arange(0, BLOCK_K)
        c0, c1, c2 = load_parts(c_parts, start_k, codes_padded, BLOCK_K, CP, PARTS)
        dot = product(x0, x1, x2, tl.trans(c0), tl.trans(c1), tl.trans(c2), PARTS)
        logits = base2_logits(
            dot, row_term[:, None], tl.load(c_term + k)[None, :], tl.load(c_scale + k)[None, :], DISTANCE
        )
        highest, place = tl.max(logits, axis=1, return_indices=True)
        winner = tl.where(highest > best, place + start_k, winner)  # strictly: the lowest index on ties
        new_best = tl.maximum(best, highest)
        shrink = tl.exp2(best - new_best)
        e = tl.exp2(logits - new_best[:, None])
        total = total * shrink + tl.sum(e, axis=1)
        squares = squares * shrink * shrink + tl.sum(e * e, axis=1)
        e0, e1, e2 = split(e, PARTS)
        # a sum of tile sums: a long chain in the tensor core's accumulator would round towards zero
        average = average * shrink[:, None] + product(e0, e1, e2, c0, c1, c2, PARTS)
        best = new_best
    channel = tl.arange(0, CP)
    shift = tl.load(mean + channel, mask=channel < C, other=0.0)
    value = average / total[:, None] + shift[None, :]
    inside = (n < rows)[:, None] & (channel < C)[None, :]
    tl.store(soft + n.to(tl.int64)[:, None] * C + channel[None, :], value, mask=inside)
    tl.store(peak + n, squares / (total * total), mask=n < rows)
    tl.store(lse + n, (best + tl.log2(total)) * LN2, mask=n < rows)
    tl.store(best_logit + n, best, mask=n < rows)
    tl.store(log_total + n, tl.log2(total), mask=n < rows)
    tl.store(index + n, winner.to(tl.int64), mask=n < rows)


@triton.jit
def forward_columns(
    x_parts, x_term, c_parts, c_term, c_scale, best_logit, log_total,
    usage,
    rows, rows_padded, codes, codes_padded, rows_per_split,
    DISTANCE: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of codes against one share of the rows: `usage` (shares, K), the sums of p over rows, over N."""
    start_k = tl.program_id(0) * BLOCK_K
    k = start_k + tl.arange(0, BLOCK_K)
    c0, c1, c2 = load_parts(c_parts, start_k, codes_padded, BLOCK_K, CP, PARTS)
    code_term = tl.load(c_term + k)
    code_scale = tl.load(c_scale + k)
    count = tl.zeros([BLOCK_K], tl.float32)
    first = tl.program_id(1) * rows_per_split
    for start_n in range(first, tl.minimum(first + rows_per_split, rows), BLOCK_N):
        n = start_n + tl.arange(0, BLOCK_N)
        x0, x1, x2 = load_parts(x_parts, start_n, rows_padded, BLOCK_N, CP, PARTS)
        dot = product(c0, c1, c2, tl.trans(x0), tl.trans(x1), tl.trans(x2), PARTS)
        logits = base2_logits(dot, tl.load(x_term + n)[None, :], code_term[:, None], code_scale[:, None], DISTANCE)
        best = tl.load(best_logit + n, mask=n < rows, other=float("inf"))[None, :]
        count += tl.sum(tl.exp2(logits - best - tl.load(log_total + n, mask=n < rows, other=0.0)[None, :]), axis=1)
    tl.store(usage + tl.program_id(1).to(tl.int64) * codes + k, count / rows, mask=k < codes)
