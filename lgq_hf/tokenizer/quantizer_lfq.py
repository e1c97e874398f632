"""Quantization by signs: lookup-free (MAGVIT-v2, arXiv 2310.05737; TencentARC/SEED-Voken; by groups as in WeTok).

Shapes: N rows, C channels, G groups of C / G bits, K = 2 ** (C / G); b bits of a group of the entropy term.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .assignment import soft_assign
from .configuration_lgq import LGQConfig
from .quantizer_base import Quantizer, RowsOutput, entropy, mean_or_zero, straight_through, token_statistics


class LFQQuantizer(Quantizer):
    """Every channel becomes its sign: +1 where it is above 0, else -1.

    Channels are split into G consecutive groups, and a position has one token for each: sum_i bit_i 2^i over the
    group's channels, the first channel lowest. There is no table.

    Loss: commitment_weight mean (z - sg[code])^2 + entropy_weight sum_groups (E_n H[p_n] - H[E_n p_n]), in nats, with
    p = softmax(2 z.c / entropy_temperature) over the codes c of `entropy_bits` channels. In E_n H[p_n] bits are
    independent, so that it is a sum over channels of the entropy of sigmoid(4 z_i c_1 / T), whatever the groups.
    """

    name = "lfq"
    scale = 1.0  # of the codes

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        self.code_dim = config.quantizer_dim
        self.codebook_size = config.codebook_size
        self.tokens_per_position = config.tokens_per_position
        self.bits = self.code_dim // self.tokens_per_position
        self.commitment_weight = config.commitment_weight
        self.entropy_weight = config.entropy_weight
        self.entropy_temperature = config.entropy_temperature
        self.entropy_bits = config.entropy_bits or self.bits

    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Nothing to place."""

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens (N,), or (N, G)."""
        bits_NGb = (x_NC > 0).long().unflatten(1, (self.tokens_per_position, self.bits))
        tokens_NG = (bits_NGb << torch.arange(self.bits, device=x_NC.device)).sum(2)
        return tokens_NG[:, 0] if self.tokens_per_position == 1 else tokens_NG

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens (N,) or (N, G) -> codes (N, C) of -1 and 1."""
        signs = _signs(tokens_N.reshape(-1, self.tokens_per_position), self.bits).flatten(1)
        return signs if self.scale == 1 else signs * self.scale

    @property
    def needs_usage(self) -> bool:
        """Where the entropy term has a weight."""
        return bool(self.entropy_weight)

    def usages(self, x_NC: Tensor) -> list[Tensor]:
        """See [`Quantizer.usages`]: the mean of p for each group."""
        numbers = torch.arange(2**self.entropy_bits, device=x_NC.device)
        codes = _signs(numbers, self.entropy_bits).to(x_NC) * self.scale
        groups = x_NC.split(self.entropy_bits, dim=1)
        return [soft_assign(x, codes, self.entropy_temperature / 2, distance="dot").usage_K for x in groups]

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """(N, C) latents -> codes, tokens, loss and statistics of a training step."""
        tokens = self.assign_rows(x_NC)
        x_NC, codes_NC = self.comparable(x_NC), self.lookup_rows(tokens)
        commitment = mean_or_zero((x_NC - codes_NC).square())
        loss, statistics = self.commitment_weight * commitment, {"quantization_loss": commitment.detach()}
        if self.entropy_weight:
            channel = _bit_entropy(4 * self.scale * x_NC / self.entropy_temperature)
            row_entropy = channel.sum() / max(1, x_NC.shape[0])
            usage_entropy = torch.stack([entropy(usage) for usage in self.over_step(self.usages(x_NC))]).sum()
            loss = loss + self.entropy_weight * (row_entropy - usage_entropy)
            statistics |= {"row_entropy": row_entropy.detach(), "usage_entropy": usage_entropy.detach()}
        statistics |= token_statistics(tokens, self.codebook_size)
        return RowsOutput(straight_through(codes_NC, self.carrier(x_NC)), tokens, loss, statistics)

    def carrier(self, x_NC: Tensor) -> Tensor:
        """What passes the decoder's gradient on to comparable latents: unchanged."""
        return x_NC


def _signs(tokens: Tensor, bits: int) -> Tensor:
    """(...) -> (..., bits) of -1 and 1 in fp32, the lowest bit first."""
    return (2 * ((tokens[..., None] >> torch.arange(bits, device=tokens.device)) & 1) - 1).float()


def _bit_entropy(logit: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability sigmoid(logit)."""
    size = logit.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


__all__ = ["LFQQuantizer"]
