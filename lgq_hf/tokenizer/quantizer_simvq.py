"""SimVQ (arXiv 2411.02038; youngsheen/SimVQ): a frozen table seen through one learned linear map.

Shapes: N rows, C channels, K codes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .assignment import nearest_code
from .configuration_lgq import LGQConfig
from .quantizer_base import RowsOutput
from .quantizer_vq import VQQuantizer


class SimVQQuantizer(VQQuantizer):
    """The nearest of the projected codes, W e_k + b.

    With `learn_projection` the table e is drawn once, normal with standard deviation C^-1/2, and stays; W and b learn,
    by the loss of [`VQQuantizer`] on the projected codes. Without it `codebook` holds the projected codes, computed
    once, as in converted checkpoints: these do not train.
    """

    name = "simvq"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__(config)
        # of the quantizer itself and not of a layer in it, so that whatever moves its weights about moves these too
        learned, dim = config.learn_projection, self.code_dim
        self.projection = nn.Parameter(torch.empty(dim, dim)) if learned else None
        self.projection_bias = nn.Parameter(torch.empty(dim)) if learned else None

    def freeze(self) -> None:
        """Takes the gradient from the table, which stays."""
        self.codebook.requires_grad_(False)

    def init_weights(self) -> None:
        """The table that stays, or a place for a product; the projection starts as a linear layer does."""
        init.normal_(self.codebook, std=self.code_dim**-0.5)
        if self.projection is not None and self.projection_bias is not None:
            init.kaiming_uniform_(self.projection, a=math.sqrt(5))
            init.uniform_(self.projection_bias, -(self.code_dim**-0.5), self.code_dim**-0.5)

    @torch.no_grad()
    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Places a table without projection as in [`VQQuantizer`]; with one there is nothing to place."""
        if self.projection is None:
            super().init_from(latents, method, generator)

    def _table(self) -> Tensor:
        if self.projection is None:
            return self.codebook
        return F.linear(self.codebook, self.projection, self.projection_bias)

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens (N,)."""
        return nearest_code(x_NC, self._table())

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens (N,) -> codes (N, C)."""
        return F.embedding(tokens_N, self._table())

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """(N, C) latents -> codes, tokens, loss and statistics of a training step.

        Raises:
            ValueError: without `learn_projection`.
        """
        if self.projection is None:
            raise ValueError(
                "this SimVQ table is a product that was computed once and does not train: call model.eval(), or train "
                "a model with learn_projection=True"
            )
        return super().train_rows(x_NC)


__all__ = ["SimVQQuantizer"]
