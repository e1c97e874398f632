"""What worker processes make, in an order that does not depend on them: the one loader of images and of tokens."""

import atexit
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lgq_hf.images.sources import ID, ImageSource
from lgq_hf.images.views import Grid, Preprocessing, cut_views
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor

Key = tuple[int, int, int]  # number of a file, first picture, end
_PREFETCHED = 4  # chunks that a worker reads ahead


@dataclass
class Picture:
    """One picture of a chunk.

    Attributes:
        columns: id, label and kept columns of all its rows.
        size: height and width in pixels before padding.
        shape: of its views, (V,3,H,W); empty where it could not be read.
        error: why it could not be read, or "".
    """

    columns: dict[str, Any]
    size: Grid
    shape: tuple[int, ...]
    error: str


@dataclass
class Chunk:
    """A run of pictures of one file; `pixels` holds the views of all of them one after another, flat, uint8."""

    file: int
    pictures: list[Picture]
    pixels: Tensor

    def pin_memory(self) -> "Chunk":
        """Called by torch where there is an accelerator."""
        return Chunk(self.file, self.pictures, self.pixels.pin_memory())


class _Chunks(Dataset[Chunk]):
    """Makes the chunk of a key."""

    def __init__(self, source: ImageSource, processor: LGQImageProcessor, preprocessing: Preprocessing) -> None:
        self.source, self.processor, self.preprocessing = source, processor, preprocessing

    def __getitem__(self, key: Key) -> Chunk:
        file, start, stop = key
        pictures, pixels = [], []
        for index in range(start, stop):
            columns = {ID: self.source.id(index), **self.source.columns(index)}
            try:
                views, size = cut_views(self.source.read(index), self.processor, self.preprocessing)
            except ValueError as error:
                pictures.append(Picture(columns, (0, 0), (), str(error).splitlines()[0]))
            else:
                pictures.append(Picture(columns, size, views.shape, ""))
                pixels.append(views.reshape(-1))
        flat = np.concatenate(pixels) if pixels else np.empty(0, np.uint8)
        return Chunk(file, pictures, torch.from_numpy(flat))


def chunks(
    source: ImageSource,
    processor: LGQImageProcessor,
    preprocessing: Preprocessing,
    keys: Sequence[Key],
    *,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Chunk]:
    """The chunks of `keys` in their order, read ahead by `num_workers` processes (0: read when they are asked for)."""
    return in_order(
        _Chunks(source, processor, preprocessing),
        keys,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetched=_PREFETCHED,
    )


def in_order(
    made: Dataset[Any], keys: Iterable[Any], *, num_workers: int, pin_memory: bool, prefetched: int = 2
) -> Generator[Any, None, None]:
    """`made[key]` for each key, in the order of the keys.

    Args:
        made: makes a batch of a key.
        keys: endless or not.
        num_workers: processes that make them ahead (0: made when they are asked for). They end with the iterator
            (close it, or drop it) or with this process. They ignore SIGTERM and SIGINT, so that a process that is
            told to end, as schedulers tell all of a job, can finish what it does.
        pin_memory: of tensors that go to an accelerator.
        prefetched: batches that each worker makes ahead.
    """
    loader = DataLoader(
        made,
        batch_size=None,
        sampler=keys,
        num_workers=num_workers,
        prefetch_factor=prefetched if num_workers else None,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # without one, torch's global generator would be moved
    )
    iterator: Any = iter(loader)
    if not num_workers:
        yield from iterator
        return
    end = iterator._shutdown_workers  # torch has no public name for it, and leaves it to __del__
    atexit.register(end)  # else multiprocessing would wait at exit for workers that ignore its signal
    try:
        yield from iterator
    finally:  # now, even if the traceback of an error holds the iterator
        end()
        atexit.unregister(end)


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, (size,) int64: drawn from (seed, epoch), the same on every rank."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def _unchanged(batch: Any) -> Any:
    return batch


def _ignore_signals(_: int) -> None:
    """A signal to all processes of a job is for the main one: it ends its workers, and they end without it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


__all__ = ["Chunk", "Key", "Picture", "chunks", "in_order", "permutation"]
