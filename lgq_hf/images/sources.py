"""Where pictures to tokenize come from: numbered rows of a folder, or of what `datasets` reads undecoded."""

import glob
import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lgq_hf.files import canonical_sha256
from lgq_hf.images.opening import find_pictures
from lgq_hf.images.stored import (
    files_of_split,
    import_datasets,
    load_parquet,
    load_split,
    read_stored,
    to_rgb,
    undecoded,
)
from lgq_hf.tokenizer.image_processing_lgq import read_image

KINDS = ("folder", "dataset", "parquet", "webdataset")
# columns of token shards
TOKENS = "image_tokens"
# of pictures whose sizes differ: the grid in tokens, and the picture in pixels before it was padded
SIZES = ("height", "width", "original_height", "original_width")
ID, LABEL, CROP, FLIP = "id", "label", "crop", "flip"
RESERVED = frozenset({TOKENS, ID, LABEL, CROP, FLIP, *SIZES})


class ImageSource(Protocol):
    """Pictures by number; what a number stands for never changes, so that any process may read any of them.

    Attributes:
        kind: one of `KINDS`.
        name: what messages and the manifest call it.
        features: `datasets` features of the label and of the columns that are kept, by column.
    """

    kind: str
    name: str
    features: dict[str, Any]

    def __len__(self) -> int:
        """How many there are, with those that cannot be read."""

    def id(self, index: int) -> str:
        """Names picture `index`; no other one has the same name."""

    def read(self, index: int) -> Image.Image:
        """Picture `index`, upright and RGB; `ValueError` with a reason of one line where it cannot be read."""

    def columns(self, index: int) -> dict[str, Any]:
        """Values of `features` of picture `index`."""

    def digest(self) -> str:
        """sha256 (hex) that another set of pictures, labels or columns would not have; not of the pixels."""


@dataclass
class FolderSource:
    """Images below a folder in sorted order; the folder that each lies in is its label, where all lie in one.

    Attributes:
        folder: that they are below.
        names: path of each within the folder; one may come again.
        labels: of each, or none.
        ids: of each; none where names are ids.
    """

    name: str
    folder: Path
    names: Sequence[str]
    labels: Sequence[int] = ()
    features: dict[str, Any] = field(default_factory=dict)
    kind: str = "folder"
    ids: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def id(self, index: int) -> str:
        """Path within the folder; bytes that are no text appear as escapes."""
        return _as_text(self.ids[index] if self.ids else self.names[index])

    def read(self, index: int) -> Image.Image:
        """The picture as RGB; raises ValueError with the reason where it cannot be read."""
        return to_rgb(read_image(self.folder / self.names[index]))

    def columns(self, index: int) -> dict[str, Any]:
        """The label, if there are labels."""
        return {LABEL: self.labels[index]} if self.labels else {}

    def digest(self) -> str:
        """sha256 (hex) over names and sizes in bytes of the files."""
        sha256 = hashlib.sha256()
        for name in self.names:
            file = self.folder / name
            size = file.stat().st_size if file.is_file() else -1
            sha256.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
        return sha256.hexdigest()


