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
from huggingface_hub.errors import StrictDataclassError

from lgq_hf.files import atomic_file, file_sha256, one_line
from lgq_hf.images.sources import TOKENS
from lgq_hf.images.stored import import_datasets
from lgq_hf.tokens.plan import Footer, Shard

FOOTER = b"lgq_hf"  # key of our entry in the metadata of a parquet file
DAMAGED = (ValueError, KeyError, TypeError, StrictDataclassError)  # what records raise on JSON that is not theirs
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

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file in a folder, by name, sorted, without hidden ones; none where there is no such folder."""
        self.fs.invalidate_cache()
        if not self.fs.isdir(self.path(folder)):
            return {}
        found = {Path(one["name"]).name: one for one in self.fs.ls(self.path(folder), detail=True)}
        files = sorted(name for name in found if found[name]["type"] == "file" and not name.startswith("."))
        return {f"{folder}/{name}": found[name]["size"] for name in files}

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
) -> Shard:
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
            return Shard(name, table.num_rows, temporary.stat().st_size, file_sha256(temporary))
    except OSError as error:
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


def read_footer(file: Any, name: str) -> Footer | None:
    """What the shard that is open to be read says of itself; `None` where it was cut short.

    Raises:
        ValueError: a whole parquet file that is no token shard; the message calls it `name`.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(file).metadata or {}
    except (pyarrow.ArrowException, OSError):  # the latter for a footer that is there and damaged
        return None
    try:
        return Footer.read(json.loads(metadata[FOOTER]))
    except DAMAGED as error:
        raise ValueError(
            f"{name} is no token shard that this version reads ({type(error).__name__} {one_line(error)}): choose an "
            "empty folder as output"
        ) from error


__all__ = ["DAMAGED", "FOOTER", "Folder", "read_footer", "write_shard"]
