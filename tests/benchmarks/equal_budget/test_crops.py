import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.equal_budget.crops import MIN_STD, contrast, cut, cut_split, fingerprint, read_manifest
from lgq_hf.images.sources import FolderSource, open_source
from training.data import open_source as open_training_source

COUNTS = {"train": 11, "validation": 3, "test": 4}


def _picture(seed: int, *, flat: bool = False) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(np.full_like(pixels, 90) if flat else pixels)


def make_corpus(folder: Path, counts: dict[str, int], flat: tuple[str, ...] = ()) -> Path:
    """A corpus of noise, as `training.corpus` lays it out; the pictures named in `flat` have one colour."""
    rows, seed = [], 0
    for split, count in counts.items():
        for number in range(count):
            name, seed = f"images/{split}/{number}.png", seed + 1
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _picture(seed, flat=name in flat).save(folder / name)
            rows.append({"file": name, "split": split, "package": "noise", "source_sha256": f"{split}{number}"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = {"train": 4, "validation": 2, "test": 2}
    return make_corpus(tmp_path_factory.mktemp("corpus"), pictures, flat=("images/train/1.png",))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_crops_are_the_same_each_time_and_of_their_split(corpus: Path, tmp_path: Path) -> None:
    manifest = cut(corpus, tmp_path / "one", size=16, counts=COUNTS, seed=3)
    assert cut(corpus, tmp_path / "two", size=16, counts=COUNTS, seed=3) == manifest == read_manifest(tmp_path / "two")
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    other = cut(corpus, tmp_path / "three", size=16, counts=COUNTS, seed=4)
    assert other["files"] != manifest["files"] and fingerprint(other) != fingerprint(manifest)
    assert manifest["corpus"]["source_pictures"] == {"train": 4, "validation": 2, "test": 2}
    assert manifest["corpus"]["packages"]["test"] == {"noise": 2}
    for split, count in COUNTS.items():
        source = open_source(str(tmp_path / "one"), kind="parquet", split=split, image_column="image", id_column="id")
        training = open_training_source("parquet", tmp_path / "one", split)
        assert len(source) == len(training) == count  # type: ignore[arg-type]
        for index in range(count):
            assert source.id(index).startswith(f"images/{split}/")
            crop = source.read(index)
            assert crop.size == (16, 16) and contrast(crop) >= MIN_STD
            assert np.array_equal(np.asarray(crop), np.asarray(training.read(index)))  # type: ignore[union-attr]


def test_what_is_there_is_kept_and_other_crops_are_refused(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    manifest = cut(corpus, folder, size=16, counts=COUNTS, seed=0)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cut(corpus, folder, size=16, counts=COUNTS, seed=0) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match=r"holds crops of other settings .*'seed': 0.*: expected .*'seed': 1"):
        cut(corpus, folder, size=16, counts=COUNTS, seed=1)
    with pytest.raises(FileNotFoundError, match="no crops in .*: cut them by the stage 'crops'"):
        read_manifest(tmp_path)


def _given(folder: Path, flat: tuple[str, ...], count: int) -> Counter[str]:
    corpus = make_corpus(folder, {"train": 4}, flat)
    names = [f"images/train/{number}.png" for number in range(4)]
    pictures = FolderSource("corpus", corpus, names)
    crops = list(cut_split(pictures, 16, count, 0))
    assert len(crops) == count == len({name for name, _ in crops})
    return Counter(name.partition("#")[0] for name, _ in crops)


def test_crops_are_spread_evenly_and_flat_pictures_give_none(tmp_path: Path) -> None:
    assert sorted(_given(tmp_path / "a", (), 10).values()) == [2, 2, 3, 3]
    second = "images/train/1.png"
    given = _given(tmp_path / "b", (second,), 8)
    assert given == {"images/train/0.png": 2, "images/train/2.png": 4, "images/train/3.png": 2}  # the next one helps
    last = "images/train/3.png"
    assert sum(_given(tmp_path / "c", (last,), 8).values()) == 8  # from the beginning again
    with pytest.raises(ValueError, match="4 pictures gave 0 of 8 crops that are not flat"):
        _given(tmp_path / "d", tuple(f"images/train/{number}.png" for number in range(4)), 8)
