"""Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737; TencentARC/SEED-Voken), by groups as in WeTok.

Shapes: N rows, C channels, G groups of C / G bits, K = 2 ** (C / G).
"""

import torch
from torch import Tensor

from .configuration_lgq import LGQConfig
from .quantizer_base import Quantizer, RowsOutput


class LFQQuantizer(Quantizer):
    """Every channel becomes its sign: +1 where it is above 0, else -1.

    Channels are split into G consecutive groups, and a position has one token for each: sum_i bit_i 2^i over the
    group's channels, the first channel lowest. There is no table.
    """

    name = "lfq"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        self.code_dim = config.quantizer_dim
        self.codebook_size = config.codebook_size
        self.tokens_per_position = config.tokens_per_position
        self.bits = self.code_dim // self.tokens_per_position

    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Nothing to place."""

    def _powers(self, device: torch.device) -> Tensor:
        return torch.arange(self.bits, device=device)

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens (N,), or (N, G)."""
        bits_NGb = (x_NC > 0).long().unflatten(1, (self.tokens_per_position, self.bits))
        tokens_NG = (bits_NGb << self._powers(x_NC.device)).sum(2)
        return tokens_NG[:, 0] if self.tokens_per_position == 1 else tokens_NG

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens (N,) or (N, G) -> codes (N, C) of -1 and 1."""
        bits = (tokens_N.reshape(-1, self.tokens_per_position, 1) >> self._powers(tokens_N.device)) & 1
        return (2 * bits - 1).flatten(1).float()

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """Not defined yet: this quantizer serves converted checkpoints."""
        raise NotImplementedError(
            "quantizer='lfq' encodes and decodes, and has no training loss: call model.eval(), or train with "
            "quantizer='lgq'"
        )


__all__ = ["LFQQuantizer"]
