"""Images to train on: what each kind of source holds, the order that the seed alone decides, what cannot be read."""

import itertools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from lgq_hf import LGQImageProcessor
from lgq_hf.images.sources import FolderSource, ImageSource
from lgq_hf.images.stored import read_stored, stored_name
from lgq_hf.tokenizer.image_processing_lgq import formats
from training.crops import center_crop, scaled_crop
from training.data import Batch, ImageStream, UnreadableImages, open_source, training_batches, validation_batches

CROP = partial(scaled_crop, size=16, max_scale=2.0)
PROCESSOR = LGQImageProcessor()
ROOT = Path(__file__).parents[2]
Flat = list[tuple[str, torch.Tensor]]
BROKEN = {
    "b.png": "truncated: the file ends before the picture does",
    "d.jpg": f"not an image that can be read, or damaged in its header; formats: {', '.join(formats())}",
    "f.png": "empty file",
}
NO_PICTURE = "no picture in this row: expected bytes or a path, got NoneType"


# --- sources


def opened(*args: Any, **options: Any) -> ImageSource:
    pictures = open_source(*args, **options)
    assert not isinstance(pictures, ImageStream)
    return pictures


def streamed(*args: Any, **options: Any) -> ImageStream:
    stream = open_source(*args, streaming=True, **options)
    assert isinstance(stream, ImageStream)
    return stream


def pixels_or_reason(read: Any) -> Any:
    try:
        picture = read()
    except ValueError as error:
        return str(error)
    assert picture.mode == "RGB"
    return np.asarray(picture).tolist()


def contents(pictures: ImageSource) -> list[Any]:
    assert len({pictures.id(index) for index in range(len(pictures))}) == len(pictures)
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
        assert [pictures.id(index) for index in range(len(pictures))] == names and len(names) == number
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
    assert [pictures.id(index) for index in range(len(pictures))] == names
    assert contents(pictures) == [np.asarray(Image.open(corpus / name.split(" (")[0])).tolist() for name in names]
    with pytest.raises(ValueError, match=r"no package \['d'\]"):
        open_source("corpus", tmp_path, "train", repeat={"a": 2, "d": 2})
    with pytest.raises(ValueError, match="'c': 0"):
        open_source("corpus", tmp_path, "train", repeat=dict.fromkeys("abc", 0))


def test_folder_with_and_without_splits(folder: Path, files: dict[str, bytes], expected: Any, tmp_path: Path) -> None:
    pictures = opened("folder", folder, "train")
    assert [pictures.id(index) for index in range(len(pictures))] == list(files)
    assert contents(pictures) == expected
    for name in ("mine/1", "validation/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "p.png").write_bytes(files["a.png"])
    validation = opened("folder", tmp_path, "validation")
    assert [validation.id(index) for index in range(len(validation))] == ["x/p.png"]
    with pytest.raises(ValueError, match=r"no folder 'train' in .*, where there are \[.*'mine', 'validation'\]: put"):
        open_source("folder", tmp_path, "train")  # all of it would train on the validation pictures
    (tmp_path / "validation").rename(tmp_path / "more")
    assert len(opened("folder", tmp_path, "train")) == 2
    with pytest.raises(ValueError, match="no folder 'test'"):
        open_source("folder", tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="/missing"):
        open_source("folder", tmp_path / "missing", "train")


def test_saved_datasets(dataset: Any, expected: Any, tmp_path: Path) -> None:
    dataset.with_format("torch").save_to_disk(tmp_path / "one")
    pictures = opened("dataset", tmp_path / "one", "train")
    assert contents(pictures) == [*expected, NO_PICTURE]
    assert pictures.id(3) == "train[3]"
    datasets.DatasetDict(train=dataset, validation=dataset.select([4])).save_to_disk(tmp_path / "two")
    assert contents(opened("dataset", tmp_path / "two", "validation")) == [expected[4]]
    stream = streamed("dataset", tmp_path / "two", "train")
    assert [pixels_or_reason(lambda r=r: read_stored(r)) for r in stream.records(None)] == [*expected, NO_PICTURE]
    with pytest.raises(ValueError, match=r"no split 'test' in .*two: it holds \['train', 'validation'\]"):
        open_source("dataset", tmp_path / "two", "test")


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
        assert "a.png" in stored_name(stored[0]) and "b.png" in stored_name(stored[1])
    with pytest.raises(ValueError, match=r"no column 'picture' .*\['image'\]"):
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
    odd = tmp_path / "folder [1]" / "part-7.parquet"  # neither a pattern nor a split
    odd.parent.mkdir()
    odd.write_bytes((shards / "train-00000.parquet").read_bytes())
    assert len(opened("parquet", odd, "train")) == len(opened("parquet", odd.parent, "train")) == 3


def test_a_stream_is_shuffled_by_seed_and_epoch(shards: Path) -> None:
    def order(epoch: int | None, **options: Any) -> list[str]:
        return [stored_name(record) for record in streamed("parquet", shards, "train", **options).records(epoch)]

    stored = order(None)
    assert [name[:6] for name in stored] == ["a.png#", "b.png#", "c.png#", "d.jpg#", "e.png#", "f.png#"]
    orders = [order(epoch, seed=seed) for epoch in range(3) for seed in range(3)]
    assert all(sorted(one) == stored for one in orders)
    assert len({tuple(one) for one in orders}) > 6
    assert orders[4] == order(1, seed=1)
    with pytest.raises(ValueError, match=r"shuffle_buffer: expected at least 1 image, got 0"):
        streamed("parquet", shards, "train", shuffle_buffer=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("zip", {}), ("folder", {"streaming": True}), ("parquet", {"name": "en"}), ("folder", {"repeat": {"a": 2}})],
)
def test_options_that_do_not_belong_together(folder: Path, kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options), 'kind')}.*'{kind}'"):
        open_source(kind, folder, "train", **options)


