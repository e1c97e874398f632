"""Batches of numbered pictures: torch's workers read what a fixed order of keys names."""

import atexit
import itertools
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lgq_hf import LGQImageProcessor
from training.crops import Crop
from training.pictures import Pictures
from training.samples import MOST_IN_A_ROW, Batch, cut, make_batch, none_readable

_Key = tuple[int, int]  # (epoch, index)
_with_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # torch's iterators


def numbered_batches(
    pictures: Pictures,
    crop: Crop,
    processor: LGQImageProcessor,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    start: int,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """The endless batches that `training.loader.training_batches` describes, of numbered pictures."""
    loader = DataLoader(
        _Samples(pictures, crop, processor, seed),
        batch_size=None,
        sampler=_keys(len(pictures), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, start=start),
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


def _and_end_workers(iterator: Any) -> Iterator[Batch]:
    """What a torch iterator gives; its workers end with this one, even if the traceback of an error holds it."""
    try:
        yield from iterator
    finally:
        iterator._shutdown_workers()  # torch has no public name for it, and leaves it to __del__


class _Samples(Dataset[Batch]):
    """Makes the batch of a list of keys."""

    def __init__(self, pictures: Pictures, crop: Crop, processor: LGQImageProcessor, seed: int) -> None:
        self.pictures, self.crop, self.processor, self.seed = pictures, crop, processor, seed

    def __getitem__(self, keys: list[_Key]) -> Batch:
        broken: list[tuple[str, str]] = []
        samples = [self._readable(epoch, index, broken) for epoch, index in keys]
        return make_batch([crop for _, crop in samples], [name for name, _ in samples], broken, self.processor)

    def _readable(self, epoch: int, index: int, broken: list[tuple[str, str]]) -> tuple[str, Image.Image]:
        tried = []
        for _ in range(min(len(self.pictures), MOST_IN_A_ROW)):
            try:
                picture = self.pictures.read(index)
            except ValueError as error:
                tried.append((self.pictures.name(index), str(error)))
                index = (index + 1) % len(self.pictures)
                continue
            broken.extend(tried)
            return f"{self.pictures.name(index)}@{epoch}", cut(picture, self.crop, self.seed, epoch, index)
        raise none_readable(tried)


def _keys(size: int, *, batch_size: int, seed: int, rank: int, world_size: int, start: int) -> Iterator[list[_Key]]:
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
