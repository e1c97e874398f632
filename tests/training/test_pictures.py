"""What each kind of source holds, what of it cannot be read, and what cannot be opened."""

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from lgq_hf import LGQImageProcessor
from lgq_hf.images.stored import read_stored, stored_name, to_rgb
from training.dataset_pictures import PictureStream
from training.pictures import Pictures, open_source

BROKEN = {
    "b.png": "truncated: the file ends before the picture does",
    "d.jpg": "not an image that can be read, or damaged in its header",
    "f.png": "empty file",
}
NO_PICTURE = "no picture in this row: expected bytes or a path, got NoneType"


def opened(*args: Any, **options: Any) -> Pictures:
    pictures = open_source(*args, **options)
    assert not isinstance(pictures, PictureStream)
    return pictures


def streamed(*args: Any, **options: Any) -> PictureStream:
    stream = open_source(*args, streaming=True, **options)
    assert isinstance(stream, PictureStream)
    return stream


def pixels_or_reason(read: Any) -> Any:
    try:
        picture = read()
    except ValueError as error:
        return str(error)
    assert picture.mode == "RGB"
    return np.asarray(picture).tolist()


def contents(pictures: Pictures) -> list[Any]:
    assert len({pictures.name(index) for index in range(len(pictures))}) == len(pictures)
    return [pixels_or_reason(lambda index=index: pictures.read(index)) for index in range(len(pictures))]


@pytest.fixture(scope="session")
def expected(folder: Path) -> list[Any]:
    """Pixels of each whole file, and the reason of each broken one, in the order of names."""
    paths = sorted(folder.iterdir())
    return [BROKEN.get(path.name) or np.asarray(Image.open(path).convert("RGB")).tolist() for path in paths]


