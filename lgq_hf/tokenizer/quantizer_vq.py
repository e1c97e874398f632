"""Vector quantization by the nearest row of a table (VQ-VAE, arXiv 1711.00937; VQGAN, arXiv 2012.09841).

Shapes: N rows, C channels, K codes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .assignment import nearest_code
from .codebook_init import initial_centers
from .configuration_lgq import LGQConfig
from .quantizer_base import Quantizer, RowsOutput


class VQQuantizer(Quantizer):
    """Looks latents up in a table of K codes.

    `distance="sq_l2"`: the nearest code (taming-transformers). `"cosine"`: the code at the smallest angle; what is
    decoded is that code at length 1 (LlamaGen).

    Attributes:
        codebook: (K, C); stored as it was trained, not at length 1.
    """

    name = "vq"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        self.code_dim = config.quantizer_dim
        self.codebook_size = config.codebook_size
        self.distance = config.distance
        self.codebook = nn.Parameter(torch.empty(self.codebook_size, self.code_dim))

    def init_weights(self) -> None:
        """Small codes around 0, as the published tables start; training places them by `init_from`."""
        init.uniform_(self.codebook, -1 / self.codebook_size, 1 / self.codebook_size)

    @torch.no_grad()
    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Places the codes according to latents (B, C, h, w): see [`initial_centers`] for methods and errors."""
        self.codebook.copy_(initial_centers(self.to_rows(latents), self.codebook_size, method, generator))

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens (N,)."""
        return nearest_code(x_NC, self.codebook, distance=self.distance)

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens (N,) -> codes (N, C)."""
        table = F.normalize(self.codebook, dim=1) if self.distance == "cosine" else self.codebook
        return F.embedding(tokens_N, table)

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """Not defined yet: these quantizers serve converted checkpoints."""
        raise NotImplementedError(
            f"quantizer='{self.name}' encodes and decodes, and has no training loss: call model.eval(), or train with "
            "quantizer='lgq'"
        )


__all__ = ["VQQuantizer"]
