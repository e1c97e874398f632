"""Token shards of a whole source: this process's files, one after another, each whole or not there.

Processes share nothing but the output folder. Which images a file holds, and which images go through the model
together, is decided by the plan; a process takes every n-th file, passes over those that are finished, and who finds
all files finished writes the manifest. So a job may be killed and started again, with another number of processes
too, and ends with the same bytes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgq_hf.checkpoint.loading import Reference
from lgq_hf.images.loading import Chunk, Key, chunks
from lgq_hf.images.sources import CROP, FLIP, ID, SIZES, TOKENS, ImageSource
from lgq_hf.images.stored import import_datasets
from lgq_hf.provenance import versions
from lgq_hf.runtime import DTYPES, own_device, world
from lgq_hf.tokens.encoding import Encoder
from lgq_hf.tokens.manifest import Manifest, finish
from lgq_hf.tokens.plan import Footer, Plan, Shard, differences
from lgq_hf.tokens.shards import Folder, read_footer, write_shard

Progress = Callable[[int], None]
ON_ERROR = ("skip", "stop")
_WAITING_BYTES = 2**29  # of images of all sizes that wait for others of their size
_PIXELS_IN_BATCH = 2**18  # times batch_size: images of mixed sizes fill a batch by their pixels too


@dataclass(frozen=True)
class Job:
    """All that a process needs to make any of the files; it can be pickled.

    Attributes:
        plan: what is to be made.
        reference: the tokenizer.
        source: the images.
        output: folder, as `Folder` takes it.
        on_error: "skip" an image that cannot be read and record why, or "stop".
    """

    plan: Plan
    reference: Reference
    source: ImageSource
    output: str
    on_error: str = "skip"

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error: expected one of {list(ON_ERROR)}, got {self.on_error!r}")

    def look(self, footers: dict[str, Footer]) -> list[int]:
        """Numbers of the files that are not there yet; footers of those that are go into `footers`, by name.

        Raises:
            ValueError: the folder holds shards of another plan, or parquet files that are no token shards.
        """
        folder, names, own = Folder(self.output), self.plan.names, self.plan.identity()
        there = folder.sizes("data")
        for name in sorted(there, key=lambda name: name in names):  # what does not belong here comes first
            if name in footers:
                continue
            with folder.open(name) as file:
                footer = read_footer(file, f"{name} in {self.output}")
            if name not in names or (footer and footer.plan.identity() != own):
                lines = differences(footer.plan, self.plan) if footer else ["it is no whole shard"]
                more = f" and {len(lines) - 6} more" if len(lines) > 6 else ""
                raise ValueError(
                    f"{self.output} holds {name} of another set of tokens, which differs in {'; '.join(lines[:6])}"
                    f"{more}: choose another output folder, or delete that one"
                )
            if footer:
                footers[name] = footer
        return [number for number, name in enumerate(names) if name not in footers]


class ShardRows:
    """Encodes the images of one shard, and keeps the rows in order: images wait by size until a batch of them is full.

    What goes through the model together depends on the plan and the images alone, never on workers or timing.

    Args:
        plan: of the set.
        encoder: of its tokenizer.
        stop: at an image that cannot be read.
    """

    def __init__(self, plan: Plan, encoder: Encoder, stop: bool) -> None:
        self.plan, self.encoder, self.stop = plan, encoder, stop
        self.size = tuple(plan.size) if plan.size else None
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []
        self.pictures = 0
        self._waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], Tensor]]] = {}  # by shape: rows and pixels
        self._bytes = 0
        self._done: list[tuple[list[dict[str, Any]], Tensor]] = []  # rows and tokens, which stay on the device

    def add(self, chunk: Chunk) -> None:
        """Takes the images of a chunk of this shard.

        Raises:
            ValueError: an image that cannot be read, if it is to stop; one of another size than the plan's.
        """
        pixels = chunk.pixels.to(self.encoder.device, non_blocking=True)
        start = 0
        self.pictures += len(chunk.pictures)
        for picture in chunk.pictures:
            name = picture.columns[ID]
            if picture.error:
                if self.stop:
                    how = "to record such pictures and go on: --on-error skip, on_error='skip'"
                    raise ValueError(f"{name}: {picture.error} ({how})")
                self.failures.append({ID: name, "reason": picture.error})
                continue
            if self.size and picture.size != self.size:
                raise ValueError(
                    f"{name} has {picture.size[0]} x {picture.size[1]} pixels (height x width), the first picture "
                    f"{self.size[0]} x {self.size[1]}: resize and crop all to one size (--size, Preprocessing's "
                    "size), or allow several (--mixed-sizes)"
                )
            count = int(np.prod(picture.shape))
            views = pixels[start : start + count].view(picture.shape)
            start += count
            for (crop, flipped), view in zip(self.plan.preprocessing.views(), views, strict=True):
                row = {**picture.columns, CROP: crop, FLIP: flipped, **dict(zip(SIZES[2:], picture.size, strict=True))}
                self.rows.append(row)
                self._wait(row, view if self.size else view.clone())  # a view keeps its whole chunk

    def _wait(self, row: dict[str, Any], view: Tensor) -> None:
        shape, batch_size = tuple(view.shape), self.plan.encoding.batch_size
        several = self._waiting.setdefault(shape, [])
        several.append((row, view))
        self._bytes += view.numel()
        if not self.size:
            batch_size = min(batch_size, max(1, batch_size * _PIXELS_IN_BATCH // (shape[1] * shape[2])))
        if len(several) == batch_size:
            self._encode(shape)
        while self._bytes > _WAITING_BYTES:
            self._encode(max(self._waiting, key=lambda shape: len(self._waiting[shape]) * np.prod(shape)))

    def _encode(self, shape: tuple[int, ...]) -> None:
        rows, views = zip(*self._waiting.pop(shape), strict=True)
        pixels = torch.stack(views)
        self._bytes -= pixels.numel()
        tokens = self.encoder(pixels, fill=bool(self.size)).to(getattr(torch, self.plan.dtype))
        self._done.append((list(rows), tokens))

    def columns(self) -> dict[str, Any]:
        """All rows by column, as `write_shard` takes them; what still waits is encoded first."""
        for shape in list(self._waiting):
            self._encode(shape)
        for rows, tokens in self._done:
            for row, grid in zip(rows, tokens.cpu().numpy(), strict=True):
                height, width = grid.shape[:2]
                row |= {TOKENS: grid if self.size else grid.reshape(-1), SIZES[0]: height, SIZES[1]: width}
        columns: dict[str, Any] = {name: [row[name] for row in self.rows] for name in self.plan.features}
        if self.size:
            empty = np.empty((0, *(self.plan.grid or ())), self.plan.dtype)
            columns[TOKENS] = np.stack(columns[TOKENS]) if self.rows else empty
        return columns


class FileMaker:
    """Makes files of a job by their numbers; holds the model. The actor of the Ray engine is one of these.

    Args:
        job: what is to be made.
        device: "auto" or a device of torch's.
        num_workers: processes that read images ahead; 0: they are read when they are needed.
    """

    def __init__(self, job: Job, device: str = "auto", num_workers: int = 0) -> None:
        self.job, self.num_workers = job, num_workers
        self.checkpoint = job.reference.load(device, DTYPES[job.plan.encoding.dtype])
        self.encoder = Encoder(self.checkpoint, job.plan.encoding)
        _, self.processor = job.reference.settings()
        self.features = import_datasets().Features.from_dict(job.plan.features)

    def make(self, numbers: Sequence[int], progress: Progress = lambda pictures: None) -> list[tuple[Footer, Shard]]:
        """Makes files, and calls `progress` with the number of images of each chunk that was encoded.

        Returns:
            What each file says of itself, and its size and checksum.

        Raises:
            ValueError: as `ShardRows.add`.
            OSError: a file cannot be written.
        """
        made = []
        for number, several in groupby(self._chunks(numbers), key=lambda chunk: chunk.file):
            rows = ShardRows(self.job.plan, self.encoder, self.job.on_error == "stop")
            for chunk in several:
                rows.add(chunk)
                progress(len(chunk.pictures))
            made.append(self._write(number, rows))
        return made

    def _chunks(self, numbers: Sequence[int]) -> Iterator[Chunk]:
        plan = self.job.plan
        per_chunk = max(1, plan.encoding.batch_size // len(plan.preprocessing.views()))
        keys: list[Key] = []
        for number in numbers:
            pictures = plan.pictures_of(number)
            for start in range(pictures.start, pictures.stop, per_chunk):
                keys.append((number, start, min(start + per_chunk, pictures.stop)))
        return chunks(
            self.job.source,
            self.processor,
            plan.preprocessing,
            keys,
            num_workers=self.num_workers,
            pin_memory=self.encoder.device.type == "cuda",
        )

    def _write(self, number: int, rows: ShardRows) -> tuple[Footer, Shard]:
        plan, columns = self.job.plan, rows.columns()
        footer = Footer(
            plan=plan,
            file=number,
            pictures=rows.pictures,
            rows=len(rows.rows),
            failures=rows.failures,
            device=self.encoder.device.type,
            versions=dict(sorted(versions().items())),  # as the file gives it back
        )
        return footer, write_shard(Folder(self.job.output), plan.names[number], columns, self.features, asdict(footer))


def default_workers(device: str) -> int:
    """Processes that read ahead: as many as a GPU may need, but none where the encoder itself needs the cores."""
    if not torch.cuda.is_available() or device == "cpu":
        return 0
    return min(8, max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def tokenize(
    job: Job,
    *,
    num_shards: int | None = None,
    shard_index: int | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    started: Callable[[int], None] = lambda pictures: None,
    progress: Progress = lambda pictures: None,
) -> Manifest | None:
    """Makes this process's share of the files that are not there yet, and the manifest once all are there.

    Args:
        job: what is to be made.
        num_shards, shard_index: this process makes files shard_index, shard_index + num_shards, ...; see `world`.
        device: see `own_device`.
        num_workers: see `FileMaker`; `None`: `default_workers`.
        started: called once with the number of images to encode here.
        progress: see `FileMaker.make`.

    Returns:
        The manifest, or `None` where other processes have not finished.

    Raises:
        ValueError: the folder holds something else, or an image or option is refused.
        OSError: a file cannot be written.
    """
    index, count = world(shard_index, num_shards)
    footers: dict[str, Footer] = {}
    made: dict[str, Shard] = {}
    own = [number for number in job.look(footers) if number % count == index]
    started(sum(len(job.plan.pictures_of(number)) for number in own))
    if own:
        device = own_device(device)
        num_workers = default_workers(device) if num_workers is None else num_workers
        for footer, shard in FileMaker(job, device, num_workers).make(own, progress):
            footers[shard.file], made[shard.file] = footer, shard
    return None if job.look(footers) else finish(job.plan, Folder(job.output), footers, made)


__all__ = ["FileMaker", "Job", "default_workers", "tokenize"]
