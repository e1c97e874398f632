"""A tokenizer's images: where they come from, and batches of crops in an order that depends on the seed alone.

Neither the number of ranks, nor workers, nor where a run was resumed changes what stands at a position of that order.
"""

import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lgq_hf import LGQImageProcessor
from lgq_hf.images.loading import in_order, permutation
from lgq_hf.images.sources import DatasetSource, FolderSource, ImageSource, open_folder
from lgq_hf.images.stored import (
    Stored,
    load_parquet,
    load_split,
    read_stored,
    stored_name,
    tells_splits,
    undecoded,
)
from training.crops import Crop, center_crop

KINDS = ("corpus", "folder", "dataset", "parquet")
MOST_IN_A_ROW = 1000  # unreadable images that are passed over for one sample
Key = tuple[int, int]  # (epoch, index)
_log = logging.getLogger(__name__)


class ImageStream:
    """Undecoded images of a `datasets.IterableDataset`, epoch by epoch, in an order drawn from (seed, epoch).

    Args:
        dataset: one split, not shuffled.
        column: where its images are; raises ValueError where there are none.
        label: what messages call the dataset.
        shuffle_buffer: images among which the next one is drawn.
        seed: of the order.
    """

    def __init__(self, dataset: Any, column: str, label: str, *, shuffle_buffer: int, seed: int) -> None:
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer: expected at least 1 image, got {shuffle_buffer}")
        self.dataset, self.column, self.label = undecoded(dataset, column, label), column, label
        self.shuffle_buffer, self.seed = shuffle_buffer, seed

    def records(self, epoch: int | None) -> Iterator[Stored]:
        """All images once, for `read_stored`: in the order of an epoch, or (None) as they are stored."""
        dataset = self.dataset
        if epoch is not None:  # a copy each time: set_epoch changes all iterators of one object
            dataset = dataset.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
            dataset.set_epoch(epoch)
        for row in dataset:
            yield row[self.column]


def open_source(
    kind: str,
    path: str | Path,
    split: str,
    *,
    image_column: str = "image",
    repeat: Mapping[str, int] | None = None,
    streaming: bool = False,
    revision: str | None = None,
    name: str | None = None,
    shuffle_buffer: int = 10_000,
    seed: int = 0,
) -> ImageSource | ImageStream:
    """Opens one split of a source of images; none is decoded yet.

    Args:
        kind: "corpus": a folder that `training.corpus` built. "folder": images below a folder, in sorted order.
            "dataset": a folder written by `save_to_disk` of Hugging Face datasets, or what its `load_dataset` takes.
            "parquet": a file, folder or glob of parquet files, on this machine.
        path: of the source, or a dataset's name on the Hub.
        split: for "folder" the subfolder of that name. For "parquet" the files named `<split>-*.parquet` or
            `<split>.parquet`. Where no name tells a split, "train" is everything.
        image_column: of datasets and parquet: encoded images (datasets' Image, or bytes) or paths of files.
        repeat: of a corpus: how often its images come, by package; those that are not named come once.
        streaming: an `ImageStream`, for "dataset" and "parquet".
        revision: commit, branch or tag of a dataset on the Hub.
        name: configuration of a dataset that has several.
        shuffle_buffer: images among which a stream draws the next one; all of them are kept in memory, undecoded.
        seed: of a stream's shuffling.

    Raises:
        FileNotFoundError: there is no such corpus, folder or parquet file.
        ValueError: the split, column or kind does not exist, or an option does not belong to this kind.
        ModuleNotFoundError: "dataset" and "parquet" without the package datasets.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {list(KINDS)}, got {kind!r}")
    if kind != "dataset" and (revision or name):
        raise ValueError(f"revision and name are for kind 'dataset', got {revision=} and {name=} with kind {kind!r}")
    if kind != "corpus" and repeat is not None:
        raise ValueError(f"repeat is for kind 'corpus', whose images have packages, got kind {kind!r}: leave it out")
    if kind in ("corpus", "folder"):
        if streaming:
            raise ValueError(f"streaming is for kind 'dataset' and 'parquet', got kind {kind!r}: leave it out")
        return _open_corpus(Path(path), split, repeat or {}) if kind == "corpus" else _open_split(Path(path), split)
    if kind == "dataset":
        dataset = load_split(str(path), split, name=name, revision=revision, streaming=streaming)
    else:
        dataset = load_parquet(str(path), split, streaming=streaming)
    label = f"{path} ({split})"
    if streaming:
        return ImageStream(dataset, image_column, label, shuffle_buffer=shuffle_buffer, seed=seed)
    columns: Any = {"image_column": image_column, "label_column": None, "id_column": None, "keep": ()}
    return DatasetSource(dataset, kind, label, split, **columns)


def _open_corpus(corpus: Path, split: str, repeat: Mapping[str, int]) -> FolderSource:
    """The images of one split in the manifest's order; where one comes again, its id has a number behind it."""
    manifest = corpus / "manifest.jsonl"
    if not manifest.is_file():
        raise FileNotFoundError(f"no manifest.jsonl in {corpus}: build a corpus with `python -m training.corpus`")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        raise ValueError(f"split '{split}' of {corpus} is empty; it has {sorted({row['split'] for row in rows})}")
    packages = {row["package"] for row in chosen} if repeat else set()
    if unknown := sorted(set(repeat) - packages):
        raise ValueError(f"repeat: split '{split}' of {corpus} has no package {unknown}; it has {sorted(packages)}")
    turns = [(row["file"], turn) for row in chosen for turn in range(repeat.get(row.get("package"), 1))]
    if not turns:
        raise ValueError(f"repeat leaves no image of split '{split}' of {corpus}: {dict(repeat)}")
    ids = [f"{file} ({turn + 1})" if turn else file for file, turn in turns]
    return FolderSource(str(corpus), corpus, [file for file, _ in turns], ids=ids)


