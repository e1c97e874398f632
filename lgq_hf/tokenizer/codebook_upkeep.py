"""What changes a codebook besides gradients: moving averages of latents, and moving codes that nothing falls to.

Shapes: N rows of an optimizer step over all passes and processes, C channels, K codes.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_lgq import LGQConfig

_SMOOTHING = 1e-5  # of even use


class CodebookUpkeep(nn.Module):
    """The moving use of each code, and what follows from it at the end of an optimizer step.

    With decay g, n_k of the N rows at code k, and m_k the sum of these:

        share_k <- g share_k + (1 - g) n_k / N          mean_k <- g mean_k + (1 - g) m_k / N
        e_k = mean_k / share_k, share_k smoothed by 1e-5 of even use     (van den Oord et al. 2017, appendix A.1)

    A code with share_k < `dead_below` / K is moved onto one of the step's rows, with the share of even use
    (Dhariwal et al. 2020, section 3.1; threshold in units of even use, so that it suits any K and batch). No two codes
    move onto one row; with more dead codes than rows the last ones wait. Rows are taken at even distances, beginning
    at one that depends on the step alone, and in turns from the processes: so a step's *averages* do not depend on how
    many processes share it, the rows that dead codes move to do.

    An optimizer's moments of a code that was moved stay as they are.

    Attributes:
        shares_K: moving share of the rows.
        means_KC: moving mean of rows at a code, over all N; only with `averages`.
        steps: end_step calls that were not called off.
    """

    shares_K: Tensor
    means_KC: Tensor | None
    steps: Tensor

    def __init__(self, codebook_size: int, code_dim: int, *, decay: float, dead_below: float, averages: bool) -> None:
        super().__init__()
        self.decay, self.dead_below = decay, dead_below
        self.register_buffer("shares_K", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("steps", torch.zeros(()))  # fp32 as all that travels with the codebook
        self.register_buffer("means_KC", torch.zeros(codebook_size, code_dim) if averages else None)
        self._seen: list[tuple[Tensor, Tensor | None, Tensor]] = []

    @classmethod
    def of(cls, config: LGQConfig) -> "CodebookUpkeep | None":
        """What a configuration asks for; `None` where gradients alone change the codebook."""
        averages = config.codebook_update == "ema"
        if not averages and not config.dead_code_threshold:
            return None
        return cls(
            config.codebook_size,
            config.quantizer_dim,
            decay=float(config.codebook_decay),
            dead_below=float(config.dead_code_threshold),
            averages=averages,
        )

    def init_weights(self) -> None:
        """Even use; see `restart` for the means."""
        init.constant_(self.shares_K, 1 / self.shares_K.shape[0])
        init.zeros_(self.steps)
        if self.means_KC is not None:
            init.zeros_(self.means_KC)

    @torch.no_grad()
    def restart(self, codebook_KC: Tensor) -> None:
        """Even use of a codebook that was placed anew."""
        self.shares_K.fill_(1 / self.shares_K.shape[0])
        if self.means_KC is not None:
            self.means_KC.copy_(codebook_KC / self.shares_K.shape[0])

    @torch.no_grad()
    def observe(self, x_NC: Tensor, tokens_N: Tensor) -> None:
        """Takes in the rows of one pass and their codes."""
        x_NC = x_NC.detach().to(self.shares_K.dtype)
        counts_K = torch.zeros_like(self.shares_K)
        counts_K.index_add_(0, tokens_N, torch.ones_like(tokens_N, dtype=counts_K.dtype))
        sums_KC = None
        if self.means_KC is not None:
            sums_KC = torch.zeros_like(self.means_KC).index_add_(0, tokens_N, x_NC)
        self._seen.append((counts_K, sums_KC, x_NC))

    @torch.no_grad()
    def end_step(self, codebook_KC: Tensor, skip: Tensor) -> None:
        """Changes `codebook_KC` (K, C) in place by what was taken in since the last call, unless `skip`."""
        seen, self._seen = self._seen, []
        rows_NC = torch.cat([rows for _, _, rows in seen]) if seen else self.shares_K.new_zeros(0, 1)
        if not rows_NC.shape[0]:
            return
        counts_K = _sum_over_ranks(torch.stack([counts for counts, _, _ in seen]).sum(0))
        total, codes = counts_K.sum(), counts_K.shape[0]
        shares_K = self.decay * self.shares_K + (1 - self.decay) * counts_K / total
        means_KC, moved_KC = None, codebook_KC
        if self.means_KC is not None:
            # a table that was loaded, and not placed by `init_from`, is what the first step begins with
            before_KC = torch.where(self.steps == 0, self.shares_K[:, None] * codebook_KC, self.means_KC)
            sums_KC = _sum_over_ranks(torch.stack([sums for _, sums, _ in seen if sums is not None]).sum(0))
            means_KC = self.decay * before_KC + (1 - self.decay) * sums_KC / total
            moved_KC = means_KC / ((shares_K + _SMOOTHING / codes) / (1 + _SMOOTHING))[:, None]
        if self.dead_below:
            dead_K, chosen_KC = self._some_rows(shares_K < self.dead_below / codes, rows_NC)
            shares_K = torch.where(dead_K, 1 / codes, shares_K)
            moved_KC = torch.where(dead_K[:, None], chosen_KC, moved_KC)
            if means_KC is not None:
                means_KC = torch.where(dead_K[:, None], chosen_KC / codes, means_KC)
        codebook_KC.copy_(torch.where(skip, codebook_KC, moved_KC))
        self.shares_K.copy_(torch.where(skip, self.shares_K, shares_K))
        if self.means_KC is not None and means_KC is not None:
            self.means_KC.copy_(torch.where(skip, self.means_KC, means_KC))
        self.steps.add_(~skip)

    def _some_rows(self, dead_K: Tensor, rows_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the dead codes move (K,), and a row for each (K, C), of a code that does not move any.

        The same on all processes. The host does not wait, and nothing random is kept.
        """
        count, rank = (dist.get_world_size(), dist.get_rank()) if _several_ranks() else (1, 0)
        rows = rows_NC.shape[0]
        turn_K = dead_K.long().cumsum(0) - 1  # number of a code among the dead
        dead_K = dead_K & (turn_K < rows * count)
        each = (dead_K.sum() + count - 1) // count  # of each process, at most
        apart = (rows // each.clamp_min(1)).clamp_min(1)
        number_K = (turn_K.clamp_min(0) // count * apart + self.steps.long() * 40503) % rows
        mine_K = dead_K & (turn_K % count == rank)
        return dead_K, _sum_over_ranks(torch.where(mine_K[:, None], rows_NC[number_K], 0.0))


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    if _several_ranks():
        dist.all_reduce(tensor)
    return tensor


__all__ = ["CodebookUpkeep"]
