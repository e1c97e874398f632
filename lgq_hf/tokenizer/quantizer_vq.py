"""Vector quantization by the nearest row of a table (VQ-VAE, arXiv 1711.00937; VQGAN, arXiv 2012.09841).

Shapes: N rows, C channels, K codes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .assignment import nearest_code
from .codebook_init import initial_centers
from .codebook_upkeep import CodebookUpkeep
from .configuration_lgq import LGQConfig
from .quantizer_base import Quantizer, RowsOutput, mean_or_zero, straight_through, token_statistics


class VQQuantizer(Quantizer):
    """Looks latents up in a table of K codes.

    `distance="sq_l2"`: the nearest code (taming-transformers). `"cosine"`: the code at the smallest angle; what is
    decoded is that code at length 1, and latents are compared at length 1 too (LlamaGen, arXiv 2406.06525).

    Loss: mean (sg[z] - e)^2 + commitment_weight mean (z - sg[e])^2, means over rows and channels, sg: no gradient.
    With `codebook_update="ema"` the first term is gone, and the table follows the latents: see [`CodebookUpkeep`].
    The decoder's gradient reaches z unchanged, or with `rotation_trick` as if z were rotated and stretched to e by a
    fixed matrix (Fifty et al., arXiv 2410.06424, section 4.2).

    Attributes:
        codebook: (K, C); stored as it was trained, not at length 1.
    """

    name = "vq"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        self.code_dim = config.quantizer_dim
        self.codebook_size = config.codebook_size
        self.distance = config.distance
        self.commitment_weight = config.commitment_weight
        self.rotation_trick = config.rotation_trick
        self.averaged = config.codebook_update == "ema"
        self.codebook = nn.Parameter(torch.empty(self.codebook_size, self.code_dim))
        self.upkeep = CodebookUpkeep.of(config)
        self.freeze()

    def freeze(self) -> None:
        """Takes the gradient from a table that follows the latents."""
        self.codebook.requires_grad_(not self.averaged)

    def init_weights(self) -> None:
        """Small codes around 0, as the published tables start; training places them by `init_from`."""
        init.uniform_(self.codebook, -1 / self.codebook_size, 1 / self.codebook_size)
        if self.upkeep is not None:
            self.upkeep.init_weights()

    @torch.no_grad()
    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Places the codes according to latents (B, C, h, w): see [`initial_centers`] for methods and errors."""
        x_NC = self.comparable(self.to_rows(latents))
        self.codebook.copy_(initial_centers(x_NC, self.codebook_size, method, generator))
        if self.upkeep is not None:
            self.upkeep.restart(self.codebook)

    def comparable(self, x_NC: Tensor) -> Tensor:
        """Latents, or codes, at length 1 where angles are compared."""
        return F.normalize(x_NC, dim=1) if self.distance == "cosine" else x_NC

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens (N,)."""
        return nearest_code(x_NC, self.codebook, distance=self.distance)

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens (N,) -> codes (N, C)."""
        return F.embedding(tokens_N, self.comparable(self.codebook))

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """(N, C) latents -> codes, tokens, loss and statistics of a training step."""
        tokens_N = self.assign_rows(x_NC)
        codes_NC, x_NC = self.lookup_rows(tokens_N), self.comparable(x_NC)
        commitment = mean_or_zero((x_NC - codes_NC.detach()).square())
        codebook = mean_or_zero((x_NC.detach() - codes_NC).square())
        loss = self.commitment_weight * commitment + (0 if self.averaged else codebook)
        carrier = _rotated(x_NC, codes_NC.detach()) if self.rotation_trick else x_NC
        statistics = {"quantization_loss": codebook.detach(), **token_statistics(tokens_N, self.codebook_size)}
        return RowsOutput(straight_through(codes_NC, carrier), tokens_N, loss, statistics)

    def observe(self, latents: Tensor, image_tokens: Tensor) -> None:
        """Counts and sums latents, where the table follows them or dead codes are to be moved."""
        if self.upkeep is not None:
            self.upkeep.observe(self.comparable(self.to_rows(latents)), image_tokens.flatten())

    def end_step(self, skip: Tensor) -> None:
        """Moves codes, see [`CodebookUpkeep`]."""
        if self.upkeep is not None:
            self.upkeep.end_step(self.codebook, skip)


def _rotated(x_NC: Tensor, codes_NC: Tensor) -> Tensor:
    """x times the fixed matrix that rotates and stretches it to its code: equal to the code but for rounding.

    With u = x/|x|, q = e/|e| and w = (u + q)/|u + q|: |e|/|x| (x - 2 (w.x) w + 2 (u.x) q), in which x alone carries
    a gradient. Where u = -q there is no such rotation: w is 0 there.
    """
    with torch.no_grad():
        u, q = F.normalize(x_NC, dim=1), F.normalize(codes_NC, dim=1)
        w = F.normalize(u + q, dim=1)
        stretch = codes_NC.norm(dim=1, keepdim=True) / x_NC.norm(dim=1, keepdim=True).clamp_min(1e-6)
    turned = x_NC - 2 * (x_NC * w).sum(1, keepdim=True) * w + 2 * (x_NC * u).sum(1, keepdim=True) * q
    return stretch * turned


__all__ = ["VQQuantizer"]
