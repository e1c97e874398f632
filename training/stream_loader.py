"""Batches of a stream: read in order by one thread, decoded by others."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from lgq_hf import LGQImageProcessor
from lgq_hf.images.stored import Stored, read_stored, stored_name
from training.crops import Crop
from training.dataset_pictures import PictureStream
from training.samples import MOST_IN_A_ROW, Batch, cut, make_batch, none_readable


class _Record(NamedTuple):
    epoch: int
    number: int  # in the order of its epoch
    stored: Stored


class _Sample(NamedTuple):
    name: str
    epoch: int
    crop: Image.Image | None  # None where the picture cannot be read
    reason: str


def stream_batches(
    stream: PictureStream,
    crop: Crop,
    processor: LGQImageProcessor,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    start: int,
    num_threads: int,
) -> Iterator[Batch]:
    """The endless batches that `training.loader.training_batches` describes, of a stream.

    Each process reads all of the stream, undecoded, and decodes its own share: while one batch is used, the next one
    is decoded and the one after it read, so that 3 * world_size * batch_size undecoded pictures are held. A datasets
    stream would give each worker process of a torch DataLoader other shards; threads leave its order alone.

    A picture that cannot be read is replaced by the next one in the stream (at the end of an epoch, the next epoch's
    first) that can, cut as in its own place: what stands at a position depends on nothing before it.
    """
    records = _endless_records(stream, start)
    chunk_size, first = world_size * batch_size, rank * batch_size
    reader, decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(num_threads)
    chunks: deque[Future[list[_Record]]] = deque()
    decoding: deque[list[Future[_Sample]]] = deque()

    def read_ahead(count: int) -> None:
        while len(chunks) < count:
            chunks.append(reader.submit(lambda: list(itertools.islice(records, chunk_size))))

    def chunk(number: int) -> list[_Record]:
        """A chunk that may not have been asked for yet; the current one has number 0."""
        read_ahead(number + 1)
        return chunks[number].result()

    def decode(record: _Record) -> _Sample:
        name = stored_name(record.stored)
        try:
            picture = read_stored(record.stored)
        except ValueError as error:
            return _Sample(name, record.epoch, None, str(error))
        return _Sample(name, record.epoch, cut(picture, crop, seed, record.epoch, record.number), "")

    def readable(sample: _Sample, offset: int, broken: list[tuple[str, str]]) -> tuple[str, Image.Image]:
        """The sample, or the next one after `offset` in the chunks that can be read."""
        tried = []
        while sample.crop is None:
            tried.append((sample.name, sample.reason))
            if len(tried) == MOST_IN_A_ROW:
                raise none_readable(tried)
            offset += 1
            number, within = divmod(offset, chunk_size)
            sample = decode(chunk(number)[within])
        broken.extend(tried)
        return f"{sample.name}@{sample.epoch}", sample.crop

    try:
        while True:
            read_ahead(3)
            while len(decoding) < 2:
                own = chunk(len(decoding))[first : first + batch_size]
                decoding.append([decoders.submit(decode, record) for record in own])
            broken: list[tuple[str, str]] = []
            samples = [
                readable(future.result(), first + number, broken) for number, future in enumerate(decoding.popleft())
            ]
            batch = make_batch([crop for _, crop in samples], [name for name, _ in samples], broken, processor)
            chunks.popleft()
            yield batch
    finally:
        for pool in (reader, decoders):
            pool.shutdown(wait=False, cancel_futures=True)


def _endless_records(stream: PictureStream, start: int) -> Iterator[_Record]:
    """All epochs from position `start` on; once the first one was read, its length tells which to leave out."""
    epoch, skip = 0, start
    while True:
        length = 0
        for number, stored in enumerate(stream.records(epoch)):
            length = number + 1
            if number >= skip:
                yield _Record(epoch, number, stored)
        if not length:
            raise ValueError(f"{stream.label} holds no pictures: look at the source's path and split")
        epochs, skip = divmod(skip, length)
        epoch += max(1, epochs)
        if not epochs:
            skip = 0
