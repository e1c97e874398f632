"""Where work runs: dtypes by name, the device of this process, and its rank among the others."""

import os

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


__all__ = ["DTYPES", "own_device", "world"]
