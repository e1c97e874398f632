"""Pictures of Hugging Face datasets and parquet files. They are decoded here, so that a broken one is a ValueError."""

import glob
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped, unused-ignore]
import numpy as np
from PIL import Image

from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor, read_bounded, read_image

Stored = (
    Any  # a picture as a row holds it: encoded bytes, a path, {"bytes": ..., "path": ...} with one of them, or None
)
_STORED_TYPES = ("binary", "large_binary", "string", "large_string")
# Where a folder or file is named like this, splits are told by names, and one that no name tells does not exist.
_SPLITS = frozenset({"train", "training", "validation", "valid", "val", "dev", "eval", "test", "testing"})
_PROCESSOR = LGQImageProcessor()


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as RGB of 8 bits, by the rules of `LGQImageProcessor` (transparency over white, 16 bits rounded).

    Raises:
        ValueError: a mode whose range is not known, in one line.
    """
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    pixels_3HW = _PROCESSOR.process_image(picture, do_convert_rgb=True, do_rescale=True)
    return Image.fromarray(np.ascontiguousarray(pixels_3HW.transpose(1, 2, 0)))


def read_stored(stored: Stored) -> Image.Image:
    """Decodes a picture as RGB.

    Raises:
        ValueError: it cannot be read; the reason in one line.
        OSError: the connection to another machine failed.
    """
    content, path = _content_and_path(stored)
    if content is None and isinstance(path, str) and "://" in path:  # within an archive, or elsewhere
        try:
            with fsspec.open(path, "rb") as file:
                content = read_bounded(file)
        except FileNotFoundError as error:
            raise ValueError("no such file") from error
    if content is not None:
        return to_rgb(read_image(content))
    if not isinstance(path, str):
        raise ValueError(f"no picture in this row: expected bytes or a path, got {type(path).__name__}")
    return to_rgb(read_image(Path(path)))


def stored_name(stored: Stored) -> str:
    """What messages call a picture of a stream, the same in every epoch: its path, and a digest of its bytes."""
    content, path = _content_and_path(stored)
    if not isinstance(content, bytes):
        return str(path or "row without a picture")
    digest = hashlib.blake2b(content, digest_size=6).hexdigest()
    return f"{Path(path).name}#{digest}" if path else f"#{digest}"


def _content_and_path(stored: Stored) -> tuple[Any, Any]:
    fields = stored if isinstance(stored, dict) else {"bytes" if isinstance(stored, bytes) else "path": stored}
    return fields.get("bytes"), fields.get("path")


def undecoded(dataset: Any, column: str, label: str) -> Any:
    """`dataset` with nothing but `column`, whose rows are `Stored`; raises ValueError where it holds no pictures."""
    features: dict[str, Any] = dataset.features or next(
        iter(dataset), {}
    )  # a stream of CSV knows its columns by their first row only
    if column not in features:
        raise ValueError(f"no column '{column}' in {label}, which has {sorted(features)}: set image_column to one")
    feature, Image = features[column], import_datasets().Image
    dataset = dataset.with_format(None).select_columns([column])
    if isinstance(feature, Image):
        return dataset.cast_column(column, Image(decode=False))
    stored = isinstance(feature, str | bytes) or (isinstance(feature, dict) and {"bytes", "path"} & set(feature))
    if not stored and getattr(feature, "dtype", None) not in _STORED_TYPES:
        raise ValueError(f"column '{column}' of {label} holds {feature}: expected pictures, bytes or paths")
    return dataset


def load_split(path: str, split: str, *, name: str | None, revision: str | None, streaming: bool) -> Any:
    """One split of what `save_to_disk` wrote to the folder `path`, or of what `load_dataset` finds under `path`.

    Raises:
        ValueError: no such split, or `name` or `revision` for a saved dataset, which has neither.
        Exception: those of `datasets.load_dataset`.
    """
    datasets = import_datasets()
    if not any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return datasets.load_dataset(path, name, split=split, revision=revision, streaming=streaming)
    if name or revision:
        raise ValueError(f"{path} was written by save_to_disk: it has no configuration or revision; leave them out")
    saved = datasets.load_from_disk(path)
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise ValueError(f"no split '{split}' in {path}: it holds {sorted(splits)}")
    return splits[split].to_iterable_dataset() if streaming else splits[split]


def load_parquet(path: str, split: str, *, streaming: bool) -> Any:
    """One split of a parquet file, the files below a folder, or those of a glob.

    Without `streaming` datasets copies them once into its cache (HF_DATASETS_CACHE), in the form that it maps.

    Raises:
        FileNotFoundError: no parquet file at all.
        ValueError: none of this split.
    """
    pattern = f"{glob.escape(path)}/**/*.parquet" if Path(path).is_dir() else path
    found = [path] if Path(path).is_file() else sorted(glob.glob(pattern, recursive=True))
    files = [Path(file).absolute() for file in found if Path(file).is_file()]
    if not files:
        raise FileNotFoundError(f"no parquet files at {path}: expected a file, a folder of *.parquet, or a glob")
    escaped = [
        glob.escape(str(file)) for file in files_of_split(files, split, path)
    ]  # datasets takes them for patterns
    return import_datasets().load_dataset("parquet", data_files={split: escaped}, split=split, streaming=streaming)


def files_of_split(files: Sequence[Path], split: str, path: str) -> Sequence[Path]:
    """The files named `<split>-*` or like the split; all of them for "train" where no name tells a split.

    Raises:
        ValueError: none of this split.
    """
    named = [file for file in files if file.stem == split or file.name.startswith(f"{split}-")]
    if not named and (split != "train" or tells_splits([file.stem.partition("-")[0] for file in files])):
        listed = ", ".join(file.name for file in files[:5]) + ", ..." * (len(files) > 5)
        raise ValueError(
            f"no {split}-*{files[0].suffix} at {path}, where there are {listed}: name the files of this split so, or "
            "give another path or split"
        )
    return named or files


def import_datasets() -> Any:
    """The package `datasets`, where it is needed; raises ModuleNotFoundError that names the extra."""
    try:
        import datasets  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "datasets and parquet files are read by the package datasets: pip install '.[tokenize]' in a checkout of "
            "lgq_hf"
        ) from error
    return datasets


def tells_splits(names: Collection[str]) -> bool:
    """Whether one of `names` is that of a split: then a split that is not among them does not exist."""
    return not _SPLITS.isdisjoint(names)
