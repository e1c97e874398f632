"""Soft and hard assignment of vectors to codes, without an N x K matrix.

Shapes: N rows (latent vectors), C channels, K codes.

Logits are  l_nk = s_nk / (tau * width_k)  with the similarity s of a distance:

    sq_l2    -||x_n - c_k||^2        (arXiv 2602.16086, section 3; the published default)
    l2       -||x_n - c_k||
    cosine   <x_n, c_k> / (||x_n|| ||c_k||)
    dot      <x_n, c_k>

and p_nk = softmax_k(l_nk). Everything that a quantizer needs is a sum over rows or columns of p. Backends:

    reference  materialises the (N, K) matrix and is differentiated by autograd: it is the definition
    chunked    plain PyTorch, block by block, p recomputed in the backward pass: memory O(NC + KC) plus one block
    triton     the same in fused GPU kernels (the installed package alone has them; see lgq_hf/kernels/README.md)

In the installed package the last two are `torch.library` operators, one node for `torch.compile`; the copy of this
file that travels with a checkpoint has the first two.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .assignment_chunked import chunked_backward, chunked_forward, chunked_soft_assign
from .assignment_nearest import chunked_nearest_code
from .assignment_reference import reference_nearest_code, reference_soft_assign

Distance = Literal["sq_l2", "l2", "cosine", "dot"]
Backend = Literal["auto", "reference", "chunked", "triton"]

# set by `lgq_hf/__init__`: a copy of this file that travels with a checkpoint would replace the package's operators
_operators: Any = None


def use_operators(define: Callable[..., Any]) -> None:
    """Lets both functions run as operators that `define(forward, backward, nearest_code)` registers from "chunked"."""
    global _operators
    _operators = define(chunked_forward, chunked_backward, chunked_nearest_code)


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
    widths: Tensor | None = None,
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
        widths: (K,) positive widths by which similarities are divided; `None` for 1.
        distance: `"sq_l2"`, `"l2"`, `"cosine"` or `"dot"`; see the top of this file.
        hold_x: `soft_codes_NC` passes its gradient to the centers (and widths and temperature) alone, as if it had
            been computed from `x_NC.detach()`; the other outputs still pass theirs to `x_NC`.
        backend: see the top of this file. `"auto"` takes `"triton"` on a GPU where the kernels serve the input, else
            `"chunked"`, and says so once in the log (level info).

    Returns:
        [`SoftAssignment`].

    Raises:
        ValueError: for shapes that do not fit, an unknown distance or backend, or a temperature that is not positive.
        TypeError: for tensors that are not floating point.
    """
    _check(x_NC, centers_KC, widths, distance, backend)
    dtype = torch.float64 if torch.float64 in (x_NC.dtype, centers_KC.dtype) else torch.float32
    device = x_NC.device
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        temperature = torch.full((), temperature, dtype=dtype, device=device)  # nothing waits for the device
    elif temperature.numel() != 1:
        raise ValueError(f"temperature must have one element, got shape {tuple(temperature.shape)}")
    with torch.autocast(device.type, enabled=False):
        tau = temperature.reshape(1).to(device, dtype)
        scale_K = tau if widths is None else tau * widths.to(dtype)
        if backend != "reference" and _operators is not None:
            outputs = _operators.soft_assign(x_NC, centers_KC, scale_K, distance, hold_x, backend)[:5]
        else:
            function = reference_soft_assign if backend == "reference" else chunked_soft_assign
            outputs = function(x_NC.to(dtype), centers_KC.to(dtype), scale_K, distance, hold_x)
        return SoftAssignment(*outputs)


def nearest_code(
    x_NC: Tensor,
    centers_KC: Tensor,
    *,
    widths: Tensor | None = None,
    distance: Distance = "sq_l2",
    backend: Backend = "auto",
) -> Tensor:
    """Index (N,) int64 of the code that wins each row: argmax_k s_nk / width_k, the lowest index on ties.

    Arguments and errors as in [`soft_assign`]. Not differentiable. The result is that of real arithmetic on the given
    numbers (decided in float64 where fp32 cannot tell), so it depends neither on the backend, nor on how many rows
    are looked up together, nor on autocast or TF32. `"l2"` and `"sq_l2"` choose the same code unless there are widths.
    """
    _check(x_NC, centers_KC, widths, distance, backend)
    with torch.no_grad(), torch.autocast(x_NC.device.type, enabled=False):
        if backend != "reference" and _operators is not None:
            return _operators.nearest_code(x_NC, centers_KC, widths, distance, backend)
        dtype = torch.float64 if torch.float64 in (x_NC.dtype, centers_KC.dtype) else torch.float32
        function = reference_nearest_code if backend == "reference" else chunked_nearest_code
        return function(x_NC.to(dtype), centers_KC.to(dtype), None if widths is None else widths.to(dtype), distance)


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
        raise ValueError(f"widths must have shape ({centers.shape[0]},), got {tuple(widths.shape)}")
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be one of {get_args(Distance)}, got '{distance}'")
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got '{backend}'")
    if backend == "triton" and _operators is None:
        raise ValueError("backend='triton' cannot run: its kernels come with the package: pip install lgq_hf")


__all__ = ["Backend", "Distance", "SoftAssignment", "nearest_code", "soft_assign", "use_operators"]
