"""Batches of numbered samples in an order that depends on the seed alone; torch's workers make them."""

import atexit
import itertools
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

Key = tuple[int, int]  # (epoch, index)
_with_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # torch's iterators


def ordered_batches(
    samples: Dataset[Any],
    size: int,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    start: int,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Any]:
    """The endless batches of one process, in the order that `training.loader.training_batches` describes.

    Args:
        samples: makes the batch of a list of keys (epoch, index), index in [0, size).
        size: samples of an epoch.
        batch_size, seed, rank, world_size, start, num_workers, pin_memory: as there.
    """
    loader = DataLoader(
        samples,
        batch_size=None,
        sampler=_keys(size, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, start=start),
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # without one, torch's global generator would be moved
    )
    iterator: Any = iter(loader)
    if not num_workers:
        return iterator
    _with_workers.add(iterator)
    return _and_end_workers(iterator)


def check_numbers(**values: tuple[int, int]) -> None:
    """Refuses values below the lowest that is allowed; given as name=(value, lowest)."""
    for name, (value, lowest) in values.items():
        if value < lowest:
            raise ValueError(f"{name}: expected at least {lowest}, got {value}")


def check_shares(rank: int, world_size: int) -> None:
    """Refuses a process that is not one of them."""
    check_numbers(world_size=(world_size, 1), rank=(rank, 0))
    if rank >= world_size:
        raise ValueError(f"rank: expected less than world_size={world_size}, got {rank}")


def _and_end_workers(iterator: Any) -> Iterator[Any]:
    """What a torch iterator gives; its workers end with this one, even if the traceback of an error holds it."""
    try:
        yield from iterator
    finally:
        iterator._shutdown_workers()  # torch has no public name for it, and leaves it to __del__


def _keys(size: int, *, batch_size: int, seed: int, rank: int, world_size: int, start: int) -> Iterator[list[Key]]:
    """(epoch, index) of the samples of each batch of a process."""
    drawn, order = -1, np.empty(0, dtype=np.int64)
    for first in itertools.count(start + rank * batch_size, world_size * batch_size):
        keys = []
        for position in range(first, first + batch_size):
            epoch, offset = divmod(position, size)
            if epoch != drawn:
                drawn, order = epoch, np.random.default_rng([seed, epoch]).permutation(size)
            keys.append((epoch, int(order[offset])))
        yield keys


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_signals(_: int) -> None:
    """SIGTERM and SIGINT reach workers too when a group is meant; torch ends them by a message, or when orphaned."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """At exit multiprocessing sends SIGTERM to workers that are left, and waits: they must be gone before."""
    for iterator in list(_with_workers):
        iterator._shutdown_workers()
