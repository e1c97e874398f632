"""Where work runs: dtypes by name, the device of this process, and its rank among the others."""

import os

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def share(num_shards: int | None = None, shard_index: int | None = None) -> tuple[int, int]:
    """Number of processes and number of this one: as given, else as `accelerate launch` and `torchrun` say, else 1, 0.

    Raises:
        ValueError: only one of them is given, or they are out of range.
    """
    if (num_shards is None) != (shard_index is None):
        raise ValueError("num_shards and shard_index belong together: give both or none")
    if num_shards is None or shard_index is None:
        num_shards, shard_index = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index: expected 0 to num_shards - 1 = {num_shards - 1}, got {shard_index}")
    return num_shards, shard_index


def own_device(device: str) -> str:
    """The device of this process among several of one machine: "cuda" and "auto" become "cuda:<LOCAL_RANK>"."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(local) % torch.cuda.device_count()}"


__all__ = ["DTYPES", "own_device", "share"]
