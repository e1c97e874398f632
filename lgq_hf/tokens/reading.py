"""Token shards as torch datasets: rows by number, or as a stream, shared out over processes.

Shapes: h w grid of tokens, C tokens per position, N rows.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from lgq_hf.checkpoint import Reference
from lgq_hf.stored_pictures import import_datasets
from lgq_hf.tokenizer.modeling_lgq import LGQModel
from lgq_hf.tokens.engine import share
from lgq_hf.tokens.features import SIZES, TOKENS
from lgq_hf.tokens.manifest import Manifest, check_tokenizer, read_manifest
from lgq_hf.tokens.shards import Folder
from lgq_hf.tokens.sources import CROP, FLIP, ID, LABEL

Row = dict[str, Any]
Key = int | tuple[int, int]  # number of a row, or (epoch, number)
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
        features = self.manifest["features"]
        if missing := [column for column in columns if column not in features]:
            raise ValueError(f"no column {missing[0]!r} in the tokens of {self.place}, which have {sorted(features)}")
        wanted = [TOKENS, *SIZES[:2], ID, LABEL, CROP, FLIP, *columns]
        self.columns = [column for column in dict.fromkeys(wanted) if column in features]
        folder = Folder(self.place)
        for shard in self.manifest["shards"]:
            size = folder.fs.size(folder.path(shard["file"])) if folder.exists(shard["file"]) else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, expected {shard['bytes']}"
                raise ValueError(
                    f"{shard['file']} of {self.place} {found}: `lgq tokenize --verify` tells what is left"
                )

    def __len__(self) -> int:
        """How many rows there are, over all processes."""
        return int(self.manifest["counts"]["rows"])

    def row(self, values: Row, tokens: np.ndarray, epoch: int) -> Row:
        """What users get of a stored row."""
        shape = self.manifest["grid"]
        if shape is None:
            per_position = self.manifest["tokenizer"]["tokens_per_position"]
            shape = [values.pop(name) for name in SIZES[:2]] + ([per_position] if per_position > 1 else [])
        grid = torch.from_numpy(np.asarray(tokens).astype(np.int64)).reshape(shape)
        return {TOKENS: grid, **values, "epoch": epoch}


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
        files = [folder.path(shard["file"]) for shard in self.manifest["shards"] if shard["rows"]]
        rows = import_datasets().load_dataset("parquet", data_files={"train": files}, split="train")
        self.rows = rows.select_columns(self.columns).with_format("numpy", columns=[TOKENS], output_all_columns=True)

    def __getitem__(self, key: Key) -> Row:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        values = dict(self.rows[int(number)])
        return self.row(values, values.pop(TOKENS), epoch)


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, number) of the rows of one process, for `DataLoader(TokenDataset(...), sampler=...)`.

    The order of an epoch is drawn from (seed, epoch) and does not depend on the number of processes, which take turns
    at it: every row comes exactly once in an epoch, over all processes.

    Args:
        size: N, rows of the dataset.
        rank, world_size: of this process; `None`: as `accelerate launch` and `torchrun` say, else 0 of 1.
        seed: of the order.
        shuffle: False: the order of the files, in every epoch.
        even: what makes processes equal, as steps that all take together need: "drop" leaves out the last
            `size % world_size` rows of the epoch's order, "repeat" adds its first ones again; `None`: some processes
            have one row more than others.
        start: rows of the epoch, over all processes, that were seen before: to go on within it.
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
        start: int = 0,
    ) -> None:
        if even not in (None, "drop", "repeat"):
            raise ValueError(f"even: expected None, 'drop' or 'repeat', got {even!r}")
        self.world_size, self.rank = share(world_size, rank)
        self.size, self.seed, self.shuffle, self.even, self.epoch = size, seed, shuffle, even, 0
        total = {None: size, "drop": size - size % self.world_size, "repeat": size + -size % self.world_size}
        self.total = total[even]
        if not 0 <= start <= self.total:
            raise ValueError(f"start: expected 0 to the {self.total} rows of an epoch, got {start}")
        self.start = start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch the next iteration is, and where it begins."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Rows that this process has left in this epoch."""
        return len(range(self.start + self.rank, self.total, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for position in range(self.start + self.rank, self.total, self.world_size):
            yield self.epoch, int(order[position % self.size])


class TokenStream(_Shards, IterableDataset[Row]):
    """Rows as `TokenDataset` gives them, read from parquet as they are needed, from any folder that fsspec reads.

    The files of an epoch stand in an order drawn from (seed, epoch). Processes, and the workers of each
    process's DataLoader, have ranges of the rows in that order, which meet without gap or overlap: every row comes
    exactly once in an epoch, however few files there are. A process may have some rows more than another. Within its
    range a reader keeps `shuffle_buffer` rows and hands over one of them at random. To go on within an epoch, use
    `TokenDataset`.

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
        self.world_size, self.rank = share(world_size, rank)
        self.seed, self.shuffle_buffer, self.epoch = seed, shuffle_buffer, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; workers of a DataLoader that outlive an epoch do not hear of it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        readers = self.world_size * (worker.num_workers if worker else 1)
        reader = self.rank * (worker.num_workers if worker else 1) + (worker.id if worker else 0)
        rows = self._range(reader * len(self) // readers, (reader + 1) * len(self) // readers)
        if not self.shuffle_buffer:
            yield from rows
            return
        rng = np.random.default_rng([self.seed, self.epoch, reader])
        kept: list[Row] = []
        for row in rows:
            if len(kept) < self.shuffle_buffer:
                kept.append(row)
                continue
            drawn = int(rng.integers(len(kept)))
            yield kept[drawn]
            kept[drawn] = row
        for drawn in rng.permutation(len(kept)):
            yield kept[drawn]

    def _range(self, start: int, stop: int) -> Iterator[Row]:
        """Rows start to stop - 1 of the epoch's order of files."""
        shards = self.manifest["shards"]
        order = range(len(shards))
        if self.shuffle_buffer:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(shards)).tolist()
        first = 0
        for number in order:
            rows = shards[number]["rows"]
            low, high = max(start, first), min(stop, first + rows)
            if low < high:
                yield from self._file(shards[number]["file"], low - first, high - first)
            first += rows

    def _file(self, name: str, start: int, stop: int) -> Iterator[Row]:
        from pyarrow import parquet

        folder = Folder(self.place)
        with folder.open(name) as opened:
            file, first = parquet.ParquetFile(opened), 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first < stop and start < first + rows:
                    for batch in file.iter_batches(_READ_AT_ONCE, row_groups=[group], columns=self.columns):
                        low, high = max(start - first, 0), min(stop - first, batch.num_rows)
                        if low < high:
                            yield from self._rows(batch.slice(low, high - low))
                        first += batch.num_rows
                else:
                    first += rows

    def _rows(self, batch: Any) -> Iterator[Row]:
        tokens = batch.column(TOKENS)
        lists = getattr(tokens, "storage", tokens)  # datasets may have made an extension type of it
        others = batch.drop_columns([TOKENS]).to_pylist()
        for values, grid in zip(others, lists, strict=True):
            flat = grid.values
            while hasattr(flat, "flatten") and str(flat.type).startswith(("list", "fixed_size_list")):
                flat = flat.flatten()
            yield self.row(values, flat.to_numpy(), self.epoch)


__all__ = ["EpochSampler", "TokenDataset", "TokenStream"]
