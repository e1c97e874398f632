"""Batches of pictures, in an order that depends on the seed alone: not on processes, workers or where a run began."""

import itertools
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from lgq_hf import LGQImageProcessor
from lgq_hf.images.stored import read_stored, stored_name
from training.crops import Crop, center_crop
from training.dataset_pictures import PictureStream
from training.numbered_loader import numbered_batches
from training.ordered_loader import check_numbers, check_shares
from training.pictures import Pictures
from training.samples import Batch, make_batch, none_readable
from training.stream_loader import stream_batches

_readable: weakref.WeakKeyDictionary[Any, dict[int, bool]] = weakref.WeakKeyDictionary()


def training_batches(
    pictures: Pictures | PictureStream,
    crop: Crop,
    processor: LGQImageProcessor,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Endless batches for one process.

    All samples of a run stand in one order: an epoch is a permutation of the pictures drawn from (seed, epoch), or the
    stream as it is shuffled by its own seed and the epoch. The n-th batch of a process holds the positions
    start + (n * world_size + rank) * batch_size + 0, 1, ... of it. So one process with batches of 8, two with batches
    of 4, and one with twice as many batches of 4 see the same samples, and a run goes on at any position with any
    number of processes. The crop is drawn from (seed, epoch, index), where index is the picture's number, or its
    position in the epoch of a stream.

    A picture that cannot be read is replaced by the one with the next number (after the last, the first), cut as in
    its own place in this epoch; in a stream by the next one that can be read.

    Args:
        pictures: numbered pictures or a stream, of `training.pictures.open_source`.
        crop: makes a square RGB picture of an RGB picture and a generator, always of one size.
        processor: its rescaling and normalisation are applied; its resizing, cropping and padding are not.
        batch_size: samples of one batch.
        seed: of order and crops.
        rank: number of this process, from 0.
        world_size: number of processes.
        start: position of the first sample, of all processes together.
        num_workers: processes that read ahead (0: none, pictures are read when they are asked for), or, for a stream,
            threads (at least one). Workers ignore SIGTERM and SIGINT, so that a process that is told to end can finish
            its step; they end with the iterator or with the process.
        pin_memory: hand over `pixel_values` in pinned memory, where there is an accelerator.

    Returns:
        Batches with pixel_values (batch_size,3,size,size) float32. Drop or `close()` the iterator to end its workers.

    Raises:
        ValueError: no pictures, numbers out of range, or, from the iterator, a thousand pictures in a row (or all)
            that cannot be read.
    """
    check_numbers(batch_size=(batch_size, 1), start=(start, 0), num_workers=(num_workers, 0))
    check_shares(rank, world_size)
    shares = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size, "start": start}
    pin = pin_memory and torch.accelerator.is_available()
    if isinstance(pictures, PictureStream):
        batches = stream_batches(pictures, crop, processor, **shares, num_threads=max(1, num_workers))
        return (_pinned(batch) for batch in batches) if pin else batches
    if not len(pictures):
        raise ValueError("the source holds no pictures: look at its path and split")
    return numbered_batches(pictures, crop, processor, **shares, num_workers=num_workers, pin_memory=pin)


def _pinned(batch: Batch) -> Batch:
    return batch._replace(pixel_values=batch.pixel_values.pin_memory())


def validation_batches(
    pictures: Pictures | PictureStream,
    size: int,
    processor: LGQImageProcessor,
    *,
    count: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Centre crops of `count` pictures that can be read, the same ones always, without flips.

    They are the first of numbered pictures in one fixed random order (folders and datasets are sorted, so that the
    first of them would be of one kind), and the first of a stream.

    Of these, process `rank` gets numbers rank, rank + world_size, ...: processes may have one picture more or less
    than others, and their last batch may be smaller, or there may be none. To know which can be read, the first call
    for a source decodes the pictures of all processes; later ones decode their own.

    Args:
        pictures: numbered pictures or a stream.
        size: of the crops, in pixels.
        processor: its rescaling and normalisation are applied; its resizing, cropping and padding are not.
        count: pictures over all processes; where the source has fewer that can be read, all of them.
        batch_size: pictures of a batch, at most.
        rank: number of this process, from 0.
        world_size: number of processes.

    Yields:
        Batches with pixel_values (B,3,size,size) float32 and names as ids; in `broken` what this call found broken.

    Raises:
        ValueError: numbers out of range; not one picture can be read, or one cannot be read any more.
    """
    check_numbers(size=(size, 1), count=(count, 1), batch_size=(batch_size, 1))
    check_shares(rank, world_size)
    broken: list[tuple[str, str]] = []
    found = _first_readable(pictures, count, rank, world_size, broken)
    rng = np.random.default_rng(0)  # draws flips, of which there are none
    following = list(itertools.islice(found, batch_size))
    while several := following:
        following = list(itertools.islice(found, batch_size))  # now, so that what it finds broken is not lost
        crops = [center_crop(picture, rng, size=size, flip=0.0) for _, picture in several]
        yield make_batch(crops, [name for name, _ in several], broken[:], processor)
        broken.clear()


def _first_readable(
    pictures: Pictures | PictureStream, count: int, rank: int, world_size: int, broken: list[tuple[str, str]]
) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of each of a process's share of the first `count` that can be read."""
    known = _readable.setdefault(pictures, {})
    position = 0
    for index, (name, read) in enumerate(_in_fixed_order(pictures)):
        own = position % world_size == rank
        if index not in known or (known[index] and own):
            try:
                picture = read()
            except ValueError as error:
                if index in known:
                    raise ValueError(f"{name()} could be read before, and now cannot: {error}") from error
                broken.append((name(), str(error)))
                known[index] = False
            else:
                known[index] = True
                if own:
                    yield name(), picture
        position += known[index]
        if position == count:
            return
    if not position:
        raise none_readable(broken) if broken else ValueError("the source of validation pictures is empty")


def _in_fixed_order(
    pictures: Pictures | PictureStream,
) -> Iterator[tuple[Callable[[], str], Callable[[], Image.Image]]]:
    """What gives the name, and what reads it, for each picture of a source."""
    if isinstance(pictures, PictureStream):
        for stored in pictures.records(None):
            yield partial(stored_name, stored), partial(read_stored, stored)
    else:
        for index in np.random.default_rng(0).permutation(len(pictures)).tolist():
            yield partial(pictures.name, index), partial(pictures.read, index)
