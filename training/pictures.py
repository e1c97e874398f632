"""Where training pictures come from: one of four kinds of sources, opened as numbered pictures or as a stream."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from lgq_hf.images.opening import find_pictures, read_picture
from lgq_hf.images.stored import load_parquet, load_split, tells_splits, to_rgb

if TYPE_CHECKING:
    from training.dataset_pictures import PictureStream

KINDS = ("corpus", "folder", "dataset", "parquet")


class Pictures(Protocol):
    """Pictures by number. Reading depends on the number alone, so that any process may read any of them."""

    def __len__(self) -> int:
        """How many there are, with those that cannot be read."""

    def name(self, index: int) -> str:
        """What messages call picture `index`; no other one has the same name."""

    def read(self, index: int) -> Image.Image:
        """Picture `index`, upright and RGB; raises ValueError with a reason of one line where it cannot be read."""


class FilePictures:
    """Pictures in files, by name; the class `Pictures` says what it offers."""

    def __init__(self, files: Sequence[Path], names: Sequence[str]) -> None:
        self.files, self.names = files, names

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file's name within its source."""
        return self.names[index]

    def read(self, index: int) -> Image.Image:
        """The picture as RGB; raises ValueError with the reason where it cannot be read."""
        return to_rgb(read_picture(self.files[index]))


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
) -> "Pictures | PictureStream":
    """Opens one split of a source of pictures; none is decoded yet.

    Args:
        kind: "corpus": a folder that `training.corpus` built. "folder": pictures below a folder, in sorted order.
            "dataset": a folder written by `save_to_disk` of Hugging Face datasets, or what its `load_dataset` takes.
            "parquet": a file, folder or glob of parquet files, on this machine.
        path: of the source, or a dataset's name on the Hub.
        split: for "folder" the subfolder of that name. For "parquet" the files named `<split>-*.parquet` or
            `<split>.parquet`. Where no name tells a split, "train" is everything.
        image_column: of datasets and parquet: encoded pictures (datasets' Image, or bytes) or paths of files.
        repeat: of a corpus: how often its pictures come, by package; those that are not named come once.
        streaming: a `PictureStream` instead of `Pictures`, for "dataset" and "parquet".
        revision: commit, branch or tag of a dataset on the Hub.
        name: configuration of a dataset that has several.
        shuffle_buffer: pictures among which a stream draws the next one; all of them are kept in memory, undecoded.
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
        raise ValueError(f"repeat is for kind 'corpus', whose pictures have packages, got kind {kind!r}: leave it out")
    if kind in ("corpus", "folder"):
        if streaming:
            raise ValueError(f"streaming is for kind 'dataset' and 'parquet', got kind {kind!r}: leave it out")
        return _open_corpus(Path(path), split, repeat or {}) if kind == "corpus" else _open_folder(Path(path), split)
    from training import dataset_pictures  # which imports this file, and datasets where it is needed

    if kind == "dataset":
        dataset = load_split(str(path), split, name=name, revision=revision, streaming=streaming)
    else:
        dataset = load_parquet(str(path), split, streaming=streaming)
    label = f"{path} ({split})"
    if streaming:
        return dataset_pictures.PictureStream(dataset, image_column, label, shuffle_buffer=shuffle_buffer, seed=seed)
    return dataset_pictures.DatasetPictures(dataset, image_column, label, split)


def _open_corpus(corpus: Path, split: str, repeat: Mapping[str, int]) -> FilePictures:
    """The pictures of one split in the manifest's order; where one comes again, its name has a number behind it."""
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
        raise ValueError(f"repeat leaves no picture of split '{split}' of {corpus}: {dict(repeat)}")
    return FilePictures(
        [corpus / file for file, _ in turns], [f"{file} ({turn + 1})" if turn else file for file, turn in turns]
    )


def _open_folder(folder: Path, split: str) -> FilePictures:
    """The pictures below `folder/split`, or below `folder` where that is all there is."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: path must be a folder of pictures")
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if split in folders:
        folder = folder / split
    elif split != "train" or tells_splits(folders):
        raise ValueError(
            f"no folder '{split}' in {folder}, where there are {folders}: put the pictures of this split into "
            f"{folder / split}, or give another path or split"
        )
    sources, failures = find_pictures([str(folder)])
    if failures:
        listed = "; ".join(f"{path}: {reason}" for path, reason in failures)
        raise ValueError(f"{folder} cannot be searched to its end: {listed}")
    return FilePictures([source.path for source in sources], [source.name for source in sources])
