"""Where work runs and what it costs: dtypes by name, the device of this process, its rank, a clock."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def world(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank of this process and number of ranks: as given, else as `accelerate launch` and `torchrun` say, else 0, 1.

    Raises:
        ValueError: only one of them is given, or they are out of range.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size (shard_index and num_shards) belong together: give both or none")
    if rank is None or world_size is None:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank (shard_index): expected 0 to {world_size - 1}, of {world_size}, got {rank}")
    return rank, world_size


def own_device(device: str) -> str:
    """The device of this process among several of one machine: "cuda" and "auto" become "cuda:<LOCAL_RANK>"."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(local) % torch.cuda.device_count()}"


class Clock:
    """Times work on one device, batch after batch.

    The first batch, which sets up and may compile, is left out of the time where others follow.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._on_gpu = device, device.type == "cuda"
        self._batches: list[tuple[int, float]] = []
        self._peak = 0  # bytes on the GPU

    @contextmanager
    def around(self, pictures: int) -> Iterator[None]:
        """Times the block, which makes that many pictures, until the device has done its work."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
            self._peak = max(self._peak, torch.cuda.max_memory_allocated(self.device))
        self._batches.append((pictures, time.perf_counter() - start))

    def cost(self) -> dict[str, Any]:
        """What came out.

        Returns:
            `seconds_per_picture` and `timed_pictures`; `peak_memory_bytes`, `None` where the system does not tell, and
            as `peak_memory_of` whether that is all tensors on the GPU during this work, or the whole process since it
            began.

        Raises:
            ValueError: nothing was timed.
        """
        if not self._batches:
            raise ValueError("expected at least one batch to be timed, got none: use around() first")
        timed = self._batches[1:] or self._batches
        pictures = sum(count for count, _ in timed)
        return {
            "seconds_per_picture": sum(seconds for _, seconds in timed) / pictures,
            "timed_pictures": pictures,
            "peak_memory_bytes": self._peak if self._on_gpu else _peak_of_process(),
            "peak_memory_of": "tensors on the GPU" if self._on_gpu else "process",
        }


def _peak_of_process() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
