"""Token shards as torch datasets: rows by number, or as a stream, shared out over processes.

Shapes: h w grid of tokens, C tokens per position, N rows.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from lgq_hf.checkpoint.loading import Reference
from lgq_hf.images.loading import permutation
from lgq_hf.images.sources import CROP, FLIP, ID, LABEL, SIZES, TOKENS
from lgq_hf.images.stored import import_datasets
from lgq_hf.runtime import world
from lgq_hf.tokenizer.modeling_lgq import LGQModel
from lgq_hf.tokens.manifest import Manifest, check_tokenizer, read_manifest
from lgq_hf.tokens.plan import Shard
from lgq_hf.tokens.shards import Folder

Row = dict[str, Any]
Key = int | tuple[int, int]  # number of a row, or (epoch, number)
EPOCH = "epoch"
_READ_AT_ONCE = 1024  # rows of a stream


class _Shards:
    """Manifest and columns of a set of token shards, looked at before anything is read.

    Args:
        place: folder with manifest.json; any that fsspec reads.
        tokenizer: that the tokens are meant for, as `check_tokenizer` takes it; `None`: not compared.
        columns: kept columns to return beside tokens, id, label, crop and flip.

    Raises:
        ValueError: no manifest, a file that is missing or of another size, another tokenizer, or no such column.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        tokenizer: LGQModel | Reference | str | Path | None,
        columns: Sequence[str],
    ) -> None:
        self.place = os.fspath(place)
        self.manifest: Manifest = read_manifest(self.place)
        if tokenizer is not None:
            check_tokenizer(self.manifest, tokenizer)
        features = self.manifest.features
        if EPOCH in columns:
            raise ValueError(f"cannot return the column {EPOCH!r}: rows tell by that name which epoch they are of")
        if missing := [column for column in columns if column not in features]:
            raise ValueError(f"no column {missing[0]!r} in the tokens of {self.place}, which have {sorted(features)}")
        wanted = [TOKENS, *SIZES[:2], ID, LABEL, CROP, FLIP, *columns]
        self.columns = [column for column in dict.fromkeys(wanted) if column in features]
        sizes = Folder(self.place).sizes("data")
        for shard in self.manifest.shards:
            if (size := sizes.get(shard.file)) != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes, expected {shard.bytes}"
                raise ValueError(f"{shard.file} of {self.place} {found}: `lgq tokenize --verify` tells what is left")

    @property
    def total(self) -> int:
        """N, over all processes."""
        return self.manifest.counts["rows"]

    def read(self, batch: Any, epoch: int) -> Iterator[Row]:
        """What users get of the rows of an Arrow record batch."""
        tokens = batch.column(TOKENS)
        lists = getattr(tokens, "storage", tokens)  # datasets may have made an extension type of it
        per_position = self.manifest.tokenizer.tokens_per_position
        for values, grid in zip(batch.drop_columns([TOKENS]).to_pylist(), lists, strict=True):
            flat, shape = grid.values, self.manifest.grid
            while str(flat.type).startswith(("list", "fixed_size_list")):
                flat = flat.flatten()
            if shape is None:
                shape = [values.pop(name) for name in SIZES[:2]] + ([per_position] if per_position > 1 else [])
            tokens_of_row = torch.from_numpy(flat.to_numpy().astype(np.int64)).reshape(shape)
            yield {TOKENS: tokens_of_row, **values, EPOCH: epoch}


