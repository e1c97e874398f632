"""The assignment op as `torch.library` operators, so that `torch.compile` and autograd see one node.

Operators `lgq_hf::soft_assign`, `lgq_hf::soft_assign_backward`, `lgq_hf::nearest_code`. Which implementation runs is
decided when they run, so that a compiled graph holds no decision. Shapes: N rows, C channels, K codes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)


class Operators(NamedTuple):
    """The public operators; arguments as in [`define_operators`]."""

    soft_assign: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    nearest_code: Callable[..., Tensor]


def reason_against_triton(x_NC: Tensor, centers_KC: Tensor, op: str, *, auto: bool = False) -> str | None:
    """Why the Triton kernels of `op` cannot serve these tensors, or for `auto` should not; `None` if they can."""
    try:
        from . import launch  # triton takes a while to import, and is not everywhere
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    reason = launch.reason_against(x_NC, centers_KC, op)
    return launch.reason_for_chunked(x_NC, op) if auto and reason is None else reason


@cache
def _say(choice: str) -> None:
    logger.info(f"Assignment op: {choice}")


def _takes_triton(backend: str, x_NC: Tensor, centers_KC: Tensor, op: str = "soft_assign") -> bool:
    """Whether Triton serves a call; `ValueError` where it was asked for by name and cannot."""
    if backend == "chunked" or (backend == "auto" and not x_NC.is_cuda):
        return False
    reason = reason_against_triton(x_NC, centers_KC, op, auto=backend == "auto")
    if backend == "triton" and reason is not None:
        raise ValueError(f"backend='triton' cannot run: {reason}")
    if backend == "auto":
        _say("'auto' chose 'triton'" if reason is None else f"'auto' chose 'chunked': {reason}")
    return reason is None


@contextmanager
def _settings_of(x_NC: Tensor) -> Iterator[None]:
    """The device of the rows is the current one; autocast is off, also where a caller runs a backward pass in it."""
    with torch.cuda.device_of(x_NC), torch.autocast(x_NC.device.type, enabled=False):
        yield


def _accumulator(x_NC: Tensor, centers_KC: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (x_NC.dtype, centers_KC.dtype) else torch.float32


def _same_dtype(x_NC: Tensor, centers_KC: Tensor) -> tuple[Tensor, Tensor]:
    """As they are where both have one dtype that the kernels read; in fp32 otherwise."""
    if x_NC.dtype == centers_KC.dtype:
        return x_NC, centers_KC
    return x_NC.float(), centers_KC.float()


def _define_soft_assign(
    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> Any:
    soft_assign_backward = _define_backward(backward)

    @torch.library.custom_op("lgq_hf::soft_assign", mutates_args=())
    def soft_assign(
        x: Tensor, centers: Tensor, scale: Tensor, distance: str, hold_x: bool, backend: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        with _settings_of(x):
            if _takes_triton(backend, x, centers):
                from .launch import triton_forward

                return triton_forward(*_same_dtype(x, centers), scale.float(), distance)
            dtype = _accumulator(x, centers)
            outputs = forward(x.to(dtype), centers.to(dtype), scale.to(dtype), distance)
        return *outputs, x.new_zeros(2, len(x), dtype=torch.float32)  # its backward pass needs nothing more

    @soft_assign.register_fake
    def _(x: Tensor, centers: Tensor, scale: Tensor, distance: str, hold_x: bool, backend: str) -> tuple[Tensor, ...]:
        rows, codes = x.shape[0], centers.shape[0]
        like = x.new_empty((), dtype=_accumulator(x, centers))
        index = x.new_empty(rows, dtype=torch.int64)
        state = x.new_empty(2, rows, dtype=torch.float32)
        return like.new_empty(x.shape), like.new_empty(rows), like.new_empty(codes), like.new_empty(rows), index, state

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, centers, scale, ctx.distance, ctx.hold_x, ctx.backend = inputs
        soft, peak, _, _, index, state = output
        ctx.save_for_backward(x, centers, scale, soft, peak, state)
        ctx.mark_non_differentiable(index, state)
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        options = (ctx.distance, ctx.hold_x, ctx.needs_input_grad[2], ctx.backend)
        d_inputs = soft_assign_backward(*grads[:4], *ctx.saved_tensors, *options)
        return *d_inputs, None, None, None

    soft_assign.register_autograd(differentiate, setup_context=setup_context)
    return soft_assign


def _define_backward(backward: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Any:
    @torch.library.custom_op("lgq_hf::soft_assign_backward", mutates_args=())
    def soft_assign_backward(
        d_soft: Tensor | None,
        d_peak: Tensor | None,
        d_usage: Tensor | None,
        d_lse: Tensor | None,
        x: Tensor,
        centers: Tensor,
        scale: Tensor,
        soft: Tensor,
        peak: Tensor,
        state: Tensor,
        distance: str,
        hold_x: bool,
        with_scale: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = (d_soft, d_peak, d_usage, d_lse)
        with _settings_of(x):
            if _takes_triton(backend, x, centers):
                from .launch import triton_backward

                same = _same_dtype(x, centers)
                d_inputs = triton_backward(
                    *grads, *same, scale.float(), soft, peak, state, distance, hold_x, with_scale
                )
            else:
                same = (x.to(peak.dtype), centers.to(peak.dtype))
                d_inputs = backward(*grads, *same, scale.to(peak.dtype), distance, hold_x)
        return d_inputs[0].to(x.dtype), d_inputs[1].to(centers.dtype), d_inputs[2].to(scale.dtype)

    @soft_assign_backward.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, centers, scale = (tensor.new_empty(tensor.shape) for tensor in arguments[4:7])
        return x, centers, scale

    return soft_assign_backward


def _define_nearest_code(nearest: Callable[..., Tensor]) -> Any:
    @torch.library.custom_op("lgq_hf::nearest_code", mutates_args=())
    def nearest_code(x: Tensor, centers: Tensor, widths: Tensor | None, distance: str, backend: str) -> Tensor:
        with _settings_of(x):
            if _takes_triton(backend, x, centers, op="nearest_code"):
                from .launch import triton_nearest_code

                return triton_nearest_code(*_same_dtype(x, centers), widths, distance)
            dtype = _accumulator(x, centers)
            return nearest(x.to(dtype), centers.to(dtype), None if widths is None else widths.to(dtype), distance)

    @nearest_code.register_fake
    def _(x: Tensor, centers: Tensor, widths: Tensor | None, distance: str, backend: str) -> Tensor:
        return x.new_empty(x.shape[0], dtype=torch.int64)

    return nearest_code


def define_operators(
    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    nearest: Callable[..., Tensor],
) -> Operators:
    """Registers the operators, with the three functions (plain PyTorch, one dtype) as what runs without Triton.

    `soft_assign(x_NC, centers_KC, scale_K, distance, hold_x, backend)` and
    `nearest_code(x_NC, centers_KC, widths_K, distance, backend)`; scale_K is (K,) or (1,).
    """
    return Operators(_define_soft_assign(forward, backward), _define_nearest_code(nearest))