class DatasetSource:
    """Rows of a `datasets.Dataset`; the class `ImageSource` says what it offers.

    Args:
        dataset: one split.
        kind: as in `ImageSource`.
        name: as in `ImageSource`.
        split: what rows are called without an id column.
        image_column: `None`: the only one that holds pictures.
        label_column: of integers or a ClassLabel, or `None`.
        id_column: of strings or integers, all different; `None`: rows are named by their number.
        keep: more columns to keep.

    Raises:
        ValueError: a column that is not there or holds something else, labels that are missing, ids that repeat.
    """

    def __init__(
        self,
        dataset: Any,
        kind: str,
        name: str,
        split: str,
        *,
        image_column: str | None,
        label_column: str | None,
        id_column: str | None,
        keep: Sequence[str],
    ) -> None:
        self.kind, self.name, self.split = kind, name, split
        image_column = image_column or _image_column(dataset, name)
        self.pictures, self.image_column = undecoded(dataset, image_column, name), image_column
        self.features: dict[str, Any] = {}
        self._from: dict[str, str] = {}  # our columns, and theirs
        if label_column is not None:
            self._take(dataset, LABEL, label_column, _label_feature(dataset, label_column, name))
        for column in keep:
            if column in RESERVED or column == image_column:
                raise ValueError(f"cannot keep the column {column!r}: token shards use that name themselves")
            self._take(dataset, column, column, _feature(dataset, column, name))
        if id_column is not None:
            _check_ids(dataset, id_column, name)
        self.id_column = id_column
        named = {*self._from.values(), *([id_column] if id_column else [])}
        self.others = dataset.with_format(None).select_columns(sorted(named)) if named else None

    def _take(self, dataset: Any, ours: str, theirs: str, feature: Any) -> None:
        if isinstance(feature, import_datasets().Image):
            raise ValueError(f"cannot keep the column {theirs!r} of {self.name}: it holds pictures")
        self.features[ours], self._from[ours] = feature, theirs

    def __len__(self) -> int:
        return len(self.pictures)

    def id(self, index: int) -> str:
        """The id column's value, or split and row number."""
        if self.id_column is None or self.others is None:
            return f"{self.split}[{index}]"
        return str(self.others[index][self.id_column])

    def read(self, index: int) -> Image.Image:
        """The picture as RGB; raises ValueError with the reason where it cannot be read."""
        return read_stored(self.pictures[index][self.image_column])

    def columns(self, index: int) -> dict[str, Any]:
        """Label and kept columns of one row."""
        if not self._from or self.others is None:
            return {}
        row = self.others[index]
        return {ours: row[theirs] for ours, theirs in self._from.items()}

    def digest(self) -> str:
        """sha256 (hex) over each picture's path and length in bytes, and over all other columns that are used."""
        import pyarrow as pa
        import pyarrow.compute as pc

        sha256 = hashlib.sha256()
        for table in self.pictures.with_format("arrow").iter(4096):
            column = table.column(self.image_column)
            fields = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
            for part in [pc.struct_field(column, name) for name in fields] or [column]:
                binary = pa.types.is_binary(part.type) or pa.types.is_large_binary(part.type)
                values = pc.binary_length(part) if binary else part  # lengths are known without reading the bytes
                sha256.update(repr(values.to_pylist()).encode(errors="surrogateescape"))
        if self.others is not None:
            for batch in self.others.iter(1024):
                sha256.update(repr(sorted(batch.items())).encode(errors="surrogateescape"))
        features = {name: str(feature) for name, feature in self.features.items()}
        content = {"split": self.split, "rows": len(self), "features": features, "content": sha256.hexdigest()}
        return canonical_sha256(content)


def open_source(
    path: str,
    *,
    kind: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    keep: Sequence[str] = (),
    name: str | None = None,
    revision: str | None = None,
) -> ImageSource:
    """Opens what is to be tokenized; no picture is decoded yet.

    Args:
        path: a folder of pictures; a file, folder or glob of parquet files or of WebDataset tars; a folder that
            `save_to_disk` of Hugging Face datasets wrote; or a dataset's name on the Hub.
        kind: one of `KINDS`; `None`: told by what is at `path`.
        split: of datasets, parquet and WebDataset.
        image_column: where pictures are, as datasets' Image, bytes or paths; `None`: the only Image column.
        label_column: of integers or a ClassLabel; becomes `label`. A folder's labels are the folders in it.
        id_column: of different strings or integers; "": the row's number; `None`: that too, but `__key__` of
            WebDataset.
        keep: more columns to copy to the tokens.
        name: configuration of a dataset on the Hub.
        revision: commit, branch or tag of it.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no pictures; an option that does not belong to this kind; columns as in `DatasetSource`.
        ModuleNotFoundError: without the package datasets, but for a folder.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {list(KINDS)}, got {kind!r}")
    kind = kind or _kind_of(path)
    if kind != "dataset" and (name or revision):
        raise ValueError(f"a configuration and a revision are for kind 'dataset', {path} is of kind {kind!r}")
    if kind == "folder":
        given = {"image_column": image_column, "label_column": label_column, "id_column": id_column, "keep": keep}
        if told := [option for option, value in given.items() if value]:
            raise ValueError(f"{', '.join(told)}: {path} is a folder of pictures, it has no columns; leave them out")
        return open_folder(path)
    if kind == "webdataset" and id_column is None:
        id_column = "__key__"
    return DatasetSource(
        _load(path, kind, split, name, revision),
        kind,
        path,
        split,
        image_column=image_column,
        label_column=label_column,
        id_column=id_column or None,
        keep=keep,
    )


def _load(path: str, kind: str, split: str, name: str | None, revision: str | None) -> Any:
    """A `datasets.Dataset` in memory maps; `ValueError` of one line where its files are damaged or empty."""
    datasets = import_datasets()
    try:
        if kind == "dataset":
            return load_split(path, split, name=name, revision=revision, streaming=False)
        if kind == "parquet":
            return load_parquet(path, split, streaming=False)
        tars = [glob.escape(str(file)) for file in files_of_split([*map(Path, _files(path, "tar"))], split, path)]
        return datasets.load_dataset("webdataset", data_files={split: tars}, split=split)
    except FileNotFoundError:
        raise
    except (datasets.exceptions.DatasetsError, tarfile.TarError, IndexError) as error:  # save_to_disk of no rows
        reason = (str(error.__cause__ or error).splitlines() or [""])[0]
        raise ValueError(f"cannot read {path} ({split}) as {kind}, it is damaged or empty: {reason}") from error


def _kind_of(path: str) -> str:
    place = Path(path)
    if any((place / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return "dataset"
    found = [kind for kind, suffix in (("parquet", "parquet"), ("webdataset", "tar")) if _files(path, suffix)]
    if len(found) > 1:
        raise ValueError(f"{path} holds parquet files and tars: say which to read by kind")
    if found:
        return found[0]
    if place.is_dir():
        return "folder"
    if place.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or glob.has_magic(path):
        raise FileNotFoundError(f"nothing to do: there is no {path}")
    return "dataset"


def _files(path: str, suffix: str) -> list[str]:
    """Files that end in `.suffix`: the one that is named, those of a glob, or those below a folder."""
    place = Path(path)
    if place.is_dir():
        found: Iterator[str] = (str(file) for file in place.rglob(f"*.{suffix}"))
    else:
        found = iter([path] if place.is_file() else glob.glob(path, recursive=True))
    return sorted(str(Path(file).absolute()) for file in found if file.endswith(f".{suffix}") and Path(file).is_file())


def open_folder(path: str, *, labels: bool = True) -> FolderSource:
    """Opens a folder of images, as `open_source` does.

    Args:
        path: of the folder.
        labels: whether the folders in it are labels.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path} is no folder: expected one that holds pictures")
    sources, failures = find_pictures([path])
    if failures:
        raise ValueError(f"cannot search all of {path}: " + "; ".join(f"{name}: {why}" for name, why in failures))
    found = FolderSource(path, Path(path).absolute(), [source.name for source in sources])
    folders = [name.partition("/")[0] if "/" in name else None for name in found.names]
    if labels and None not in folders:
        classes = sorted({str(folder) for folder in folders})
        found.labels = [classes.index(str(folder)) for folder in folders]
        found.features = {LABEL: import_datasets().ClassLabel(names=[_as_text(name) for name in classes])}
    return found


