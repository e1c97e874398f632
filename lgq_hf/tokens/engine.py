"""Token shards of a whole source: this process's files, one after another, each whole or not there.

Processes share nothing but the output folder. Which pictures a file holds, and which pictures go through the model
together, is decided by the plan; a process takes every n-th file, passes over those that are finished, and who finds
all files finished writes the manifest. So a job may be killed and started again, with another number of processes
too, and ends with the same bytes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lgq_hf.checkpoint.loading import Reference
from lgq_hf.images.loading import Chunk, Key, chunks
from lgq_hf.images.sources import TokenSource
from lgq_hf.images.stored import import_datasets
from lgq_hf.images.views import Preprocessing
from lgq_hf.provenance import versions
from lgq_hf.runtime import DTYPES, own_device, share
from lgq_hf.tokens.batching import ShardRows
from lgq_hf.tokens.encoding import Encoder, Encoding
from lgq_hf.tokens.manifest import Manifest, finish
from lgq_hf.tokens.plan import Plan, differences, file_names, identity, pictures_of
from lgq_hf.tokens.shards import Folder, read_footer, write_shard

Progress = Callable[[int], None]
ON_ERROR = ("skip", "stop")


@dataclass(frozen=True)
class Job:
    """All that a process needs to make any of the files; it can be pickled.

    Attributes:
        plan: what is to be made.
        reference: the tokenizer.
        source: the pictures.
        output: folder, as `Folder` takes it.
        on_error: "skip" a picture that cannot be read and record why, or "stop".
    """

    plan: Plan
    reference: Reference
    source: TokenSource
    output: str
    on_error: str = "skip"

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error: expected one of {list(ON_ERROR)}, got {self.on_error!r}")

    @property
    def preprocessing(self) -> Preprocessing:
        """As in the plan."""
        return Preprocessing(**{name: self.plan["preprocessing"][name] for name in Preprocessing.__dataclass_fields__})

    @property
    def encoding(self) -> Encoding:
        """As in the plan."""
        return Encoding(**self.plan["encoding"])

    def unfinished(self) -> list[int]:
        """Numbers of the files that are not there yet.

        Raises:
            ValueError: the folder holds shards of another plan, or parquet files that are no token shards.
        """
        folder, names = Folder(self.output), file_names(self.plan)
        if others := sorted({name for name in folder.names("data") if not _hidden(name)} - set(names)):
            raise ValueError(self._foreign(others[0], read_footer(folder, others[0])))
        missing, own = [], identity(self.plan)
        for number, name in enumerate(names):
            footer = read_footer(folder, name)
            if footer is None:
                missing.append(number)
            elif identity(footer["plan"]) != own:
                raise ValueError(self._foreign(name, footer))
        return missing

    def _foreign(self, name: str, footer: dict[str, Any] | None) -> str:
        lines = differences(footer["plan"], self.plan) if footer else ["it is no whole shard"]
        more = f" and {len(lines) - 6} more" if len(lines) > 6 else ""
        return (
            f"{self.output} holds {name} of another set of tokens, which differs in {'; '.join(lines[:6])}{more}: "
            "choose another output folder, or delete that one"
        )


def _hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


class FileMaker:
    """Makes files of a job by their numbers; holds the model. The actor of the Ray engine is one of these.

    Args:
        job: what is to be made.
        device: "auto" or a device of torch's.
        num_workers: processes that read pictures ahead; 0: they are read when they are needed.
    """

    def __init__(self, job: Job, device: str = "auto", num_workers: int = 0) -> None:
        self.job, self.num_workers = job, num_workers
        encoding = job.encoding
        self.checkpoint = job.reference.load(device, DTYPES[encoding.dtype])
        self.encoder = Encoder(self.checkpoint, encoding)
        _, self.processor = job.reference.settings()
        self.features = import_datasets().Features.from_dict(job.plan["features"])

    def make(self, numbers: Sequence[int], progress: Progress = lambda pictures: None) -> None:
        """Makes files, and calls `progress` with the number of pictures of each chunk that was encoded.

        Raises:
            ValueError: as `ShardRows.add`.
            OSError: a file cannot be written.
        """
        rows: ShardRows | None = None
        left = 0
        for chunk in self._chunks(numbers):
            if rows is None:
                rows = ShardRows(
                    self.job.plan, self.encoder, self.job.preprocessing.views(), self.job.on_error == "stop"
                )
                left = len(pictures_of(self.job.plan, chunk.file))
            rows.add(chunk)
            left -= len(chunk.pictures)
            if not left:
                self._write(chunk.file, rows)
                rows = None
            progress(len(chunk.pictures))

    def _chunks(self, numbers: Sequence[int]) -> Iterator[Chunk]:
        per_chunk = max(1, self.encoder.encoding.batch_size // len(self.job.preprocessing.views()))
        keys: list[Key] = []
        for number in numbers:
            pictures = pictures_of(self.job.plan, number)
            for start in range(pictures.start, pictures.stop, per_chunk):
                keys.append((number, start, min(start + per_chunk, pictures.stop)))
        return chunks(
            self.job.source,
            self.processor,
            self.job.preprocessing,
            keys,
            num_workers=self.num_workers,
            pin_memory=self.encoder.device.type == "cuda",
        )

    def _write(self, number: int, rows: ShardRows) -> None:
        columns = rows.columns()
        footer = {
            "plan": self.job.plan,
            "file": number,
            "pictures": rows.pictures,
            "rows": len(rows.rows),
            "failures": rows.failures,
            "device": self.encoder.device.type,
            "versions": versions(),
        }
        write_shard(Folder(self.job.output), file_names(self.job.plan)[number], columns, self.features, footer)


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
        num_shards, shard_index: this process makes files shard_index, shard_index + num_shards, ...; see `share`.
        device: see `own_device`.
        num_workers: see `FileMaker`; `None`: `default_workers`.
        started: called once with the number of pictures to encode here.
        progress: see `FileMaker.make`.

    Returns:
        The manifest, or `None` where other processes have not finished.

    Raises:
        ValueError: the folder holds something else, or a picture or option is refused.
        OSError: a file cannot be written.
    """
    count, index = share(num_shards, shard_index)
    own = [number for number in job.unfinished() if number % count == index]
    started(sum(len(pictures_of(job.plan, number)) for number in own))
    if own:
        device = own_device(device)
        num_workers = default_workers(device) if num_workers is None else num_workers
        FileMaker(job, device, num_workers).make(own, progress)
    return None if job.unfinished() else finish(job.plan, Folder(job.output), own)


__all__ = ["FileMaker", "Job", "default_workers", "tokenize"]
