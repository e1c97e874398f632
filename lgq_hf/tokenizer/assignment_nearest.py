"""The nearest code, exactly, at the price of a fp32 matrix product: a filter with a proven error, then float64.

Shapes: N rows (latent vectors), n of them in a block, C channels, K codes, D features, G groups of codes.

Filter. The order of the codes for one row is that of the scores t_nk = <a_n, b_k>, with features computed in float64
(around the mean code for Euclidean distances, without the term ||x||^2 where all codes share it) and rounded to fp32.
A product of D terms in fp32, summed in any order, with or without fused multiply-add, differs from its real value by
at most gamma_D sum_d |a_nd b_kd|, where gamma_m = m u / (1 - m u) and u = 2^-24. Rounding both features adds 2 to D;
the float64 errors of the features, the rounding of the threshold below and the float64 errors of the exact scores of
inner products are less than 1 each. With margins, for all k,

    |score_nk - t_nk| <= err_n = gamma_(D+8) sum_d |a_nd| max_k |b_kd| + underflow + float64,

where "underflow" holds for numbers below the smallest normal one, gradual or flushed to zero, and "float64" is the
error of the exact Euclidean scores, which do contain ||x||^2. The filter's best score is therefore at most 2 err_n
above its score of the code that wins, and only codes within that distance are scored again.

Exact scores. In float64, from differences, added in one fixed order (`exact_scores`): the result depends on nothing
but the row and the codes, whatever the batch, the blocks and the device. A row with no usable bound (overflow) has all
its codes scored so; a row with NaN gets some index in range.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .assignment_reference import exact_scores, score_divisors

# Bytes of one block of scores, of at most so many rows and of as many codes as there is room for. On a CPU it should
# stay in the cache; elsewhere it should be large, as starting an operation takes longer than a small one runs.
_BLOCK_BYTES = {"cpu": 4 * 2**20}
_BLOCK_BYTES_ELSEWHERE = 256 * 2**20
_ROWS = {"cpu": 512}
_ROWS_ELSEWHERE = 4096
# Codes k, k + G, k + 2G, ... of a block form a group: groups are compared with the threshold before codes are.
_GROUP = 16


def chunked_nearest_code(x_NC: Tensor, centers_KC: Tensor, widths_K: Tensor | None, distance: str) -> Tensor:
    """argmax_k s_nk / width_k of the given numbers, the lowest index on ties, int64 (N,); fp32 or fp64 inputs.

    Equal to `reference_nearest_code` in every element. Memory: O(KC) and one block.
    """
    rows, codes = len(x_NC), len(centers_KC)
    budget = _BLOCK_BYTES.get(x_NC.device.type, _BLOCK_BYTES_ELSEWHERE)
    centers_KC = centers_KC.contiguous()  # gathered by rows
    search = _Filter(centers_KC, widths_K, distance, budget)
    index_N = torch.empty(rows, dtype=torch.int64, device=x_NC.device)
    step = min(_ROWS.get(x_NC.device.type, _ROWS_ELSEWHERE), max(rows, 1))
    scores = search.new_scores(step)
    for start in range(0, rows, step):
        x = x_NC[start : start + step]
        found = _Winners(len(x), codes, x.device)
        for row, code in search.candidates(x, scores):
            found.update(row, code, exact_scores(x[row], centers_KC[code], search.divisors_K[code], distance))
        index_N[start : start + len(x)] = found.index_n
    return index_N


class _Winners:
    """The best score of each row so far, and the lowest code that reached it."""

    def __init__(self, rows: int, codes: int, device: torch.device) -> None:
        self.codes = codes
        self.score_n = torch.full((rows,), -torch.inf, dtype=torch.float64, device=device)
        self.index_n = torch.zeros(rows, dtype=torch.int64, device=device)

    def update(self, row: Tensor, code: Tensor, score: Tensor) -> None:
        """Takes in scores of pairs of a row and a code."""
        before = self.score_n
        self.score_n = before.scatter_reduce(0, row, score, "amax")
        code = code.masked_fill(score != self.score_n[row], self.codes)
        lowest = torch.full_like(self.index_n, self.codes).scatter_reduce(0, row, code, "amin")
        # `lowest` is K, above every index, for a row without a winner among these pairs
        self.index_n = torch.where(self.score_n > before, lowest, torch.minimum(self.index_n, lowest))


class _Filter:
    """Rounded features of the codes, and what the bound needs of them."""

    def __init__(self, centers_KC: Tensor, widths_K: Tensor | None, distance: str, budget: int) -> None:
        self.euclidean, self.shared = distance in ("sq_l2", "l2"), widths_K is None
        self.divisors_K = score_divisors(centers_KC, widths_K, distance)
        self.mean_C = centers_KC.mean(dim=0).double() if self.euclidean else centers_KC.new_zeros(()).double()
        codes, channels = centers_KC.shape
        self.budget, self.channels = budget, channels
        features = channels + (0 if not self.euclidean else 1 if self.shared else 2)
        dtype = torch.float32 if _fp32_products_are_exact(centers_KC.device) else torch.float64
        self.b_KD = centers_KC.new_empty(codes, features, dtype=dtype)
        highest, farthest = [], []
        step = max(1, budget // (32 * features))
        for start in range(0, codes, step):
            block = slice(start, start + step)
            b_kD, square_k = self._code_features(centers_KC[block], self.divisors_K[block])
            self.b_KD[block] = b_kD
            highest.append(b_kD.abs().amax(dim=0))
            farthest.append(square_k)
        self.highest_D = torch.stack(highest).amax(dim=0)
        self.farthest = torch.stack(farthest).amax(dim=0)

    def _code_features(self, centers_kC: Tensor, divisors_k: Tensor) -> tuple[Tensor, Tensor]:
        centers = centers_kC.double() - self.mean_C
        square = centers.square().sum(dim=1)
        parts = [centers]
        if self.euclidean:
            parts.append(-square[:, None])
            if not self.shared:
                parts.append(-torch.ones_like(square)[:, None])
        return torch.cat(parts, dim=1) / divisors_k[:, None], square.amax()

    def _row_features(self, x_nC: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, D) and the bound err (n,), both float64."""
        x = x_nC.double() - self.mean_C
        parts, float64_error = [x], x.new_zeros(())
        if self.euclidean:
            square = x.square().sum(dim=1)
            parts = [2 * x, torch.ones_like(square)[:, None]]
            if not self.shared:
                parts.append(square[:, None])
            # ||x - c||^2 <= 2 (||x||^2 + ||c||^2) for the shifted vectors
            float64_error = (self.channels + 8) * 2**-52 * (square + self.farthest) / self.divisors_K.amin()
        a_nD = torch.cat(parts, dim=1)
        gamma = (a_nD.shape[1] + 8) * 2**-24
        gamma = gamma / (1 - gamma)
        product = a_nD.abs() @ self.highest_D
        sizes = a_nD.abs().sum(dim=1) + self.highest_D.sum()
        err_n = gamma * product + 2**-126 * (sizes + 4 * a_nD.shape[1]) + float64_error
        return a_nD, err_n.masked_fill_(~(product + sizes < 2.0**126), torch.inf)  # fp32 may overflow

    def new_scores(self, rows: int) -> Tensor:
        """A block for `rows` rows and as many whole groups of codes as the budget has room for."""
        groups = min(self.budget // (4 * rows), len(self.b_KD)) // _GROUP
        return self.b_KD.new_empty(rows, max(groups, 1) * _GROUP)

    def candidates(self, x_nC: Tensor, scores: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of a row and a code that may win it: all that the bound does not exclude; two int64 tensors at a time.

        `scores` is a buffer for the rows, and as many codes as it has are looked at together. As many pairs are given
        at a time as the budget has room for, or a few more.
        """
        a_nD, err_n = self._row_features(x_nC)
        codes, width, limit = len(self.b_KD), scores.shape[1], self.budget // (16 * self.channels)
        a_nD, scores = a_nD.to(scores.dtype), scores[: len(a_nD)]
        best_n = torch.full_like(scores[:, 0], -torch.inf)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, codes, width):
            b_kD = self.b_KD[start : start + width]
            torch.mm(a_nD, b_kD.T, out=scores[:, : len(b_kD)])
            scores[:, len(b_kD) :] = -torch.inf
            members = scores.view(len(scores), _GROUP, -1)
            best_nG = members.amax(dim=1)
            # of the codes so far: what these exclude, all will
            best_n = torch.maximum(best_n, best_nG.amax(dim=1))
            threshold_n = (best_n - 2 * err_n).to(scores.dtype)
            # not (score < threshold), so that where it is NaN every code stays
            rows, groups = (best_nG < threshold_n[:, None]).logical_not_().nonzero(as_tuple=True)
            most = -(-limit // _GROUP)
            for row, group in zip(rows.split(most), groups.split(most), strict=True):
                score = members[row, :, group]
                pair, member = (score < threshold_n[row, None]).logical_not_().nonzero(as_tuple=True)
                found.append((row[pair], start + group[pair] + member * best_nG.shape[1], score[pair, member]))
                if sum(len(part[0]) for part in found) >= limit:
                    yield _not_below(found, threshold_n, codes)
                    found = []
        if found:
            yield _not_below(found, threshold_n, codes)


def _not_below(found: list[tuple[Tensor, Tensor, Tensor]], threshold_n: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Rows and codes of what was found, without what a threshold that has risen since excludes, and padding."""
    row, code, score = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = (score < threshold_n[row]).logical_not_() & (code < codes)
    return row[kept], code[kept]


def _fp32_products_are_exact(device: torch.device) -> bool:
    """Whether fp32 matrix products use fp32 throughout: PyTorch can be set to round their factors (TF32, bf16)."""
    try:
        backend = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        return backend.fp32_precision in ("none", "ieee")
    except AttributeError:  # PyTorch before 2.9
        return torch.get_float32_matmul_precision() == "highest"


__all__ = ["chunked_nearest_code"]
