"""Index backpropagation quantization (arXiv 2412.02692; TencentARC/SEED-Voken).

Shapes: N rows, C channels, K codes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .configuration_lgq import LGQConfig
from .quantizer_base import RowsOutput, entropy, mean_or_zero, straight_through, token_statistics
from .quantizer_vq import VQQuantizer

_BLOCK = 2**22  # numbers in an N x K matrix that is held at once
_CODEBOOK_WEIGHT = 0.25  # published (its beta stands at the codebook's term)


class IBQQuantizer(VQQuantizer):
    """The code with the largest scalar product, z . e_k, wins: no norm of code or latent enters.

    With s = softmax_k(z . e_k) and a = onehot(k*) + s - sg[s], the code passed on is z^ = sum_k a_k e_k: its value is
    e = e_k*, and its gradient reaches all codes and z through s, and e itself. Loss, means over rows and channels:

        (z^ - z)^2 + commitment_weight (sg[e] - z)^2 + 0.25 (e - sg[z])^2 + entropy_weight (E_n H[p_n] - H[E_n p_n])

    with p = softmax_k(z . e_k / entropy_temperature). The matrix of N x K products is computed block by block, and
    again in the backward pass.
    """

    name = "ibq"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__(config)
        self.entropy_weight = config.entropy_weight
        self.entropy_temperature = config.entropy_temperature

    @property
    def needs_usage(self) -> bool:
        """Where the entropy term has a weight."""
        return bool(self.entropy_weight)

    def usages(self, x_NC: Tensor) -> list[Tensor]:
        """See [`Quantizer.usages`]: the mean of p."""
        blocks, codebook_KC = x_NC.split(max(1, _BLOCK // self.codebook_size)), self.codebook.to(x_NC)
        sums = [F.softmax(block @ codebook_KC.T / self.entropy_temperature, dim=1).sum(0) for block in blocks]
        return [torch.stack(sums).sum(0) / max(1, x_NC.shape[0])]

    def _block(self, x_NC: Tensor, tokens_N: Tensor, codebook_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z^ (n, C) of a block of rows, the sum of the entropies of p, and the sum of p (K,)."""
        logits = x_NC @ codebook_KC.T
        soft = F.softmax(logits, dim=1)
        one_hot = F.one_hot(tokens_N, self.codebook_size).to(soft)
        through = (one_hot + soft - soft.detach()) @ codebook_KC
        if not self.entropy_weight:
            return through, logits.new_zeros(()), logits.new_zeros(self.codebook_size)
        log_p = F.log_softmax(logits / self.entropy_temperature, dim=1)
        return through, -(log_p.exp() * log_p).sum(), log_p.exp().sum(0)

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """(N, C) latents -> codes, tokens, loss and statistics of a training step."""
        rows = max(1, x_NC.shape[0])
        tokens_N = self.assign_rows(x_NC)
        codes_NC, codebook_KC = self.lookup_rows(tokens_N), self.codebook.to(x_NC)
        size = max(1, _BLOCK // self.codebook_size)
        pairs = zip(x_NC.split(size), tokens_N.split(size), strict=True)
        blocks = [checkpoint(self._block, *pair, codebook_KC, use_reentrant=False) for pair in pairs]
        through_NC = torch.cat([block[0] for block in blocks])
        through_NC = straight_through(codes_NC, through_NC)
        row_entropy = torch.stack([block[1] for block in blocks]).sum() / rows
        (usage_K,) = self.over_step([torch.stack([block[2] for block in blocks]).sum(0) / rows])
        codebook = mean_or_zero((codes_NC - x_NC.detach()).square())
        loss = (
            mean_or_zero((through_NC - x_NC).square())
            + self.commitment_weight * mean_or_zero((codes_NC.detach() - x_NC).square())
            + _CODEBOOK_WEIGHT * codebook
            + self.entropy_weight * (row_entropy - entropy(usage_K))
        )
        statistics = {
            "quantization_loss": codebook.detach(),
            "row_entropy": row_entropy.detach(),
            "usage_entropy": entropy(usage_K).detach(),
            **token_statistics(tokens_N, self.codebook_size),
        }
        return RowsOutput(through_NC, tokens_N, loss, statistics)


__all__ = ["IBQQuantizer"]
