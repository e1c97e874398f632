"""The processes of one evaluation: each sees its share of the pictures, and sums of all of them are the result."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lgq_hf.runtime import world

Value = TypeVar("Value")
_PATIENCE = timedelta(hours=2)  # how long the first to finish waits for the last
# CPU tensors and objects travel by the first, tensors on a GPU by the second
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True)
class Processes:
    """Number of processes, number of this one, and what they talk by (`None` where there is one)."""

    count: int = 1
    rank: int = 0
    backend: str | None = None

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, of any one shape and dtype; in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes in the order of their numbers; they are pickled."""
        values: list[Any] = [value]
        if self.count > 1:
            values = [None] * self.count
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, or the ValueError that it meets, in all of them; the others wait."""
        values: list[Any] = [None, None]
        if self.rank == 0:
            try:
                values[0] = make()
            except ValueError as error:
                values[1] = error
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        if values[1] is not None:
            raise values[1]
        return values[0]


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun or accelerate launch started, or that the caller joined by torch.distributed.

    Args:
        device: of this process's model. On a CPU they talk by gloo, on GPUs by nccl.

    Raises:
        ValueError: RANK and WORLD_SIZE contradict each other, or the launcher did not say where processes meet.
    """
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_world_size(), dist.get_rank(), str(dist.get_backend()))
        return
    rank, count = world()
    if count == 1:
        yield Processes()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={count}, but {' and '.join(missing)} not set: start the processes by torchrun or accelerate "
            "launch, or take WORLD_SIZE out of the environment"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = _BACKENDS[device.type]
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes(count, rank, backend)
    finally:
        dist.destroy_process_group()


__all__ = ["Processes", "processes"]
