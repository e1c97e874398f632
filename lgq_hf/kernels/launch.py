"""Host side of the kernels: what they can serve, block sizes, launches. README.md here explains the choices."""

import torch
import triton
from torch import Tensor
from triton import knobs

from .backward import backward_columns, backward_rows
from .blocks import Limits, choose_blocks, shared_bytes
from .forward import forward_columns, forward_rows
from .nearest import exact_codes, filter_codes
from .parts import INTERPRETED, Operand, pad_channels, prepare

MAX_CHANNELS = 512
MAX_CODES = 2**20
MAX_WIDTH = 512  # parts times padded channels: beyond it registers spill by kilobytes


def reason_against(x_NC: Tensor, centers_KC: Tensor, op: str) -> str | None:
    """Why the kernels of `op` (`"soft_assign"` or `"nearest_code"`) cannot serve these tensors; `None` if they can."""
    if torch.float64 in (x_NC.dtype, centers_KC.dtype):
        return "the Triton kernels compute in fp32: use backend='chunked' for float64"
    if x_NC.shape[1] > MAX_CHANNELS or centers_KC.shape[0] > MAX_CODES:
        return f"the Triton kernels serve up to C={MAX_CHANNELS} channels and K={MAX_CODES} codes"
    if knobs.runtime.interpret:
        return None
    if not x_NC.is_cuda:
        return f"the Triton kernels need tensors on a CUDA device, got {x_NC.device}"
    if torch.version.hip is not None:
        return "the Triton kernels were not tried on ROCm"
    if torch.cuda.get_device_capability(x_NC.device) < (8, 0):
        return "the Triton kernels need compute capability 8.0 (bf16 matrix units) or higher"
    streamed = 2 if op == "soft_assign" else 1
    needed = shared_bytes(1, streamed, pad_channels(x_NC.shape[1]), count_parts(x_NC.dtype, op))
    available = _limits(x_NC.device).shared_bytes
    if needed > available:
        return f"C={x_NC.shape[1]} needs {needed} bytes of shared memory a block, this device has {available}"
    return None


def reason_for_chunked(x_NC: Tensor, op: str) -> str | None:
    """Why the chunked backend is likely to be quicker, although the kernels can serve these rows; `None` if not."""
    if count_parts(x_NC.dtype, op) * pad_channels(x_NC.shape[1]) > MAX_WIDTH:
        return f"{x_NC.shape[1]} channels of {x_NC.dtype} spill registers in the Triton kernels"
    return None


def count_parts(dtype: torch.dtype, op: str = "soft_assign") -> int:
    """How many bf16 parts stand for a number of this dtype.

    One for bf16, two for fp16. For fp32 in `soft_assign` three, which hold all of its 24 bits, or two, which are finer
    than TF32, where torch's matrix products may use that. The filter of `nearest_code` always takes two.
    """
    if dtype == torch.bfloat16:
        return 1
    return 2 if dtype == torch.float16 or op == "nearest_code" or _tf32_is_allowed() else 3


def _tf32_is_allowed() -> bool:
    try:
        return torch.backends.cuda.matmul.fp32_precision == "tf32"
    except AttributeError:  # torch before 2.9
        return torch.backends.cuda.matmul.allow_tf32


def _limits(device: torch.device) -> Limits:
    if device.type != "cuda":  # interpreted: as on an H100
        return Limits(227 * 1024, 132, hopper=True)
    properties = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return Limits(shared, properties.multi_processor_count, hopper=properties.major >= 9)


def _shares(blocks: int, length: int, step: int, device: torch.device) -> tuple[int, int]:
    """In how many shares to cut a walk of `length` so that `blocks` programs fill the device; and a share's length."""
    wanted = max(1, triton.cdiv(2 * _limits(device).processors, max(blocks, 1)))
    per_share = triton.cdiv(triton.cdiv(max(length, 1), wanted), step) * step
    return triton.cdiv(max(length, 1), per_share), per_share


def _operands(x: Tensor, centers: Tensor, scale: Tensor, distance: str, parts: int) -> tuple[Operand, Operand, Tensor]:
    """Rows and codes ready for products, and what both are less of: the mean row, for distances of fp32.

    The mean code would do as well, until one code strays.
    """
    x, centers, scale = x.contiguous(), centers.contiguous(), scale.contiguous()
    if distance in ("sq_l2", "l2") and x.dtype == torch.float32:
        mean_C = x.mean(0)
    else:  # bf16 and fp16 stay as they are: their parts hold them exactly
        mean_C = torch.zeros(x.shape[1], dtype=torch.float32, device=x.device)
    return prepare(x, mean_C, parts, distance), prepare(centers, mean_C, parts, distance, scale), mean_C


