"""Learnable Geometric Quantization (arXiv 2602.16086).

Shapes: N rows, C channels, K codes, L levels of one channel.

The straight-through estimators differ in what the decoder's gradient v at the codes does (q~ = sum_k p_k c_k):

    soft      published. Forward the hard code, backward the soft average: x gets (dq~/dx)^T v with
              dq~/dx = (2/tau) Cov_p[c], the centers get (dq~/dc)^T v. Where p is nearly one-hot the covariance
              vanishes, and the encoder learns nothing from the decoder: on layer-normalised random latents (C = 64,
              K = 16384 codes drawn like them) the median token passes on 1.2 times the decoder's gradient at tau = 1
              and 4e-09 times at tau = 0.1 (benchmarks/straight_through_gain.py).
    identity  x gets v unchanged, as in VQ-VAE; the centers still get (dq~/dc)^T v, with x held fixed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .assignment import Backend, SoftAssignment, nearest_code, soft_assign
from .codebook_init import initial_centers
from .codebook_upkeep import CodebookUpkeep
from .configuration_lgq import LGQConfig
from .quantizer_base import (
    Quantizer,
    RowsOutput,
    entropy_perplexity,
    mean_or_zero,
    straight_through,
    token_statistics,
)


class _LGQBase(Quantizer):
    """What the vector and the scalar form share: temperature, weights of the loss terms, estimator.

    Attributes:
        backend: of the assignment op, see [`soft_assign`]; not saved. Tokens do not depend on it.
    """

    temperature: Tensor
    centers: nn.Parameter
    alpha: nn.Parameter | None
    log_temperature_factor: nn.Parameter | None
    backend: Backend = "auto"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        self.code_dim = config.quantizer_dim
        self.codebook_size = config.codebook_size
        self.tokens_per_position = config.tokens_per_position
        self.distance = config.distance
        self.identity = config.straight_through == "identity"
        self.commitment_weight = config.commitment_weight
        self.lambda_peak = config.lambda_peak
        self.lambda_usage = config.lambda_usage
        self.lambda_floor = config.lambda_floor
        self.min_perplexity = config.min_perplexity
        self.initial_temperature = float(config.temperature)
        self.register_buffer("temperature", torch.tensor(self.initial_temperature))
        self.log_temperature_factor = nn.Parameter(torch.zeros(())) if config.learn_temperature else None

    def init_weights(self) -> None:
        """Centers at the scale of layer-normalised latents; training replaces them by `init_from`."""
        init.normal_(self.centers, std=1.0)
        if self.alpha is not None:
            init.zeros_(self.alpha)
        if self.log_temperature_factor is not None:
            init.zeros_(self.log_temperature_factor)
        init.constant_(self.temperature, self.initial_temperature)

    def set_temperature(self, temperature: float) -> None:
        """Sets tau, the softmax temperature in training (tokens do not depend on it); `ValueError` unless positive."""
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature.fill_(temperature)

    def _soft_assign(self, x: Tensor, centers: Tensor, widths: Tensor | None) -> SoftAssignment:
        factor = self.log_temperature_factor
        return soft_assign(
            x,
            centers,
            self.temperature if factor is None else self.temperature * factor.exp(),
            widths=widths,
            distance=self.distance,
            hold_x=self.identity,
            backend=self.backend,
        )

    @property
    def needs_usage(self) -> bool:
        """Where the usage term or the floor has a weight."""
        return bool(self.lambda_usage or self.lambda_floor)

    def _straight_through(self, x: Tensor, hard: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
        """Codes with their gradient, and the squared error per entry of the quantization term."""
        if not self.identity:
            codes = straight_through(hard, soft)
            return codes, (codes - x).square()
        to_centers = straight_through(hard, soft)
        codes = straight_through(hard, x + soft)
        error = (to_centers - x.detach()).square()
        return codes, error + self.commitment_weight * (x - hard.detach()).square()

    def _result(
        self,
        codes_NC: Tensor,
        tokens: Tensor,
        *,
        quantization: Tensor,
        peak: Tensor,
        usage: Tensor,
        soft_perplexity: Tensor,
    ) -> RowsOutput:
        """Weighs the terms of the loss and collects the statistics of one training step."""
        floor = F.relu(self.min_perplexity - soft_perplexity).square()
        loss = quantization + self.lambda_peak * peak + self.lambda_usage * usage + self.lambda_floor * floor
        statistics = {
            "quantization_loss": quantization.detach(),
            "peak_loss": peak.detach(),
            "usage_loss": usage.detach(),
            "floor_loss": floor.detach(),
            "soft_perplexity": soft_perplexity.detach(),
            **token_statistics(tokens, self.codebook_size),
        }
        return RowsOutput(codes_NC, tokens, loss, statistics)


class LGQVectorQuantizer(_LGQBase):
    """One codebook of K codes over the whole latent vector: the paper's form.

    Loss: mean (z - x)^2 + lambda_peak mean relu(1 - sum_k p^2) + lambda_usage K sum_k u_k^2
    + lambda_floor relu(min_perplexity - exp(H(u)))^2, with u the mean of p over the batch and all ranks.
    """

    def __init__(self, config: LGQConfig) -> None:
        super().__init__(config)
        self.centers = nn.Parameter(torch.empty(self.codebook_size, self.code_dim))
        self.alpha = nn.Parameter(torch.empty(self.codebook_size)) if config.learn_widths else None
        self.upkeep = CodebookUpkeep.of(config)

    def init_weights(self) -> None:
        """As in the base class, with a fresh account of the codes' use."""
        super().init_weights()
        if self.upkeep is not None:
            self.upkeep.init_weights()

    @property
    def widths(self) -> Tensor | None:
        """(K,) positive widths softplus(alpha) + 1e-6, or `None`."""
        return None if self.alpha is None else F.softplus(self.alpha) + 1e-6

    @torch.no_grad()
    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Places the centers according to latents (B, C, h, w): see [`initial_centers`] for methods and errors."""
        x_NC = self.to_rows(latents)
        self.centers.copy_(initial_centers(x_NC, self.codebook_size, method, generator))
        if self.upkeep is not None:
            self.upkeep.restart(self.centers)

    def observe(self, latents: Tensor, image_tokens: Tensor) -> None:
        """Counts codes, where dead ones are to be moved."""
        if self.upkeep is not None:
            self.upkeep.observe(self.to_rows(latents), image_tokens.flatten())

    def end_step(self, skip: Tensor) -> None:
        """Moves dead codes, see [`CodebookUpkeep`]."""
        if self.upkeep is not None:
            self.upkeep.end_step(self.centers, skip)

    def comparable(self, x_NC: Tensor) -> Tensor:
        """Latents, or codes, at length 1 where angles are compared."""
        return F.normalize(x_NC, dim=1) if self.distance == "cosine" else x_NC

    def comparable_codes(self, codes_NC: Tensor) -> Tensor:
        """As `comparable`: centers have any length."""
        return self.comparable(codes_NC)

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens: the code of the highest logit, at any temperature."""
        return nearest_code(x_NC, self.centers, widths=self.widths, distance=self.distance, backend=self.backend)

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens -> codes (N, C)."""
        return F.embedding(tokens_N, self.centers)

    def usages(self, x_NC: Tensor) -> list[Tensor]:
        """See [`Quantizer.usages`]: of the codebook."""
        return [self._soft_assign(x_NC, self.centers, self.widths).usage_K]

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """(N, C) latents -> codes, tokens, loss and statistics of a training step."""
        assigned = self._soft_assign(x_NC, self.centers, self.widths)
        codes_NC, error_NC = self._straight_through(x_NC, self.centers[assigned.index_N], assigned.soft_codes_NC)
        (usage_K,) = self.over_step([assigned.usage_K])
        return self._result(
            codes_NC,
            assigned.index_N,
            quantization=mean_or_zero(error_NC),
            peak=mean_or_zero(F.relu(1 - assigned.peak_N)),
            usage=self.codebook_size * usage_K.square().sum(),
            soft_perplexity=entropy_perplexity(usage_K),
        )


class LGQScalarQuantizer(_LGQBase):
    """Scalar bins: every channel has its own table of levels.

    `"per_channel"`: K bins for each channel and one token per channel. Its usage term is summed over channels and the
    others are averaged, as published.
    `"product"`: `levels[c]` bins for channel c; the token is sum_c bin_c * stride_c, last channel fastest. All terms
    are averaged over channels, and the floor compares the product of the channels' soft perplexities.
    """

    strides: Tensor

    def __init__(self, config: LGQConfig) -> None:
        super().__init__(config)
        self.product = config.codebook_mode == "product"
        self.levels = list(config.levels or [self.codebook_size] * self.code_dim)
        # rows shorter than the longest are padded at the end with values that are never looked up
        self.centers = nn.Parameter(torch.empty(self.code_dim, max(self.levels)))
        self.alpha = nn.Parameter(torch.empty(self.code_dim, self.codebook_size)) if config.learn_widths else None

    def _channels(self, x_NC: Tensor) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Per channel: values (N, 1), bins (L, 1) and widths (L,) or `None`."""
        widths = [None] * self.code_dim if self.alpha is None else list(F.softplus(self.alpha) + 1e-6)
        bins = [row[:level, None] for row, level in zip(self.centers, self.levels, strict=True)]
        return list(zip(x_NC.split(1, dim=1), bins, widths, strict=True))

    @torch.no_grad()
    def init_from(self, latents: Tensor, method: str = "uniform", generator: torch.Generator | None = None) -> None:
        """Places each channel's bins by latents (B, C, h, w): `"uniform"` (published) spaces them equally."""
        x_NC = self.to_rows(latents)
        self.centers.zero_()
        for channel, (column, level) in enumerate(zip(x_NC.split(1, dim=1), self.levels, strict=True)):
            self.centers[channel, :level] = initial_centers(column, level, method, generator)[:, 0]

    def _to_tokens(self, bins_NC: Tensor) -> Tensor:
        if not self.product:
            return bins_NC if self.code_dim > 1 else bins_NC[:, 0]
        tokens = bins_NC[:, 0]
        for channel in range(1, self.code_dim):
            tokens = tokens * self.levels[channel] + bins_NC[:, channel]
        return tokens

    def _to_bins(self, tokens: Tensor) -> Tensor:
        if not self.product:
            return tokens.reshape(-1, self.code_dim)
        bins = []
        for level in reversed(self.levels):
            bins.append(tokens % level)
            tokens = tokens // level
        return torch.stack(bins[::-1], dim=1)

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens: the code of the highest logit, at any temperature."""
        bins = [nearest_code(x, bins, widths=widths, backend=self.backend) for x, bins, widths in self._channels(x_NC)]
        return self._to_tokens(torch.stack(bins, dim=1))

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens -> codes (N, C)."""
        return self.centers.gather(1, self._to_bins(tokens_N).T).T

    def usages(self, x_NC: Tensor) -> list[Tensor]:
        """See [`Quantizer.usages`]: of each channel's bins."""
        return [self._soft_assign(*channel).usage_K for channel in self._channels(x_NC)]

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """(N, C) latents -> codes, tokens, loss and statistics of a training step."""
        parts = [self._soft_assign(*channel) for channel in self._channels(x_NC)]
        bins_NC = torch.stack([assigned.index_N for assigned in parts], dim=1)
        hard_NC = self.centers.gather(1, bins_NC.T).T
        soft_NC = torch.cat([assigned.soft_codes_NC for assigned in parts], dim=1)
        codes_NC, error_NC = self._straight_through(x_NC, hard_NC, soft_NC)
        usages = self.over_step([assigned.usage_K for assigned in parts])
        perplexities_C = torch.stack([entropy_perplexity(usage) for usage in usages])
        usage_C = torch.stack([usage.shape[0] * usage.square().sum() for usage in usages])
        return self._result(
            codes_NC,
            self._to_tokens(bins_NC),
            quantization=mean_or_zero(error_NC),
            peak=torch.stack([mean_or_zero(F.relu(1 - assigned.peak_N)) for assigned in parts]).mean(),
            usage=usage_C.mean() if self.product else usage_C.sum(),
            soft_perplexity=perplexities_C.prod() if self.product else perplexities_C.mean(),
        )


def build_lgq_quantizer(config: LGQConfig) -> Quantizer:
    """The vector or the scalar form, by `config.codebook_mode`."""
    return LGQVectorQuantizer(config) if config.codebook_mode == "vector" else LGQScalarQuantizer(config)


__all__ = ["LGQScalarQuantizer", "LGQVectorQuantizer", "build_lgq_quantizer"]
