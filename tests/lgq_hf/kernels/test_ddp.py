"""The operators under DistributedDataParallel, in two real processes."""

import importlib.util

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lgq_hf.tokenizer.assignment import soft_assign
from lgq_hf.tokenizer.quantizer_base import mean_over_ranks
from tests.lgq_hf.kernels.cases import draw
from tests.ranks import Ranks

BACKENDS = ["chunked", *(["triton"] if importlib.util.find_spec("triton") is not None else [])]


class Assign(nn.Module):
    """A loss of all outputs, over centers that are a parameter."""

    def __init__(self, centers_KC: Tensor, backend: str) -> None:
        super().__init__()
        self.centers = nn.Parameter(centers_KC)
        self.backend = backend

    def forward(self, x_NC: Tensor) -> Tensor:
        assigned = soft_assign(x_NC, self.centers, 0.5, backend=self.backend)  # type: ignore[arg-type]
        usage = mean_over_ranks(assigned.usage_K).square().sum()
        return (assigned.soft_codes_NC - 1).square().mean() + assigned.peak_N.mean() + len(self.centers) * usage


def gradient(x: Tensor, centers: Tensor, backend: str) -> Tensor:
    """That of the centers, from this rank's half of the rows."""
    model = nn.parallel.DistributedDataParallel(Assign(centers, backend))
    model(x.chunk(2)[dist.get_rank()]).backward()
    result = model.module.centers.grad
    del model  # its reducer must go before the processes go on
    dist.barrier()
    return result


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_agree_with_one_process(ranks: Ranks, backend: str) -> None:
    x, centers = (t.cpu() for t in draw("random", rows=40, codes=30, channels=6)[:2])
    first, second = ranks(gradient, x, centers, backend)
    assert torch.equal(first, second)
    model = Assign(centers, "reference")
    model(x).backward()
    torch.testing.assert_close(first, model.centers.grad, rtol=1e-4, atol=1e-7)