# --- order


def flat(batches: Iterator[Batch], count: int) -> Flat:
    """(id, pixels) of the first `count` samples."""
    samples: Flat = []
    while len(samples) < count:
        batch = next(batches)
        assert batch.pixel_values.dtype == torch.float32 and batch.pixel_values.shape[1:] == (3, 16, 16)
        samples += zip(batch.ids, batch.pixel_values, strict=True)
    return samples[:count]


def shared(pictures: Any, count: int, *, world_size: int, batch_size: int, **options: Any) -> Flat:
    """The first `count` samples of several processes, in their global order."""
    ranks = [
        training_batches(pictures, CROP, PROCESSOR, rank=rank, world_size=world_size, batch_size=batch_size, **options)
        for rank in range(world_size)
    ]
    found: Flat = []
    while len(found) < count:
        for batches in ranks:
            found += flat(batches, batch_size)
    return found[:count]


def same(one: Flat, other: Flat) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.fixture
def numbered(folder: Path) -> FolderSource:
    pictures = open_source("folder", folder, "train")
    assert isinstance(pictures, FolderSource)
    return pictures


@pytest.fixture
def stream(dataset: Any, tmp_path: Path) -> ImageStream:
    """Nine rows in three shards, four of which cannot be read."""
    for number in range(3):
        dataset.select(range(3 * number, 3 * number + 3)).to_parquet(tmp_path / "shards" / f"train-{number}.parquet")
    stream = open_source("parquet", tmp_path / "shards", "train", streaming=True, shuffle_buffer=4, seed=2)
    assert isinstance(stream, ImageStream)
    return stream