def _open_split(folder: Path, split: str) -> FolderSource:
    """The images below `folder/split`, or below `folder` where that is all there is."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: path must be a folder of images")
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if split in folders:
        folder = folder / split
    elif split != "train" or tells_splits(folders):
        raise ValueError(
            f"no folder '{split}' in {folder}, where there are {folders}: put the images of this split into "
            f"{folder / split}, or give another path or split"
        )
    return open_folder(str(folder), labels=False)


class UnreadableImages:
    """Counts the different unreadable images that one rank met, and lists each once, in a file and in the log.

    Args:
        path: file that `{"name", "reason"}` is appended to, one row of JSON for each image; the ranks of a run may
            share it, and then an image that several of them met stands there several times.
        max_share: in [0, 1]; more unreadable images than that share of all, and than ten, are an error.
        size: images there are; 0 where nobody knows (a stream): then those seen so far count.
    """

    ALWAYS_TOLERATED = 10

    def __init__(self, path: str | Path, max_share: float, size: int = 0) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share: expected a share in [0, 1], got {max_share}")
        self.path, self.max_share, self.size = Path(path), max_share, size
        self.reasons: dict[str, str] = {}
        self.seen = 0
        if self.path.exists():
            written = self.path.read_bytes()
            os.truncate(self.path, written.rfind(b"\n") + 1)  # a row that a kill cut short is written again

    def add(self, unreadable: Sequence[tuple[str, str]], seen: int) -> None:
        """Notes (name, reason) of the unreadable images of a batch of `seen` samples.

        Raises:
            ValueError: too many are unreadable by now.
        """
        self.seen += seen
        new = {name: reason for name, reason in unreadable if name not in self.reasons}
        if not new:
            return
        self.reasons |= new
        known = self.listed()  # by another rank, or before this run was resumed
        rows = [{"name": name, "reason": reason} for name, reason in new.items() if name not in known]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        for name, reason in new.items():
            _log.warning("%s cannot be read: %s", name, reason)
        if len(self.reasons) > max(self.ALWAYS_TOLERATED, self.max_share * max(self.seen, self.size)):
            last = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[-3:])
            raise ValueError(
                f"{len(self.reasons)} unreadable images among {self.seen} samples: a share of {self.max_share} is "
                f"tolerated, and {self.ALWAYS_TOLERATED} always. The last: {last}. All are listed in {self.path}: "
                "remove or repair them, or raise the share"
            )

    def listed(self) -> set[str]:
        """Names of all images that any rank of the run, before or after it was resumed, found unreadable."""
        if not self.path.exists():
            return set()
        return {json.loads(line)["name"] for line in self.path.read_text(encoding="utf-8").splitlines()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed process needs: {"seen": samples so far, "reasons": {name: reason}}."""
        return {"seen": self.seen, "reasons": dict(self.reasons)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`; images in it are not listed again."""
        self.seen, self.reasons = state["seen"], dict(state["reasons"])


class Batch(NamedTuple):
    """Samples of one micro-batch of one rank.

    Attributes:
        pixel_values: (B,3,size,size) float32, in the processor's normalised space.
        ids: the name of each sample's image; in training "name@epoch".
        unreadable: (name, reason) of each image that was met and could not be read.
    """

    pixel_values: Tensor
    ids: list[str]
    unreadable: list[tuple[str, str]]


def check_numbers(**values: tuple[int, int]) -> None:
    """Refuses values below the lowest that is allowed (ValueError); given as name=(value, lowest)."""
    for name, (value, lowest) in values.items():
        if value < lowest:
            raise ValueError(f"{name}: expected at least {lowest}, got {value}")


def ordered_keys(
    size: int, *, batch_size: int, seed: int, rank: int, world_size: int, start: int
) -> Iterator[list[Key]]:
    """(epoch, index) of the samples of each batch of a rank, endlessly.

    All samples of a run stand in one order: epoch after epoch, each a permutation of the indices drawn from (seed,
    epoch). The n-th batch of a rank holds the positions start + (n * world_size + rank) * batch_size + 0, 1, ... of
    it.
    """
    drawn, order = -1, np.empty(0, dtype=np.int64)
    for first in itertools.count(start + rank * batch_size, world_size * batch_size):
        keys = []
        for position in range(first, first + batch_size):
            epoch, offset = divmod(position, size)
            if epoch != drawn:
                drawn, order = epoch, permutation(size, seed, epoch)
            keys.append((epoch, int(order[offset])))
        yield keys


def training_batches(
    images: ImageSource | ImageStream,
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
) -> Generator[Batch, None, None]:
    """Endless batches for one rank, in the order of `ordered_keys`, or of the stream as its seed and epoch shuffle it.

    So one rank with batches of 8, two with batches of 4, and one with twice as many batches of 4 see the same samples,
    and a run resumes at any position with any number of ranks. The crop is drawn from (seed, epoch, index): the index
    is the image's number, or its position in the epoch of a stream.

    An image that cannot be read is replaced by the one with the next number (after the last, the first), cut as in its
    own place in this epoch; in a stream by the next one that can be read.

    Args:
        images: numbered images or a stream, of `open_source`.
        crop: makes a square RGB image of an RGB image and a generator, always of one size.
        processor: its rescaling and normalisation are applied; its resizing, cropping and padding are not.
        batch_size: samples of one batch.
        seed: of order and crops.
        rank: of this process, from 0.
        world_size: number of ranks.
        start: position of the first sample, of all ranks together.
        num_workers: processes that read ahead (0: none), or, for a stream, threads (at least one). They end with the
            iterator (`close()` it) or with the process; see `in_order`.
        pin_memory: hand over `pixel_values` in pinned memory, where there is an accelerator.

    Returns:
        Batches with pixel_values (batch_size,3,size,size) float32.

    Raises:
        ValueError: no images, numbers out of range, or, from the iterator, a thousand images in a row (or all) that
            cannot be read.
    """
    check_numbers(batch_size=(batch_size, 1), start=(start, 0), num_workers=(num_workers, 0))
    check_numbers(rank=(rank, 0), world_size=(world_size, rank + 1))
    where: Any = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size, "start": start}
    pin = pin_memory and torch.accelerator.is_available()
    if isinstance(images, ImageStream):
        batches = _stream_batches(images, crop, processor, **where, num_threads=max(1, num_workers))
        return (b._replace(pixel_values=b.pixel_values.pin_memory()) for b in batches) if pin else batches
    if not len(images):
        raise ValueError("the source holds no images: look at its path and split")
    samples = _Samples(images, crop, processor, seed)
    return in_order(samples, ordered_keys(len(images), **where), num_workers=num_workers, pin_memory=pin)


def validation_batches(
    images: ImageSource | ImageStream,
    size: int,
    processor: LGQImageProcessor,
    *,
    count: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Centre crops of `count` images, the same ones always, without flips; those that cannot be read are left out.

    They are the first of numbered images in one fixed random order (folders and datasets are sorted, so that the
    first of them would be of one kind), and the first of a stream. Of these, rank r gets numbers r, r + world_size,
    ...: ranks may have one image more or less than others, and their last batch may be smaller, or there may be none.

    Args:
        images: numbered images or a stream.
        size: of the crops, in pixels.
        processor: its rescaling and normalisation are applied; its resizing, cropping and padding are not.
        count: images over all ranks; where the source has fewer, all of them.
        batch_size: images of a batch, at most.
        rank: of this process, from 0.
        world_size: number of ranks.

    Yields:
        Batches with pixel_values (B,3,size,size) float32 and names as ids.

    Raises:
        ValueError: numbers out of range.
    """
    check_numbers(size=(size, 1), count=(count, 1), batch_size=(batch_size, 1))
    no_flips = np.random.default_rng(0)
    ready: list[tuple[str, Image.Image]] = []  # waits for what is found unreadable after it
    crops: list[tuple[str, Image.Image]] = []
    unreadable: list[tuple[str, str]] = []
    for name, read in itertools.islice(_in_fixed_order(images), rank, count, world_size):
        try:
            crops.append((name, center_crop(read(), no_flips, size=size, flip=0.0)))
        except ValueError as error:
            unreadable.append((name, str(error)))
        if len(crops) == batch_size:
            if ready:
                yield _make_batch(ready, unreadable, processor)
                unreadable = []
            ready, crops = crops, []
    for samples in filter(None, (ready, crops)):
        yield _make_batch(samples, unreadable, processor)
        unreadable = []


def _in_fixed_order(images: ImageSource | ImageStream) -> Iterator[tuple[str, Any]]:
    """Name, and what reads it, of each image of a source."""
    if isinstance(images, ImageStream):
        for stored in images.records(None):
            yield stored_name(stored), lambda stored=stored: read_stored(stored)
    else:
        for index in np.random.default_rng(0).permutation(len(images)).tolist():
            yield images.id(index), lambda index=index: images.read(index)


def _make_batch(
    samples: Sequence[tuple[str, Image.Image]], unreadable: list[tuple[str, str]], processor: LGQImageProcessor
) -> Batch:
    """Normalises RGB crops of one size; the processor's own resizing, cropping and padding is left out."""
    crops = [crop for _, crop in samples]
    made = processor(crops, do_resize=False, do_center_crop=False, do_pad=False, return_tensors="pt")
    return Batch(made["pixel_values"], [name for name, _ in samples], unreadable)


def _none_readable(unreadable: Sequence[tuple[str, str]]) -> ValueError:
    """The error for a sample that no image can be found for; `unreadable` are the images that were tried."""
    (first, _), (last, reason) = unreadable[0], unreadable[-1]
    return ValueError(
        f"{len(unreadable)} images in a row, from {first} to {last}, cannot be read (the last: {reason}): expected "
        "images that Pillow opens; look at the source's path and column"
    )


def _cut(image: Image.Image, crop: Crop, seed: int, epoch: int, index: int) -> Image.Image:
    """The crop of image `index` in an epoch: it depends on (seed, epoch, index) and on nothing else."""
    return crop(image, np.random.default_rng([seed, epoch, index]))


class _Samples(Dataset[Batch]):
    """Makes the batch of a list of keys."""

    def __init__(self, images: ImageSource, crop: Crop, processor: LGQImageProcessor, seed: int) -> None:
        self.images, self.crop, self.processor, self.seed = images, crop, processor, seed

    def __getitem__(self, keys: list[Key]) -> Batch:
        unreadable: list[tuple[str, str]] = []
        samples = [self._readable(epoch, index, unreadable) for epoch, index in keys]
        return _make_batch(samples, unreadable, self.processor)

    def _readable(self, epoch: int, index: int, unreadable: list[tuple[str, str]]) -> tuple[str, Image.Image]:
        tried = []
        for _ in range(min(len(self.images), MOST_IN_A_ROW)):
            try:
                image = self.images.read(index)
            except ValueError as error:
                tried.append((self.images.id(index), str(error)))
                index = (index + 1) % len(self.images)
                continue
            unreadable += tried
            return f"{self.images.id(index)}@{epoch}", _cut(image, self.crop, self.seed, epoch, index)
        raise _none_readable(tried)


class _Record(NamedTuple):
    epoch: int
    number: int  # in the order of its epoch
    stored: Stored


class _Sample(NamedTuple):
    name: str
    epoch: int
    crop: Image.Image | None  # None where the image cannot be read
    reason: str


def _stream_batches(
    stream: ImageStream,
    crop: Crop,
    processor: LGQImageProcessor,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    start: int,
    num_threads: int,
) -> Generator[Batch, None, None]:
    """The batches of `training_batches` of a stream, read in order by one thread and decoded by others.

    Each rank reads all of the stream, undecoded, and decodes its own share: while one batch is used, the next one is
    decoded and the one after it read, so that 3 * world_size * batch_size undecoded images are held. A datasets stream
    would give each worker process of a torch DataLoader other shards; threads leave its order alone. What stands at a
    position depends on nothing before it.
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
            image = read_stored(record.stored)
        except ValueError as error:
            return _Sample(name, record.epoch, None, str(error))
        return _Sample(name, record.epoch, _cut(image, crop, seed, record.epoch, record.number), "")

    def readable(sample: _Sample, offset: int, unreadable: list[tuple[str, str]]) -> tuple[str, Image.Image]:
        """The sample, or the next one after `offset` in the chunks that can be read."""
        tried = []
        while sample.crop is None:
            tried.append((sample.name, sample.reason))
            if len(tried) == MOST_IN_A_ROW:
                raise _none_readable(tried)
            offset += 1
            number, within = divmod(offset, chunk_size)
            sample = decode(chunk(number)[within])
        unreadable += tried
        return f"{sample.name}@{sample.epoch}", sample.crop

    try:
        while True:
            read_ahead(3)
            while len(decoding) < 2:
                own = chunk(len(decoding))[first : first + batch_size]
                decoding.append([decoders.submit(decode, record) for record in own])
            unreadable: list[tuple[str, str]] = []
            futures = enumerate(decoding.popleft())
            samples = [readable(future.result(), first + number, unreadable) for number, future in futures]
            chunks.popleft()
            yield _make_batch(samples, unreadable, processor)
    finally:
        for pool in (reader, decoders):
            pool.shutdown(wait=False, cancel_futures=True)


def _endless_records(stream: ImageStream, start: int) -> Iterator[_Record]:
    """All epochs from position `start` on; once the first one was read, its length tells which to leave out."""
    epoch, skip = 0, start
    while True:
        length = 0
        for number, stored in enumerate(stream.records(epoch)):
            length = number + 1
            if number >= skip:
                yield _Record(epoch, number, stored)
        if not length:
            raise ValueError(f"{stream.label} holds no images: look at the source's path and split")
        epochs, skip = divmod(skip, length)
        epoch += max(1, epochs)
        if not epochs:
            skip = 0
