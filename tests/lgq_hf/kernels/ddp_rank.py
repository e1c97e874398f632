"""The two processes of test_ddp.py: soft_assign inside DistributedDataParallel, each on its half of the rows."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lgq_hf.tokenizer.assignment import soft_assign
from lgq_hf.tokenizer.quantizer_base import mean_over_ranks


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


def main(folder: Path, rank: int, backends: list[str]) -> None:
    """Leaves the gradient of the centers in `<backend>.<rank>.pt`."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    for backend in backends:
        model = nn.parallel.DistributedDataParallel(Assign(inputs["centers"].clone(), backend))
        model(inputs["x"].chunk(2)[rank]).backward()
        torch.save(model.module.centers.grad, folder / f"{backend}.{rank}.pt")
        del model  # its reducer must go before the processes part, or the last one waits for ever now and then
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    child = os.fork()  # what is imported above takes seconds, once
    main(Path(sys.argv[1]), int(child == 0), sys.argv[2:])
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