@pytest.fixture(params=["numbered", "stream"])
def source(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def expected_of(source: Any, positions: Sequence[int], seed: int) -> Flat:
    """The definition, computed without any loader."""
    found: Flat = []
    for position in positions:
        size = len(source) if isinstance(source, FolderSource) else sum(1 for _ in source.records(None))
        while True:
            epoch, number = divmod(position, size)
            if isinstance(source, FolderSource):
                index = int(np.random.default_rng([seed, epoch]).permutation(size)[number])
                while "reason" in (reason_of(lambda index=index: source.read(index)) or ""):
                    index = (index + 1) % size
                name, picture, number = source.id(index), source.read(index), index
                break
            record = list(source.records(epoch))[number]
            if reason_of(lambda record=record: read_stored(record)) is None:
                name, picture = stored_name(record), read_stored(record)
                break
            position += 1
        crop = CROP(picture, np.random.default_rng([seed, epoch, number]))
        found.append((f"{name}@{epoch}", PROCESSOR(crop, return_tensors="pt")["pixel_values"][0]))
    return found


def reason_of(read: Any) -> str | None:
    try:
        read()
    except ValueError as error:
        return f"reason: {error}"
    return None


def test_samples_are_those_of_the_definition(source: Any) -> None:
    batches = training_batches(source, CROP, PROCESSOR, batch_size=4, seed=3)
    assert same(flat(batches, 28), expected_of(source, range(28), seed=3))


def test_nothing_but_the_seed_changes_the_order(source: Any) -> None:
    """Processes, batches, workers, and where a run begins: in an epoch, at its end, and some epochs later."""
    whole = shared(source, 48, world_size=1, batch_size=8, seed=1)
    for options in ({"world_size": 1, "batch_size": 4}, {"world_size": 2, "batch_size": 4}):
        assert same(shared(source, 48, **options, seed=1), whole)
    assert same(shared(source, 48, world_size=3, batch_size=2, seed=1, num_workers=2), whole)
    for start in (1, 7, 8, 9, 10, 27, 33):
        assert same(shared(source, 12, world_size=2, batch_size=3, seed=1, start=start), whole[start : start + 12])
    assert not same(shared(source, 48, world_size=1, batch_size=8, seed=2), whole)


def test_broken_pictures_are_told_and_replaced_by_the_next(numbered: FolderSource, stream: ImageStream) -> None:
    for workers in (0, 1):
        batch = next(training_batches(numbered, CROP, PROCESSOR, batch_size=8, seed=0, num_workers=workers))
        assert sorted(batch.unreadable) == list(BROKEN.items())
        assert sorted(batch.ids) == [f"{name}.png@0" for name in "acceegghh" if name != "h"] + ["h.png@0"]
        batch = next(training_batches(stream, CROP, PROCESSOR, batch_size=9, seed=0, num_workers=workers))
        names = {name.partition("#")[0]: reason for name, reason in batch.unreadable}
        assert sorted(names) == ["b.png", "d.jpg", "f.png", "row without a picture"]


def test_when_no_picture_can_be_read(
    numbered: FolderSource, stream: ImageStream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = [1, 3, 5]
    broken = FolderSource("broken", numbered.folder, [numbered.names[i] for i in bad])
    message = r"3 images in a row, from .* to .*, cannot be read \(the last: .*\): expected images that Pillow opens"
    for workers in (0, 1):
        with pytest.raises(ValueError, match=message):
            next(training_batches(broken, CROP, PROCESSOR, batch_size=2, seed=0, num_workers=workers))
    assert validated(broken, count=2) == []
    monkeypatch.setattr("training.data.MOST_IN_A_ROW", 12)
    no_rows = datasets.Dataset.from_dict({"image": [b"no", b"picture"]}).to_iterable_dataset()
    bad_stream = ImageStream(no_rows, "image", "rows", shuffle_buffer=2, seed=0)
    with pytest.raises(ValueError, match="12 images in a row"):
        next(training_batches(bad_stream, CROP, PROCESSOR, batch_size=2, seed=0))
    with pytest.raises(ValueError, match="the source holds no images: look at its path and split"):
        training_batches(FolderSource("none", Path(), []), CROP, PROCESSOR, batch_size=2, seed=0)
    no_rows = datasets.Dataset.from_dict({"image": [b"no"]}).to_iterable_dataset()
    empty = ImageStream(no_rows, "image", "rows", shuffle_buffer=2, seed=0)
    empty.dataset = empty.dataset.take(0)
    with pytest.raises(ValueError, match="rows holds no images: look at the source's path and split"):
        next(training_batches(empty, CROP, PROCESSOR, batch_size=2, seed=0))


def test_two_iterators_of_one_stream_do_not_disturb_each_other(stream: ImageStream) -> None:
    first = training_batches(stream, CROP, PROCESSOR, batch_size=3, seed=0)
    later = training_batches(stream, CROP, PROCESSOR, batch_size=3, seed=0, start=18)
    mixed = [flat(batches, 3) for _ in range(5) for batches in (first, later)]
    alone = flat(training_batches(stream, CROP, PROCESSOR, batch_size=3, seed=0), 33)
    assert same(list(itertools.chain(*mixed[0::2])), alone[:15])
    assert same(list(itertools.chain(*mixed[1::2])), alone[18:])


def test_the_processors_geometry_is_left_out_and_its_normalisation_is_not(numbered: FolderSource) -> None:
    resizing = {"do_resize": True, "size": {"shortest_edge": 40}, "do_center_crop": True}
    other = LGQImageProcessor(**resizing, pad_to_multiple_of=32, image_mean=[0.0] * 3, image_std=[1.0] * 3)  # type: ignore[arg-type]
    plain, changed = (
        next(training_batches(numbered, CROP, processor, batch_size=4, seed=0)) for processor in (PROCESSOR, other)
    )
    assert torch.allclose(changed.pixel_values, (plain.pixel_values + 1) / 2, atol=1e-6)


def test_dropped_iterators_leave_no_workers(numbered: FolderSource) -> None:
    before = set(multiprocessing.active_children())
    batches = training_batches(numbered, CROP, PROCESSOR, batch_size=4, seed=0, num_workers=2)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del batches
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("start", -1), ("world_size", 0), ("num_workers", -1), ("rank", 1)]
)
def test_numbers_out_of_range(numbered: FolderSource, name: str, value: int) -> None:
    with pytest.raises(ValueError, match="world_size: " if name == "rank" else f"{name}: .*{value}"):
        training_batches(numbered, CROP, PROCESSOR, **{"batch_size": 2, "seed": 0, name: value})  # type: ignore[arg-type]