def triton_forward(
    x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, distance: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Soft codes, peak, usage, log-sum-exp (fp32) and index for logits s_nk / scale_k; scale_K is (K,) or (1,).

    Last (2, N) the log-sum-exp in base 2 in two pieces, highest logit and log2 of the sum, for the backward pass.

    x_NC and centers_KC have one dtype: fp32, bf16 or fp16.
    """
    rows, channels = x_NC.shape
    codes, device = centers_KC.shape[0], x_NC.device
    soft = torch.empty(rows, channels, dtype=torch.float32, device=device)
    peak, lse, state = soft.new_empty(rows), soft.new_empty(rows), soft.new_empty(2, rows)
    index = torch.empty(rows, dtype=torch.int64, device=device)
    if rows == 0:
        return soft, peak, soft.new_zeros(codes), lse, index, state
    parts = count_parts(x_NC.dtype)
    x, c, mean_C = _operands(x_NC, centers_KC, scale_K, distance, parts)
    sizes = (rows, x.term.numel(), codes, c.term.numel())
    cp = pad_channels(channels)
    names = {"DISTANCE": distance, "CP": cp, "PARTS": parts}
    stay, stream, stages, warps = choose_blocks(1, 1, rows, cp, parts, _limits(device))
    forward_rows[(triton.cdiv(rows, stay),)](
        x.parts, x.term, c.parts, c.term, c.scale, mean_C, soft, peak, lse, index, state[0], state[1], *sizes,
        **names, C=channels, BLOCK_N=stay, BLOCK_K=stream, num_stages=stages, num_warps=warps,
    )  # fmt: skip
    stay, stream, stages, warps = choose_blocks(1, 1, codes, cp, parts, _limits(device))
    blocks = triton.cdiv(codes, stay)
    shares, per_share = _shares(blocks, rows, stream, device)
    usage = soft.new_empty(shares, codes)
    forward_columns[(blocks, shares)](
        x.parts, x.term, c.parts, c.term, c.scale, state[0], state[1], usage, *sizes, per_share,
        **names, BLOCK_N=stream, BLOCK_K=stay, num_stages=stages, num_warps=warps,
    )  # fmt: skip
    return soft, peak, usage.sum(0), lse, index, state


def triton_backward(
    d_soft_NC: Tensor | None, d_peak_N: Tensor | None, d_usage_K: Tensor | None, d_lse_N: Tensor | None,
    x_NC: Tensor, centers_KC: Tensor, scale_K: Tensor, soft_NC: Tensor, peak_N: Tensor, state: Tensor,
    distance: str, hold_x: bool, with_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients (fp32) of x_NC, centers_KC and scale_K (zeros unless `with_scale`); `None` stands for zeros."""
    rows, channels = x_NC.shape
    codes, device = centers_KC.shape[0], x_NC.device
    d_x = torch.empty(rows, channels, dtype=torch.float32, device=device)
    if rows == 0:
        return d_x, d_x.new_zeros(codes, channels), torch.zeros_like(scale_K)
    parts = count_parts(x_NC.dtype)
    x, c, mean_C = _operands(x_NC, centers_KC, scale_K, distance, parts)
    sizes = (rows, x.term.numel(), codes, c.term.numel())
    cp = pad_channels(channels)
    d_peak = peak_N.new_zeros(rows) if d_peak_N is None else d_peak_N.contiguous()
    d_usage = peak_N.new_zeros(codes) if d_usage_K is None else d_usage_K.contiguous()
    d_lse = peak_N.new_zeros(rows) if d_lse_N is None else d_lse_N.contiguous()
    base = 2 * d_peak * peak_N
    base_of_rows, d_parts = base, x.parts
    if d_soft_NC is not None:
        d_parts = prepare(d_soft_NC.contiguous(), torch.zeros_like(mean_C), parts, "dot").parts
        base = base + (d_soft_NC * (soft_NC - mean_C)).sum(1)
        base_of_rows = base_of_rows if hold_x else base
    with_soft = d_soft_NC is not None
    through_soft = with_soft and not hold_x
    names = {"DISTANCE": distance, "C": channels, "CP": cp, "PARTS": parts}
    rest = torch.empty_like(base)
    stay, stream, stages, warps = choose_blocks(1 + through_soft, 1, rows, cp, parts, _limits(device))
    uniform = scale_K.numel() == 1 and distance in ("sq_l2", "dot")
    backward_rows[(triton.cdiv(rows, stay),)](
        x.parts, x.term, x.norm, c.parts, c.term, c.scale, mean_C, d_parts, soft_NC, state[0], state[1], base_of_rows,
        d_peak, d_usage, d_lse, d_x, rest, *sizes, **names, UNIFORM=uniform, THROUGH_SOFT=through_soft,
        BLOCK_N=stay, BLOCK_K=stream, num_stages=stages, num_warps=warps,
    )  # fmt: skip
    stay, stream, stages, warps = choose_blocks(1, 1 + with_soft, codes, cp, parts, _limits(device))
    blocks = triton.cdiv(codes, stay)
    shares, per_share = _shares(blocks, rows, stream, device)
    d_centers = d_x.new_empty(shares, codes, channels)
    d_log_scale = d_x.new_empty(shares, codes)
    backward_columns[(blocks, shares)](
        x.parts, x.term, c.parts, c.term, c.scale, c.norm, d_parts, state[0], state[1],
        d_lse - base - rest, d_peak, d_usage, d_centers, d_log_scale, *sizes, per_share,
        **names, WITH_SOFT=with_soft, WITH_SCALE=with_scale,
        BLOCK_N=stream, BLOCK_K=stay, num_stages=stages, num_warps=warps,
    )  # fmt: skip
    if not with_scale:
        return d_x, d_centers.sum(0), torch.zeros_like(scale_K)
    d_scale = -(d_log_scale.sum(0) / scale_K)
    return d_x, d_centers.sum(0), d_scale if scale_K.numel() == codes else d_scale.sum().reshape(1)


def triton_nearest_code(x_NC: Tensor, centers_KC: Tensor, widths_K: Tensor | None, distance: str) -> Tensor:
    """argmax_k s_nk / width_k, exact, the lowest index on ties; int64 (N,)."""
    rows, channels = x_NC.shape
    codes, device = centers_KC.shape[0], x_NC.device
    if rows == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    x_NC, centers_KC = x_NC.contiguous(), centers_KC.contiguous()
    parts = count_parts(x_NC.dtype, "nearest_code")
    widths = torch.ones(1, device=device) if widths_K is None else widths_K.float().contiguous()
    euclidean = distance in ("sq_l2", "l2")
    kind = "sq_l2" if euclidean else distance
    # the winner of d / w is that of d^2 / w^2
    x, c, _ = _operands(x_NC, centers_KC, widths.square() if distance == "l2" else widths, kind, parts)
    cp = pad_channels(channels)
    stay, stream, stages, warps = choose_blocks(1, 1, rows, cp, parts, _limits(device))
    blocks = triton.cdiv(rows, stay)
    shares, per_share = _shares(blocks, codes, stream, device)
    best = torch.empty(shares, rows, dtype=torch.float32, device=device)
    second, index = torch.empty_like(best), torch.empty(shares, rows, dtype=torch.int32, device=device)
    sizes = (rows, x.term.numel(), codes, c.term.numel())
    filter_codes[(blocks, shares)](
        x.parts, x.term, c.parts, c.term, c.scale, best, second, index, *sizes, per_share,
        EUCLIDEAN=euclidean, CP=cp, PARTS=parts, BLOCK_N=stay, BLOCK_K=stream, num_stages=stages, num_warps=warps,
    )  # fmt: skip
    top, token = _merge(best, index)
    others = torch.where(index == token, second, best).amax(0)
    margin = 2 * _error_bound(x.norm[:rows], c, channels, codes, parts, euclidean)
    undecided = ~(others < top - margin)
    order = torch.sort(undecided.to(torch.uint8), descending=True, stable=True).indices
    count = undecided.sum(dtype=torch.int32)
    # as if one row in 64 were undecided: enough programs for those, and no large buffers for many rows
    shares, per_share = _shares(triton.cdiv(rows, 1024), codes, 64, device)
    exact = torch.empty(shares, rows, dtype=torch.float64, device=device)
    index = torch.zeros(shares, rows, dtype=torch.int32, device=device)
    exact_codes[(triton.cdiv(rows, 16), shares)](
        x_NC, centers_KC, widths, x.parts, x.term, c.parts, c.term, c.scale, top - margin, order, count,
        exact, index, *sizes, per_share, int(widths.numel() > 1),
        DISTANCE=distance, EUCLIDEAN=euclidean, C=channels, CP=cp, PARTS=parts,
        BLOCK_N=16, BLOCK_K=32, num_stages=1, num_warps=4,
    )  # fmt: skip
    decided = torch.arange(rows, device=device) >= count
    sure = torch.where(decided, token[order], _merge(exact, index)[1])
    return torch.empty_like(order).scatter_(0, order, sure.long())


def _error_bound(norm_N: Tensor, c: Operand, channels: int, codes: int, parts: int, euclidean: bool) -> Tensor:
    """How far the filter's score of a row can be from the score in real arithmetic, for any of the codes; (N,)."""
    rounding = 0.0 if parts == 1 else 2**-13 if INTERPRETED else 2**-14  # the interpreter cuts parts off
    relative = rounding + (channels + 32) * 2**-22
    assert c.scale is not None  # codes have one
    tiny = channels * 2**-63  # squares of smaller numbers are lost, and norms with them
    scale, norm_N, norm_K = c.scale[:codes], norm_N + tiny, c.norm[:codes] + tiny
    highest, by_norm = scale.amax(), (scale * norm_K).amax()
    underflow = channels * torch.finfo(torch.float32).tiny * ((1 + norm_N) * highest + by_norm)
    if not euclidean:
        return relative * norm_N * by_norm + underflow
    by_square = (scale * norm_K.square()).amax()
    return relative / 2 * (norm_N.square() * highest + 2 * norm_N * by_norm + by_square) + underflow


def _merge(best_SN: Tensor, index_SN: Tensor) -> tuple[Tensor, Tensor]:
    """Highest over the shares, and its index, the lowest on ties."""
    top = best_SN.amax(0)
    return top, torch.where(best_SN == top, index_SN, torch.iinfo(torch.int32).max).amin(0)
