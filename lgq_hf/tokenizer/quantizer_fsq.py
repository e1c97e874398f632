"""Finite scalar quantization (arXiv 2309.15505), and iFSQ's bound.

Shapes: N rows, C channels with L_c levels each, K = prod L_c.
"""

import math

import torch
from torch import Tensor

from .configuration_lgq import LGQConfig
from .quantizer_base import Quantizer, RowsOutput, mean_or_zero, straight_through, token_statistics

_MARGIN = 1e-3  # by which the outermost levels are wider than half a step (published: epsilon)


class FSQQuantizer(Quantizer):
    """Every channel is squashed and rounded to one of its L levels; there is no table and no loss.

    With h = (L - 1) (1 + 0.001) / 2 and o = 1/2 for even L, else 0, a channel becomes h tanh(a z + atanh(o / h)) - o,
    so that z = 0 becomes 0; it is rounded, and the code is the result divided by floor(L / 2): L values in [-1, 1],
    of which 0 is one. a = 1 with `fsq_bound="tanh"` (published), 0.8 with `"sigmoid"`, since 2 sigmoid(1.6 z) - 1 =
    tanh(0.8 z) (iFSQ). The decoder's gradient passes the rounding unchanged, and the squashing as usual.

    The token is sum_c level_c stride_c with levels counted from 0, the *first* channel fastest, as published.
    """

    name = "fsq"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        levels = list(config.levels or [])
        self.code_dim, self.codebook_size = len(levels), config.codebook_size
        self.slope = 1.0 if config.fsq_bound == "tanh" else 0.8
        strides = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.level_list, self.stride_list = levels, strides

    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Nothing to place."""

    def bounded(self, x_NC: Tensor) -> Tensor:
        """Latents as they are rounded: channel c in (-L_c / 2, L_c / 2), in steps of one level."""
        levels_C = self._levels(x_NC)
        half_C = (levels_C - 1) * (1 + _MARGIN) / 2
        offset_C = torch.where(levels_C % 2 == 0, 0.5, 0.0).to(x_NC)
        return torch.tanh(self.slope * x_NC + torch.atanh(offset_C / half_C)) * half_C - offset_C

    def comparable(self, x_NC: Tensor) -> Tensor:
        """Latents as they are rounded, in the units of the codes."""
        return self.bounded(x_NC) / (self._levels(x_NC) // 2)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.level_list, dtype=like.dtype, device=like.device)

    def _to_tokens(self, rounded_NC: Tensor) -> Tensor:
        levels_C = torch.tensor(self.level_list, device=rounded_NC.device)
        strides_C = torch.tensor(self.stride_list, device=rounded_NC.device)
        return ((rounded_NC.long() + levels_C // 2) * strides_C).sum(1)

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens (N,)."""
        return self._to_tokens(self.bounded(x_NC).round())

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens (N,) -> codes (N, C) in [-1, 1]."""
        levels_C = torch.tensor(self.level_list, device=tokens_N.device)
        strides_C = torch.tensor(self.stride_list, device=tokens_N.device)
        half_C = levels_C // 2
        return (tokens_N[:, None] // strides_C % levels_C - half_C).float() / half_C

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """(N, C) latents -> codes, tokens, a loss of 0 and statistics of a training step."""
        bounded_NC = self.bounded(x_NC)
        carrier_NC = bounded_NC / (self._levels(x_NC) // 2)
        tokens_N = self._to_tokens(bounded_NC.detach().round())
        codes_NC = self.lookup_rows(tokens_N)
        error = mean_or_zero((carrier_NC.detach() - codes_NC).square())
        statistics = {"quantization_loss": error, **token_statistics(tokens_N, self.codebook_size)}
        loss = mean_or_zero(carrier_NC) * 0  # zero with a graph, so that a step is the same for all quantizers
        return RowsOutput(straight_through(codes_NC, carrier_NC), tokens_N, loss, statistics)


__all__ = ["FSQQuantizer"]
