"""Steps of a small generator in float64, on one rank or, as a program `generator_ranks.py FOLDER`, on two."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lgq_hf.tokens import AutoregressiveCollator, MaskedCollator
from tests.training.generators import CODES, KINDS, SIDE, a_recipe, a_step
from tests.training.steps import on_two_ranks

STEPS = 4
Batch = dict[str, Tensor]


def batches(kind: str, steps: int = STEPS, rows: int = 8) -> list[Batch]:
    """Random grids in three classes, the same in every process, collated."""
    rng = torch.Generator().manual_seed(2)
    collator: Any = MaskedCollator(CODES, 3) if kind == "masked" else AutoregressiveCollator(CODES, 3, shift=True)
    found = []
    for step in range(steps):
        grids = torch.randint(CODES, (rows, SIDE, SIDE), generator=rng)
        found.append(
            collator([{"image_tokens": grid, "id": f"{step} {n}", "label": n % 3} for n, grid in enumerate(grids)])
        )
    return found


def cut(batch: Batch, size: int) -> list[Batch]:
    """Passes of so many rows."""
    rows = len(batch["labels"])
    return [{name: one[first : first + size] for name, one in batch.items()} for first in range(0, rows, size)]


def run(kind: str, size: int, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Rows of the log and weights after four steps of this rank's rows in passes of `size`."""
    step = a_step(a_recipe(kind), dtype=torch.float64)
    rows = []
    for number, batch in enumerate(batches(kind)):
        own = cut(batch, len(batch["labels"]) // world_size)[rank]
        step(cut(own, size), number)
        rows.append(step.take_values())
    assert step.average is not None
    weights = {**step.model.state_dict(), **{f"average {k}": v for k, v in step.average.state_dict().items()}}
    return {"rows": rows, "weights": {name: tensor.clone() for name, tensor in weights.items()}}


def main(folder: Path) -> None:
    """Trains on this rank's half of each batch, once whole and once in two passes; leaves it in `rank-<r>.pt`."""
    rank = dist.get_rank()
    found = {(kind, size): run(kind, size, rank, 2) for kind in KINDS for size in (4, 2)}
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    on_two_ranks(lambda: main(Path(sys.argv[1])), Path(sys.argv[1]))