class TokenDataset(_Shards, Dataset[Row]):
    """Rows by number, from a folder of this machine; `datasets` maps them into memory from a copy in its cache.

    `dataset[i]` and `dataset[epoch, i]` give {"image_tokens": (h,w) or (h,w,C) int64, "id", "crop", "flip", "epoch",
    and "label" where there are labels, ...}. Arguments and errors as in `_Shards`.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        tokenizer: LGQModel | Reference | str | Path | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__(place, tokenizer, columns)
        folder = Folder(self.place)
        if not folder.local:
            raise ValueError(f"{self.place} is not on this machine: read it by TokenStream, or download it first")
        files = [glob.escape(folder.path(shard.file)) for shard in self.manifest.shards if shard.rows]
        rows = import_datasets().load_dataset("parquet", data_files={"train": files}, split="train")
        self.rows = rows.select_columns(self.columns).with_format("numpy", columns=[TOKENS], output_all_columns=True)
        self._batches = self.rows.with_format("arrow")  # the same, a third of the time for a row

    def __len__(self) -> int:
        """N, over all processes."""
        return self.total

    def __getitem__(self, key: Key) -> Row:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        return next(self.read(self._batches[int(number)].to_batches()[0], epoch))


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, number) of the rows of one process, for `DataLoader(TokenDataset(...), sampler=...)`.

    The order of an epoch is drawn from (seed, epoch) and does not depend on the number of processes, which take turns
    at it: every row comes exactly once in an epoch, over all processes. The rows are shared out here: a loader that
    `Accelerator.prepare` wraps shares them out once more, so leave it out of `prepare`, or give rank 0 of 1.

    Args:
        size: N, rows of the dataset.
        rank, world_size: of this process; `None`: as `accelerate launch` and `torchrun` say, else 0 of 1.
        seed: of the order.
        shuffle: False: the order of the files, in every epoch.
        even: `None`: some processes have one row more than others, for which processes that step together, as in DDP,
            would wait for ever. "drop" leaves out the last rows of the order, "repeat" adds the first ones again, so
            that what is left from `start` on can be shared evenly.
        epoch: which one the first iteration is.
        start: rows of this epoch, over all processes, that were seen before: to go on within it.
    """

    def __init__(
        self,
        size: int,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        even: str | None = None,
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        if even not in (None, "drop", "repeat"):
            raise ValueError(f"even: expected None, 'drop' or 'repeat', got {even!r}")
        self.rank, self.world_size = world(rank, world_size)
        self.size, self.seed, self.shuffle, self.even = size, seed, shuffle, even
        self.epoch: int
        self.start: int
        self.set_epoch(epoch, start)

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Which epoch the next iteration is, and where it begins; `None`: the epoch it has where it has, others at 0.

        Raises:
            ValueError: a start beyond the rows of an epoch.
        """
        if start is None:
            start = self.start if epoch == self.epoch else 0
        most = self.size + (-self.size % self.world_size if self.even == "repeat" else 0)
        if not 0 <= start <= most:
            raise ValueError(f"start: expected 0 to the {most} rows of an epoch, got {start}")
        self.epoch, self.start = epoch, start

    def _positions(self) -> range:
        """Of this process in the order of the epoch; those from `size` on stand for the first ones again."""
        left = max(0, self.size - self.start)
        left += {None: 0, "drop": -(left % self.world_size), "repeat": -left % self.world_size}[self.even]
        return range(self.start + self.rank, self.start + left, self.world_size)

    def __len__(self) -> int:
        """Rows that this process has left in this epoch."""
        return len(self._positions())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = permutation(self.size, self.seed, self.epoch)
        for position in self._positions():
            yield self.epoch, int(order[position % self.size])


class TokenStream(_Shards, IterableDataset[Row]):
    """Rows as `TokenDataset` gives them, read from parquet as they are needed, from any folder that fsspec reads.

    The files of an epoch stand in an order drawn from (seed, epoch). Processes, and the workers of each
    process's DataLoader, have ranges of the rows in that order, which meet without gap or overlap: every row comes
    exactly once in an epoch, however few files there are. A process may have one row more than another, and, as each
    worker makes batches of its own, more batches: where processes step together, stop all after the same number of
    steps. Within its range a reader keeps `shuffle_buffer` rows and hands over one of them at random. To go on within
    an epoch, use `TokenDataset`. As with `EpochSampler`, leave the loader out of `Accelerator.prepare`, or give rank 0
    of 1.

    Args:
        place, tokenizer, columns: as in `_Shards`.
        rank, world_size, seed: as in `EpochSampler`.
        shuffle_buffer: 0: rows come in the order of the files.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        tokenizer: LGQModel | Reference | str | Path | None = None,
        columns: Sequence[str] = (),
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        shuffle_buffer: int = 10_000,
    ) -> None:
        super().__init__(place, tokenizer, columns)
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer: expected 0 or more rows, got {shuffle_buffer}")
        self.rank, self.world_size = world(rank, world_size)
        self.seed, self.shuffle_buffer = seed, shuffle_buffer
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that outlive an epoch

    def __len__(self) -> int:
        """Rows of this process in an epoch, of all its workers."""
        return len(self._share_of(self.rank, self.world_size))

    def _share_of(self, reader: int, readers: int) -> range:
        return range(reader * self.total // readers, (reader + 1) * self.total // readers)

    @property
    def epoch(self) -> int:
        """Which epoch the next iteration is."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is, in workers of a DataLoader too."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Row]:
        worker, epoch = get_worker_info(), self.epoch
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        reader = self.rank * workers + own
        wanted, order = self._share_of(reader, self.world_size * workers), list(self.manifest.shards)
        if not self.shuffle_buffer:
            yield from self._range(order, wanted, epoch)
            return
        order = [order[number] for number in permutation(len(order), self.seed, epoch)]
        rng = np.random.default_rng([self.seed, epoch, reader])
        kept: list[Row] = []
        for row in self._range(order, wanted, epoch):
            if len(kept) < self.shuffle_buffer:
                kept.append(row)
                continue
            drawn = int(rng.integers(len(kept)))
            yield kept[drawn]
            kept[drawn] = row
        for drawn in rng.permutation(len(kept)):
            yield kept[drawn]

    def _range(self, order: Sequence[Shard], wanted: range, epoch: int) -> Iterator[Row]:
        """Some rows of these files in their order; row groups that hold none of them are not read."""
        from pyarrow import parquet

        folder, first = Folder(self.place), 0
        for shard in order:
            if first < wanted.stop and first + shard.rows > wanted.start:
                with folder.open(shard.file) as opened:
                    file, start = parquet.ParquetFile(opened), first
                    for group in range(file.num_row_groups):
                        rows = file.metadata.row_group(group).num_rows
                        low, high = max(wanted.start - start, 0), min(wanted.stop - start, rows)
                        if low < high:
                            table = file.read_row_group(group, columns=self.columns).slice(low, high - low)
                            for batch in table.to_batches(max_chunksize=_READ_AT_ONCE):
                                yield from self.read(batch, epoch)
                        start += rows
            first += shard.rows


__all__ = ["EpochSampler", "TokenDataset", "TokenStream"]