def test_corpus(corpus: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    for split, number in (("train", 6), ("validation", 2)):
        pictures = opened("corpus", corpus, split)
        names = [row["file"] for row in rows if row["split"] == split]
        assert [pictures.name(index) for index in range(len(pictures))] == names and len(names) == number
        assert contents(pictures) == [np.asarray(Image.open(corpus / name)).tolist() for name in names]
    with pytest.raises(FileNotFoundError, match=r"no manifest\.jsonl in .*: build a corpus with"):
        open_source("corpus", tmp_path, "train")
    with pytest.raises(ValueError, match=r"split 'tests' of .* is empty; it has \['train', 'validation'\]"):
        open_source("corpus", corpus, "tests")


def test_packages_of_a_corpus_that_come_again_or_not_at_all(corpus: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    files = [row["file"] for row in rows if row["split"] == "train"]
    for row, package in zip(rows, "abcaab__", strict=True):
        row["package"] = package
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "images").symlink_to(corpus / "images")
    pictures = opened("corpus", tmp_path, "train", repeat={"b": 3, "a": 0})
    second, third, last = files[1], files[2], files[5]
    names = [second, f"{second} (2)", f"{second} (3)", third, last, f"{last} (2)", f"{last} (3)"]
    assert [pictures.name(index) for index in range(len(pictures))] == names
    assert contents(pictures) == [np.asarray(Image.open(corpus / name.split(" (")[0])).tolist() for name in names]
    with pytest.raises(
        ValueError, match=r"repeat: split 'train' of .* has no package \['d'\]; it has \['a', 'b', 'c'\]"
    ):
        open_source("corpus", tmp_path, "train", repeat={"a": 2, "d": 2})
    with pytest.raises(ValueError, match=r"repeat leaves no picture of split 'train' of .*'c': 0"):
        open_source("corpus", tmp_path, "train", repeat=dict.fromkeys("abc", 0))
    with pytest.raises(
        ValueError, match="repeat is for kind 'corpus', whose pictures have packages, got kind 'folder'"
    ):
        open_source("folder", corpus, "train", repeat={"a": 2})


def test_folder_with_and_without_splits(folder: Path, files: dict[str, bytes], expected: Any, tmp_path: Path) -> None:
    pictures = opened("folder", folder, "train")
    assert [pictures.name(index) for index in range(len(pictures))] == list(files)
    assert contents(pictures) == expected
    for name in ("mine/1", "validation/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "p.png").write_bytes(files["a.png"])
    validation = opened("folder", tmp_path, "validation")
    assert [validation.name(index) for index in range(len(validation))] == ["x/p.png"]
    with pytest.raises(ValueError, match=r"no folder 'train' in .*, where there are \[.*'mine', 'validation'\]: put"):
        open_source("folder", tmp_path, "train")  # all of it would train on the validation pictures
    (tmp_path / "validation").rename(tmp_path / "more")
    assert len(opened("folder", tmp_path, "train")) == 2
    with pytest.raises(ValueError, match=r"no folder 'test' in .*: put the pictures of this split into .*/test"):
        open_source("folder", tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"no folder .*/missing: path must be a folder of pictures"):
        open_source("folder", tmp_path / "missing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"nothing to do: .*/empty: no pictures found"):
        open_source("folder", tmp_path / "empty", "train")


def test_a_folder_that_cannot_be_searched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    scandir = os.scandir

    def forbidden(path: Any) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(ValueError, match=r"cannot be searched to its end: .*/secret: permission denied"):
        open_source("folder", tmp_path, "train")


def test_saved_datasets(dataset: Any, expected: Any, tmp_path: Path) -> None:
    dataset.with_format("torch").save_to_disk(tmp_path / "one")
    pictures = opened("dataset", tmp_path / "one", "train")
    assert contents(pictures) == [*expected, NO_PICTURE]
    assert pictures.name(3) == "train[3]"
    with pytest.raises(ValueError, match=r"no split 'validation' in .*one: it holds \['train'\]"):
        open_source("dataset", tmp_path / "one", "validation")
    datasets.DatasetDict(train=dataset, validation=dataset.select([4])).save_to_disk(tmp_path / "two")
    assert contents(opened("dataset", tmp_path / "two", "validation")) == [expected[4]]
    stream = streamed("dataset", tmp_path / "two", "train")
    assert [pixels_or_reason(lambda r=r: read_stored(r)) for r in stream.records(None)] == [*expected, NO_PICTURE]
    with pytest.raises(ValueError, match=r"no split 'test' in .*two: it holds \['train', 'validation'\]"):
        open_source("dataset", tmp_path / "two", "test")
    with pytest.raises(ValueError, match=r"was written by save_to_disk: it has no configuration or revision; leave"):
        open_source("dataset", tmp_path / "two", "train", revision="main")


def test_local_datasets(files: dict[str, bytes], expected: Any, tmp_path: Path) -> None:
    """Folders that load_dataset takes: pictures as files, in an archive, and paths in a table."""
    for split in ("train", "test"):
        (tmp_path / "files" / split).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            (tmp_path / "files" / split / name).write_bytes(files[name])
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, files[name])
    (tmp_path / "table").mkdir()
    rows = [str(tmp_path / "files" / "train" / name) for name in ("a.png", "b.png")]
    (tmp_path / "table" / "train.csv").write_text("\n".join(["image", *rows]) + "\n")
    for path in ("files", "zipped", "table"):
        assert contents(opened("dataset", tmp_path / path, "train")) == expected[:2]
        stored = list(streamed("dataset", tmp_path / path, "train").records(None))
        assert [pixels_or_reason(lambda r=r: read_stored(r)) for r in stored] == expected[:2]
        assert [stored_name(record).rpartition("/")[2].partition("::")[0] for record in stored] == [
            "a.png",
            "b.png",
        ] or (path == "zipped" and stored_name(stored[0]).startswith("zip://a.png::"))
    with pytest.raises(ValueError, match="tests"):  # in the words of datasets
        open_source("dataset", tmp_path / "files", "tests")
    with pytest.raises(
        ValueError, match=r"no column 'picture' in .*table \(train\), which has \['image'\]: set image_"
    ):
        open_source("dataset", tmp_path / "table", "train", image_column="picture", streaming=True)
    (tmp_path / "files" / "train" / "a.png").unlink()
    assert pixels_or_reason(lambda: opened("dataset", tmp_path / "table", "train").read(0)) == "no such file"


def test_parquet(shards: Path, expected: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    for path in (shards, shards / "*.parquet", shards.parent / "shards*"):
        for split, part in (("train", expected[:6]), ("validation", [*expected[6:], NO_PICTURE])):
            if path.name == "shards*":  # folders are not files
                with pytest.raises(FileNotFoundError, match=r"no parquet files at .*\*: expected a file, a folder"):
                    open_source("parquet", path, split)
                continue
            assert contents(opened("parquet", path, split)) == part
            stream = streamed("parquet", path, split)
            assert [pixels_or_reason(lambda r=r: read_stored(r)) for r in stream.records(None)] == part
    with pytest.raises(ValueError, match=r"no test-\*\.parquet at .*, where there are train-00000\.parquet, train-"):
        open_source("parquet", shards, "test")
    with pytest.raises(
        ValueError, match=r"no train-\*\.parquet at .*, where there are validation-00000\.parquet: name"
    ):
        open_source("parquet", shards / "val*", "train")
    odd = tmp_path / "folder [1]" / "part-7.parquet"  # neither a pattern nor a split
    odd.parent.mkdir()
    odd.write_bytes((shards / "train-00000.parquet").read_bytes())
    assert len(opened("parquet", odd, "train")) == len(opened("parquet", odd.parent, "train")) == 3


def test_columns_of_bytes_and_of_something_else(files: dict[str, bytes], expected: Any, tmp_path: Path) -> None:
    rows = {"jpg": list(files.values()), "label": list(range(len(files)))}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        pictures = open_source("parquet", tmp_path, "train", image_column="jpg", streaming=streaming)
        if isinstance(pictures, PictureStream):
            assert [pixels_or_reason(lambda r=r: read_stored(r)) for r in pictures.records(None)] == expected
            assert len({stored_name(record) for record in pictures.records(None)}) == len(files)
        else:
            assert contents(pictures) == expected
        with pytest.raises(ValueError, match=r"no column 'image' in .* \(train\), which has \['jpg', 'label'\]: set"):
            open_source("parquet", tmp_path, "train", streaming=streaming)
        with pytest.raises(
            ValueError, match=r"column 'label' of .* holds Value\('int64'\): expected pictures, bytes or"
        ):
            open_source("parquet", tmp_path, "train", image_column="label", streaming=streaming)


def test_a_stream_is_shuffled_by_seed_and_epoch(shards: Path) -> None:
    def order(epoch: int | None, **options: Any) -> list[str]:
        return [stored_name(record) for record in streamed("parquet", shards, "train", **options).records(epoch)]

    stored = order(None)
    assert [name[:6] for name in stored] == ["a.png#", "b.png#", "c.png#", "d.jpg#", "e.png#", "f.png#"]
    orders = [order(epoch, seed=seed) for epoch in range(3) for seed in range(3)]
    assert all(sorted(one) == stored for one in orders)
    assert len({tuple(one) for one in orders}) > 6
    assert orders[4] == order(1, seed=1)
    with pytest.raises(ValueError, match=r"shuffle_buffer: expected at least 1 picture, got 0"):
        streamed("parquet", shards, "train", shuffle_buffer=0)


def test_options_that_do_not_belong_together(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"kind: expected one of \['corpus', 'folder', 'dataset', 'parquet'\], got 'zip'"
    ):
        open_source("zip", folder, "train")
    with pytest.raises(ValueError, match=r"streaming is for kind 'dataset' and 'parquet', got kind 'folder'"):
        open_source("folder", folder, "train", streaming=True)
    with pytest.raises(
        ValueError, match=r"revision and name are for kind 'dataset', got revision=None and name='en' wi"
    ):
        open_source("parquet", folder, "train", name="en")


def test_without_datasets(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for kind in ("dataset", "parquet"):
        with pytest.raises(
            ModuleNotFoundError, match=r"read by the package datasets: pip install 'lgq_hf\[tokenize\]'"
        ):
            open_source(kind, shards, "train")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "transparent"])
def test_rgb_is_what_the_processor_makes(mode: str, files: dict[str, bytes], folder: Path) -> None:
    picture = Image.open(folder / "a.png")
    if mode == "transparent":
        picture = picture.copy()
        picture.info["transparency"] = picture.getpixel((5, 5))
    elif mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257 + 100)
    else:
        picture = picture.convert(mode)
    pixels = LGQImageProcessor()(picture, do_normalize=False, return_tensors="np")["pixel_values"][0]
    ours = to_rgb(picture)
    assert ours.mode == "RGB"
    assert (np.asarray(ours) == np.round(pixels * 255).transpose(1, 2, 0)).all()
    with pytest.raises(ValueError, match="PIL image of mode 'F': expected one of"):
        to_rgb(picture.convert("L").convert("F"))