def _as_text(name: str) -> str:
    """A file's name as Arrow can keep it: some systems allow names that are not UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _image_column(dataset: Any, name: str) -> str:
    Image = import_datasets().Image
    columns = [column for column, feature in dataset.features.items() if isinstance(feature, Image)]
    if len(columns) != 1:
        found = f"{len(columns)} columns of {name} hold pictures {columns}, of {sorted(dataset.features)}"
        raise ValueError(f"{found}: say which one to encode by image_column")
    return str(columns[0])


def _feature(dataset: Any, column: str, name: str) -> Any:
    if column not in dataset.features:
        raise ValueError(f"no column {column!r} in {name}, which has {sorted(dataset.features)}")
    return dataset.features[column]


def _label_feature(dataset: Any, column: str, name: str) -> Any:
    """The label's feature; refuses what is no class number."""
    datasets = import_datasets()
    feature = _feature(dataset, column, name)
    if not isinstance(feature, datasets.ClassLabel):
        if not (isinstance(feature, datasets.Value) and re.fullmatch(r"u?int\d+", feature.dtype)):
            raise ValueError(
                f"the label column {column!r} of {name} holds {feature}: expected integers or a ClassLabel; make one "
                f"with dataset.class_encode_column({column!r}), or keep it as it is by `keep`"
            )
        feature = datasets.Value("int64")
    for start, batch in enumerate(dataset.with_format(None).select_columns([column]).iter(4096)):
        for offset, label in enumerate(batch[column]):
            if label is None or label < 0:
                row = start * 4096 + offset
                raise ValueError(f"row {row} of {name} has label {label}: expected a class number, 0 or more, in all")
    return feature


def _check_ids(dataset: Any, column: str, name: str) -> None:
    feature = _feature(dataset, column, name)
    kinds = r"u?int\d+|(large_)?string"
    if not (isinstance(feature, import_datasets().Value) and re.fullmatch(kinds, feature.dtype)):
        raise ValueError(f"the id column {column!r} of {name} holds {feature}: expected strings or integers")
    seen: set[bytes] = set()  # digests, for ids may be long
    for batch in dataset.with_format(None).select_columns([column]).iter(4096):
        for value in batch[column]:
            digest = hashlib.blake2b(str(value).encode(), digest_size=12).digest()
            if digest in seen:
                raise ValueError(
                    f"the id {value!r} stands twice in column {column!r} of {name}: ids must tell rows apart; name "
                    "another column by id_column, or the empty one (row numbers)"
                )
            seen.add(digest)


__all__ = [
    "CROP",
    "FLIP",
    "ID",
    "KINDS",
    "LABEL",
    "RESERVED",
    "DatasetSource",
    "FolderSource",
    "ImageSource",
    "open_folder",
    "open_source",
]
