"""One token shard: a parquet file that is whole or not there, and says in its footer what it is part of."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped, unused-ignore]
import numpy as np
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped, unused-ignore]

from lgq_hf.files import atomic_file
from lgq_hf.images.sources import TOKENS
from lgq_hf.images.stored import import_datasets

FOOTER = b"lgq_hf"  # key of our entry in the metadata of a parquet file
_TOKENS_IN_GROUP = 2**22  # 7 MB at 14 bits


class Folder:
    """A folder of this machine, or any that fsspec writes to (`hf://datasets/org/name`, `s3://...`).

    A file on this machine is written beside its place, synced and renamed; elsewhere it is written here and uploaded
    by one call, which for the Hub is one commit.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        try:
            self.fs, self.root = fsspec.url_to_fs(self.place)
        except ImportError as error:  # which says what to install
            raise ModuleNotFoundError(f"{self.place}: {error}") from error
        self.local = isinstance(self.fs, LocalFileSystem)
        if not self.local:
            self.fs.invalidate_cache()  # of listings, in which what other processes wrote is missing
        if self.place.startswith("hf://"):
            try:
                self.fs.resolve_path(self.root)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"no repository at {self.place}, or none that your token may see: make one with `hf repos create "
                    "NAME --repo-type dataset`"
                ) from error

    def path(self, name: str) -> str:
        """Where a file is, for `fs`."""
        return f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self.fs.isfile(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; none where there is no such folder."""
        if not self.fs.isdir(self.path(folder)):
            return []
        found = (
            self.fs.ls(self.path(folder), detail=False, refresh=True)
            if not self.local
            else self.fs.ls(self.path(folder), detail=False)
        )
        return sorted(f"{folder}/{Path(path).name}" for path in found)

    def open(self, name: str) -> Any:
        """Opens a file to read bytes."""
        return self.fs.open(self.path(name), "rb")

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Yields a path to write to; what is there when the block ends without an error becomes the file."""
        if self.local:
            with atomic_file(self.path(name)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory() as folder:
            yield (temporary := Path(folder, Path(name).name))
            self.fs.put_file(str(temporary), self.path(name))


def write_shard(
    folder: Folder, name: str, columns: Mapping[str, Any], features: Any, footer: Mapping[str, Any]
) -> None:
    """Writes a shard, whole or not at all; the same content gives the same bytes.

    Args:
        folder: where.
        name: of the file, in the folder.
        columns: by name, lists or arrays of equal length.
        features: of `datasets`, in the columns' order.
        footer: JSON that stands in the file's metadata.

    Raises:
        OSError: it cannot be written; the message says what is left.
    """
    from pyarrow import parquet

    datasets = import_datasets()
    table = datasets.Dataset.from_dict({key: columns[key] for key in features}, features=features).data.table
    metadata = {**(table.schema.metadata or {}), FOOTER: json.dumps(footer, sort_keys=True).encode()}
    table = table.combine_chunks().replace_schema_metadata(metadata)
    per_row = max(1, sum(np.size(grid) for grid in columns[TOKENS]) // max(1, len(columns[TOKENS])))
    try:
        with folder.write(name) as temporary:
            with parquet.ParquetWriter(temporary, table.schema, **_options(table.schema)) as writer:
                if table.num_rows:  # datasets cannot read a group without rows
                    writer.write_table(table, row_group_size=max(1, _TOKENS_IN_GROUP // per_row))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and read_footer(folder, name) == footer:
            return  # another process made the same file, finished all, and tidied up
        raise OSError(
            f"cannot write {name} to {folder.place}: {error}. No half file is left, and the finished ones stay: make "
            "room, or mend what it says, and give the same command again"
        ) from error


def _options(schema: Any) -> dict[str, Any]:
    """How parquet is to keep tokens: their bytes apart, so that zstd finds those that are always 0.

    That is about log2(K) bits a token in files of any length; a dictionary of codes would pay only in long ones.
    """
    kind, leaf = schema.field(TOKENS).type, TOKENS
    kind = getattr(kind, "storage_type", kind)
    while hasattr(kind, "value_type"):
        kind, leaf = kind.value_type, f"{leaf}.list.element"
    encoding = {leaf: "BYTE_STREAM_SPLIT"}
    return {"compression": "zstd", "use_dictionary": False, "column_encoding": encoding, "data_page_size": 2**21}


def read_footer(folder: Folder, name: str) -> dict[str, Any] | None:
    """What `write_shard` wrote beside the rows; `None` for a file that is not there or was cut short.

    Raises:
        ValueError: a whole parquet file that is no token shard.
    """
    import pyarrow
    from pyarrow import parquet

    if not folder.exists(name):
        return None
    with folder.open(name) as file:
        try:
            metadata = parquet.read_metadata(file).metadata or {}
        except (pyarrow.ArrowException, OSError):  # the latter for a footer that is there and damaged
            return None
    if FOOTER not in metadata:
        raise ValueError(f"{name} in {folder.place} is no token shard: choose an empty folder as output")
    footer: dict[str, Any] = json.loads(metadata[FOOTER])
    return footer


__all__ = ["FOOTER", "Folder", "read_footer", "write_shard"]