def validated(source: Any, **options: Any) -> list[Batch]:
    return list(validation_batches(source, 16, PROCESSOR, **{"batch_size": 2, **options}))


def fixed_order(source: Any) -> str:
    """First letters of all pictures as validation meets them: numbered ones in one random order, a stream as it is."""
    if isinstance(source, ImageStream):
        return "abcdefghr"
    letters = [source.id(index)[0] for index in np.random.default_rng(0).permutation(len(source))]
    assert letters != sorted(letters)
    return "".join(letters)


def test_validation_is_the_first_in_one_order_shared_by_ranks(source: Any, folder: Path) -> None:
    order = fixed_order(source)
    readable = [letter for letter in order[:7] if letter in "acegh"]
    batches = validated(source, count=7)
    assert [name[0] for batch in batches for name in batch.ids] == readable
    assert [name[0] for batch in batches for name, _ in batch.unreadable] == [x for x in order[:7] if x not in "acegh"]
    rng = np.random.default_rng(0)
    crops = [center_crop(Image.open(folder / f"{name}.png"), rng, size=16, flip=0.0) for name in readable]
    pixels = PROCESSOR(crops, return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), pixels)
    for count in (5, 1):
        for rank in range(2):
            found = [
                name[0] for batch in validated(source, count=count, rank=rank, world_size=2) for name in batch.ids
            ]
            assert found == [letter for letter in order[:count][rank::2] if letter in "acegh"]


# --- unreadable images


def some(first: int, last: int) -> list[tuple[str, str]]:
    return [(f"{number}.png", "empty file") for number in range(first, last + 1)]


def listed(path: Path) -> list[str]:
    return [json.loads(line)["name"] for line in path.read_text().splitlines()]


def test_each_image_is_listed_and_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken.jsonl"
    images = UnreadableImages(path, 0.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            images.add(some(1, 3), seen=16)
    assert path.read_text().splitlines()[0] == '{"name": "1.png", "reason": "empty file"}'
    assert listed(path) == ["1.png", "2.png", "3.png"]
    assert len(caplog.records) == 3 and "1.png cannot be read: empty file" in caplog.text
    assert images.state_dict() == {"seen": 80, "reasons": dict(some(1, 3))}
    path.write_bytes(path.read_bytes()[:-5])  # a kill cut the last row short
    again = UnreadableImages(path, 0.0)
    again.add(some(1, 3), seen=3)
    assert listed(path) == ["1.png", "2.png", "3.png"]


def test_ten_are_tolerated_and_then_a_share_also_after_resuming(tmp_path: Path) -> None:
    images = UnreadableImages(tmp_path / "broken.jsonl", 0.02)
    images.add(some(1, 10), seen=10)
    with pytest.raises(ValueError, match=r"^11 unreadable .* 11 samples: a share of 0\.02 .*11\.png: empty file"):
        images.add(some(11, 11), seen=1)
    images.seen = 600
    images.add(some(12, 12), seen=0)
    resumed = UnreadableImages(tmp_path / "broken.jsonl", 0.02)
    resumed.load_state_dict(json.loads(json.dumps(images.state_dict())))
    with pytest.raises(ValueError, match="13 unreadable images among 600 samples"):
        resumed.add(some(13, 13), seen=0)
    with pytest.raises(ValueError, match=r"max_share: .*got 2"):
        UnreadableImages(tmp_path / "broken.jsonl", 2)


PROGRAM = """
import signal, sys, time
from functools import partial
from lgq_hf import LGQImageProcessor
from training.crops import scaled_crop
from training.data import open_source, training_batches

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
images = open_source("corpus", sys.argv[1], "train")
crop = partial(scaled_crop, size=64)
batches = training_batches(images, crop, LGQImageProcessor(), batch_size=16, seed=0, num_workers=2)
next(batches)
print("ready", flush=True)
while not told:
    time.sleep(0.05)
for _ in range(20):  # more than was read ahead
    next(batches)
print("saved", flush=True)
raise RuntimeError("with its workers alive")
"""


@pytest.mark.slow
def test_workers_outlive_a_signal_to_their_group_and_not_their_process(corpus: Path) -> None:
    started: list[Any] = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(corpus)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        started.append((process, psutil.Process(process.pid).children(recursive=True)))
    (told, workers), (killed, others) = started
    assert len(workers) >= 2 and len(others) >= 2
    os.killpg(told.pid, signal.SIGTERM)
    os.killpg(killed.pid, signal.SIGKILL)
    output, errors = told.communicate(timeout=60)
    assert (output, told.returncode) == ("saved\n", 1) and errors.endswith("RuntimeError: with its workers alive\n")
    killed.communicate(timeout=60)
    until = time.monotonic() + 20
    while (left := [one for one in [*workers, *others] if one.is_running()]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left
