import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from lgq_hf.checkpoint.loading import Reference
from lgq_hf.images.sources import DatasetSource, ImageSource, open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.tokens.encoding import Encoding
from lgq_hf.tokens.plan import make_plan

Sources = dict[str, tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def rows(pictures: Path) -> datasets.Dataset:
    files = sorted(pictures.rglob("*.jpg"))
    table = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "class": [int(file.parent.name == "people") for file in files],
        "name": [file.stem for file in files],
        "caption": [f"number {i}" for i in range(len(files))],
        "number": list(range(len(files))),
    }
    features = {"image": datasets.Image(), "class": datasets.ClassLabel(names=["cats", "people"])}
    features |= {"name": datasets.Value("string"), "caption": datasets.Value("string")}
    return datasets.Dataset.from_dict(
        table, features=datasets.Features({**features, "number": datasets.Value("int32")})
    )


@pytest.fixture(scope="module")
def sources(pictures: Path, rows: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """One source of each kind, over the same pictures, and the options to read it."""
    folder = tmp_path_factory.mktemp("sources")
    rows.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    for number in range(2):
        rows.shard(2, number, contiguous=True).to_parquet(folder / "parquet" / f"train-{number}.parquet")
    (folder / "tars").mkdir()
    files = sorted(pictures.rglob("*.jpg"))
    for number in range(2):
        with tarfile.open(folder / "tars" / f"{number}.tar", "w") as tar:
            for file in files[6 * number : 6 * number + 6]:
                for suffix, content in (("jpg", file.read_bytes()), ("cls", b"1" if "people" in str(file) else b"0")):
                    info = tarfile.TarInfo(f"{file.stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    options = {"label_column": "class", "id_column": "name"}
    return {
        "folder": (str(pictures), {}),
        "dataset": (str(folder / "saved"), options),
        "parquet": (str(folder / "parquet"), options),
        "webdataset": (str(folder / "tars"), {"label_column": "cls"}),
    }


@pytest.mark.parametrize("kind", ["folder", "dataset", "parquet", "webdataset"])
def test_every_kind_gives_the_same_pictures_and_labels(sources: Sources, pictures: Path, kind: str) -> None:
    path, options = sources[kind]
    source = open_source(path, **options)
    assert source.kind == kind
    files = sorted(pictures.rglob("*.jpg"))
    folder = open_source(str(pictures))
    assert len(source) == len(files) == 11
    for index, file in enumerate(files):
        assert source.id(index) == (f"{file.parent.name}/{file.name}" if kind == "folder" else file.stem)
        assert source.columns(index) == {"label": int(file.parent.name == "people")}
        assert np.array_equal(np.asarray(source.read(index)), np.asarray(folder.read(index)))
    sent: ImageSource = pickle.loads(pickle.dumps(source))  # to another process
    assert (sent.id(4), sent.columns(4), sent.read(4)) == (source.id(4), source.columns(4), source.read(4))
    label = source.features["label"]
    names = datasets.ClassLabel(names=["cats", "people"])
    assert label == (datasets.Value("int64") if kind == "webdataset" else names)


def test_the_digest_tells_sources_apart(sources: Sources, pictures: Path, tmp_path: Path) -> None:
    """Other columns, other images, other labels, another file."""
    path, options = sources["parquet"]
    assert open_source(path, **options).digest() == open_source(path, **options).digest()
    files = [{"bytes": file.read_bytes(), "path": None} for file in sorted(pictures.rglob("*.jpg"))]
    features = datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")})
    digests = [open_source(path, **options, keep=keep).digest() for keep in ([], ["caption"])]
    for chosen, labels in ((files[:2], [0, 1]), (files[4:6], [0, 1]), (files[:2], [1, 1])):
        rows = datasets.Dataset.from_dict({"image": chosen, "y": labels}, features=features)
        more: Any = {"image_column": None, "id_column": None, "keep": []}
        digests.append(DatasetSource(rows, "dataset", "rows", "train", label_column="y", **more).digest())
    (tmp_path / "in").mkdir()
    for name in ("1.jpg", "in/2.jpg"):
        (tmp_path / name).write_bytes(b"")
        source = open_source(str(tmp_path))
        digests.append(source.digest())
    assert len(set(digests)) == len(digests) == 7
    assert (source.features, source.columns(0)) == ({}, {})  # no labels where an image lies beside the folders


def test_kept_columns_and_row_numbers(sources: Sources) -> None:
    source = open_source(sources["dataset"][0], keep=["caption", "number"])
    assert source.id(3) == "train[3]"
    assert source.columns(3) == {"caption": "number 3", "number": 3}
    assert source.features == {"caption": datasets.Value("string"), "number": datasets.Value("int32")}
    assert open_source(sources["dataset"][0], id_column="number").id(3) == "3"
    assert open_source(sources["webdataset"][0], id_column="").id(3) == "train[3]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, r"no column 'picture' in .*, which has \['caption', 'class', 'image', 'name',"),
        ({"image_column": "number"}, "column 'number' of .* holds .*int32.*: expected pictures, bytes or paths"),
        ({"label_column": "caption"}, "label column 'caption' .* expected integers or a ClassLabel"),
        ({"id_column": "class"}, "the id column 'class' of .* expected strings or integers"),
        ({"keep": ["id"]}, "cannot keep the column 'id': token shards use that name themselves"),
        ({"keep": ["image"]}, "cannot keep the column 'image'"),
        ({"keep": ["nothing"]}, "no column 'nothing' in"),
        ({"kind": "zip"}, r"kind: expected one of \['folder', 'dataset', 'parquet', 'webdataset'\], got 'zip'"),
        ({"kind": "parquet", "revision": "main"}, "a configuration and a revision are for kind 'dataset'"),
        ({"split": "test"}, r"no split 'test' in .*: it holds \['train'\]"),
    ],
)
def test_bad_columns(sources: Sources, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(sources["dataset"][0], **options)


def _of(table: dict[str, list[Any]], **options: Any) -> ImageSource:
    given: dict[str, Any] = {"image_column": None, "label_column": None, "id_column": None, "keep": []}
    dataset = datasets.Dataset.from_dict(table)
    return DatasetSource(dataset, "dataset", "rows", "train", **{**given, **options})


def test_labels_and_pictures_that_are_missing() -> None:
    with pytest.raises(ValueError, match="row 1 of rows has label None: expected a class number, 0 or more, in all"):
        _of({"image": ["a.jpg", "b.jpg"], "y": [0, None]}, image_column="image", label_column="y")
    with pytest.raises(ValueError, match="row 1 of rows has label -1"):
        _of({"image": ["a.jpg", "b.jpg"], "y": [0, -1]}, image_column="image", label_column="y")
    with pytest.raises(ValueError, match=r"0 columns of rows hold pictures \[\], of \['image', 'y'\]: say which one"):
        _of({"image": ["a.jpg"], "y": [0]})
    with pytest.raises(ValueError, match="the id 1 stands twice in column 'n' of rows"):
        _of({"image": ["a.jpg", "b.jpg"], "n": [1, 1]}, image_column="image", id_column="n")
    source = _of({"image": ["/nowhere/a.jpg", None]}, image_column="image")
    with pytest.raises(ValueError, match="no such file"):
        source.read(0)
    with pytest.raises(ValueError, match="no picture in this row"):
        source.read(1)


def test_paths_that_hold_nothing(tmp_path: Path, sources: Sources, pictures: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to do: there is no /nowhere/pictures"):
        open_source("/nowhere/pictures")
    with pytest.raises(FileNotFoundError, match=r"01.jpg is no folder: expected one that holds pictures"):
        open_source(str(pictures / "cats" / "01.jpg"), kind="folder")
    with pytest.raises(ValueError, match="nothing to do: .*no pictures found"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="image_column, keep: .* is a folder of pictures, it has no columns"):
        open_source(str(pictures), image_column="image", keep=["caption"])
    datasets.Dataset.from_dict({"image": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"cannot read .*empty \(train\) as dataset, it is damaged or empty"):
        open_source(str(tmp_path / "empty"))
    for kind in ("parquet", "webdataset"):
        path = sources[kind][0]
        for file in Path(path).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="holds parquet files and tars: say which to read by kind"):
        open_source(str(tmp_path))


def test_tars_of_other_splits_are_left_out(sources: Sources, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "validation")):
        shutil.copy(Path(sources["webdataset"][0], f"{number}.tar"), tmp_path / f"{split}-0.tar")
    assert [len(open_source(str(tmp_path), split=split)) for split in ("train", "validation")] == [6, 5]
    with pytest.raises(ValueError, match=r"no test-\*\.tar at .*, where there are train-0.tar, validation-0.tar"):
        open_source(str(tmp_path), split="test")
    (tmp_path / "validation-0.tar").write_bytes(b"nothing" * 200)
    with pytest.raises(ValueError, match=r"cannot read .* \(validation\) as webdataset, it is damaged or empty"):
        open_source(str(tmp_path), split="validation")


def test_names_that_are_no_text(pictures: Path, tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"gr\xfcn")
    os.mkdir(folder)
    with open(os.path.join(folder, b"caf\xe9.jpg"), "wb") as file:
        file.write((pictures / "cats" / "01.jpg").read_bytes())
    source = open_source(str(tmp_path))
    assert source.id(0) == "gr\\xfcn/caf\\xe9.jpg"
    assert source.features["label"].names == ["gr\\xfcn"]
    assert source.read(0).size == Image.open(pictures / "cats" / "01.jpg").size
    source.digest()


def test_no_rows(reference: Reference) -> None:
    empty = datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": datasets.Image()}))
    options: Any = {"image_column": None, "label_column": None, "id_column": None, "keep": ()}
    source = DatasetSource(empty, "dataset", "rows", "train", **options)
    with pytest.raises(ValueError, match="nothing to do: rows has no pictures"):
        make_plan(reference, "tiny", source, Preprocessing(64), Encoding())
