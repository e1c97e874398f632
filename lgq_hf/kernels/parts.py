"""What all kernels share: fp32 numbers as sums of bf16 parts, their products on tensor cores, logits, block sizes.

Shapes: N rows, C channels, K codes, P parts; Cp is C padded to a power of two, Np and Kp are padded to the block.
The mathematics stands in README.md here.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
# F.normalize divides by max(norm, 1e-12)
NORM_EPS = tl.constexpr(1e-12)
# Triton's interpreter holds bf16 numbers as integers and would multiply those
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
ROW_BLOCK = 128  # Np and Kp are multiples of the largest block


class Operand(NamedTuple):
    """Rows made ready for products.

    Attributes:
        parts: (P, rows padded, Cp) bf16, their sum over P is the row less the mean; zero where padded.
        term: (rows padded,) fp32, what a row adds to its products: -||row||^2 / 2 for Euclidean distances; for codes
            of other distances 0; -inf for codes that are padding. For rows of cosine 1 / ||row||.
        scale: (rows padded,) fp32 factor of a code's logits in base 2; `None` for rows that are not codes.
        norm: (rows padded,) fp32 ||row less mean||.
    """

    parts: Tensor
    term: Tensor
    scale: Tensor | None
    norm: Tensor


@triton.jit
def _load_rows(source, mean, rows, count, C: tl.constexpr, CP: tl.constexpr):
    channel = tl.arange(0, CP)
    inside = (rows < count)[:, None] & (channel < C)[None, :]
    value = tl.load(source + rows.to(tl.int64)[:, None] * C + channel[None, :], mask=inside, other=0.0)
    shift = tl.load(mean + channel, mask=channel < C, other=0.0)
    return tl.where(inside, value.to(tl.float32) - shift[None, :], 0.0)


@triton.jit
def _store_parts(value, parts, rows, padded, CP: tl.constexpr, PARTS: tl.constexpr):
    """Writes the parts of `value`; returns ||their sum||^2 per row."""
    channel = tl.arange(0, CP)
    offset = rows.to(tl.int64)[:, None] * CP + channel[None, :]
    rest = value
    for part in tl.static_range(PARTS):
        head = rest.to(tl.bfloat16)
        tl.store(parts + tl.cast(padded, tl.int64) * (part * CP) + offset, head)
        rest = rest - head.to(tl.float32)
    kept = value - rest
    return tl.sum(kept * kept, axis=1)


@triton.jit
def _prepare_rows(
    source, mean, parts, term, norm, count, padded,
    DISTANCE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = _load_rows(source, mean, rows, count, C, CP)
    square = _store_parts(value, parts, rows, padded, CP, PARTS)
    length = tl.sqrt(square)
    tl.store(norm + rows, length)
    if DISTANCE == "cosine":
        tl.store(term + rows, 1.0 / tl.maximum(length, NORM_EPS))
    else:
        tl.store(term + rows, -0.5 * square)


@triton.jit
def _prepare_codes(
    source, mean, width, parts, term, scale, norm, count, padded, width_stride,
    DISTANCE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = rows < count
    value = _load_rows(source, mean, rows, count, C, CP)
    square = _store_parts(value, parts, rows, padded, CP, PARTS)
    length = tl.sqrt(square)
    tl.store(norm + rows, length)
    euclidean: tl.constexpr = DISTANCE == "sq_l2" or DISTANCE == "l2"
    own = -0.5 * square if euclidean else tl.zeros_like(square)
    tl.store(term + rows, tl.where(real, own, -float("inf")))
    factor = LOG2E / tl.load(width + rows * width_stride, mask=real, other=1.0)
    if DISTANCE == "sq_l2":
        factor *= 2.0
    if DISTANCE == "cosine":
        factor /= tl.maximum(length, NORM_EPS)
    tl.store(scale + rows, tl.where(real, factor, 1.0))


def prepare(rows_RC: Tensor, mean_C: Tensor, count_parts: int, distance: str, width: Tensor | None = None) -> Operand:
    """Splits contiguous rows (R, C) less `mean_C` into parts; with `width` ((R,) or (1,)) the rows are codes."""
    count, channels = rows_RC.shape
    padded = triton.cdiv(max(count, 1), ROW_BLOCK) * ROW_BLOCK
    padded_channels = pad_channels(channels)
    parts = torch.empty(count_parts, padded, padded_channels, dtype=torch.bfloat16, device=rows_RC.device)
    term, norm = parts.new_empty(padded, dtype=torch.float32), parts.new_empty(padded, dtype=torch.float32)
    block = prepare_block(padded_channels)
    sizes = {"DISTANCE": distance, "C": channels, "CP": padded_channels, "PARTS": count_parts, "BLOCK": block}
    grid = (padded // block,)
    if width is None:
        _prepare_rows[grid](rows_RC, mean_C, parts, term, norm, count, padded, **sizes)
        return Operand(parts, term, None, norm)
    scale = torch.empty_like(term)
    step = int(width.numel() > 1)
    _prepare_codes[grid](rows_RC, mean_C, width, parts, term, scale, norm, count, padded, step, **sizes)
    return Operand(parts, term, scale, norm)


def prepare_block(channels_padded: int) -> int:
    """Rows that one program of [`prepare`] splits: up to 4096 numbers."""
    return min(ROW_BLOCK, 4096 // channels_padded)


def pad_channels(channels: int) -> int:
    """The power of two, at least 16, that holds `channels`."""
    return max(16, triton.next_power_of_2(channels))


@triton.jit
def load_parts(parts, start, padded, ROWS: tl.constexpr, CP: tl.constexpr, PARTS: tl.constexpr):
    """Three tiles (ROWS, CP) of an operand; the parts that do not exist repeat the first and are never used."""
    offset = tl.arange(0, ROWS)[:, None] * CP + tl.arange(0, CP)[None, :]
    base = parts + tl.cast(start, tl.int64) * CP
    step = tl.cast(padded, tl.int64) * CP
    first = tl.load(base + offset)
    second = first
    third = first
    if PARTS > 1:
        second = tl.load(base + step + offset)
    if PARTS > 2:
        third = tl.load(base + 2 * step + offset)
    return first, second, third


@triton.jit
def split(value, PARTS: tl.constexpr):
    """A register tile as three bf16 tiles."""
    first = value.to(tl.bfloat16)
    second = first
    third = first
    if PARTS > 1:
        rest = value - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        if PARTS > 2:
            third = (rest - second.to(tl.float32)).to(tl.bfloat16)
    return first, second, third


@triton.jit
def join(first, second, third, PARTS: tl.constexpr):
    """The fp32 tile whose parts these are."""
    value = first.to(tl.float32)
    if PARTS > 1:
        value += second.to(tl.float32)
    if PARTS > 2:
        value += third.to(tl.float32)
    return value


@triton.jit
def _dot(a, b, total):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def product(a0, a1, a2, b0, b1, b2, PARTS: tl.constexpr):
    """(sum a) @ (sum b) in fp32 without the terms below the last part, the small terms first."""
    if PARTS == 3:
        total = _dot(a2, b0, None)
        total = _dot(a0, b2, total)
        total = _dot(a1, b1, total)
        total = _dot(a1, b0, total)
        total = _dot(a0, b1, total)
        total = _dot(a0, b0, total)
    elif PARTS == 2:
        total = _dot(a1, b0, None)
        total = _dot(a0, b1, total)
        total = _dot(a0, b0, total)
    else:
        total = _dot(a0, b0, None)
    return total


@triton.jit
def base2_logits(dot, row_term, code_term, code_scale, DISTANCE: tl.constexpr):
    """Logits times log2(e), from products and the terms of rows and codes (all broadcast to one shape)."""
    if DISTANCE == "sq_l2":
        return (dot + (row_term + code_term)) * code_scale
    elif DISTANCE == "l2":
        return -tl.sqrt(tl.maximum(-2.0 * (dot + (row_term + code_term)), 0.0)) * code_scale
    elif DISTANCE == "cosine":
        return (dot * row_term + code_term) * code_scale
    else:
        return (dot + code_term) * code_scale


@triton.jit
def slope(logits, row_term, code_scale, DISTANCE: tl.constexpr):
    """d logit / d (product plus terms), in base e."""
    if DISTANCE == "l2":
        return tl.where(logits < 0, code_scale * code_scale * LN2 / -logits, 0.0)
    elif DISTANCE == "cosine":
        return row_term * code_scale * LN2
    else:
        return code_scale * LN2 + tl.zeros_like(logits)
