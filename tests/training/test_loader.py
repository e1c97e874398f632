"""The order of samples, which nothing but the seed may change, and what stands in for pictures that cannot be read."""

import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from lgq_hf import LGQImageProcessor
from lgq_hf.images.stored import read_stored, stored_name
from training import samples
from training.crops import center_crop, scaled_crop
from training.dataset_pictures import PictureStream
from training.loader import training_batches, validation_batches
from training.pictures import FilePictures, Pictures, open_source
from training.samples import Batch

CROP = partial(scaled_crop, size=16, max_scale=2.0)
PROCESSOR = LGQImageProcessor()
Flat = list[tuple[str, torch.Tensor]]


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
def numbered(folder: Path) -> FilePictures:
    pictures = open_source("folder", folder, "train")
    assert isinstance(pictures, FilePictures)
    return pictures


@pytest.fixture
def stream(dataset: Any, tmp_path: Path) -> PictureStream:
    """Nine rows in three shards, four of which cannot be read."""
    for number in range(3):
        dataset.select(range(3 * number, 3 * number + 3)).to_parquet(tmp_path / "shards" / f"train-{number}.parquet")
    stream = open_source("parquet", tmp_path / "shards", "train", streaming=True, shuffle_buffer=4, seed=2)
    assert isinstance(stream, PictureStream)
    return stream


@pytest.fixture(params=["numbered", "stream"])
def source(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def expected_of(source: Any, positions: Sequence[int], seed: int) -> Flat:
    """The definition, computed without any loader."""
    found: Flat = []
    for position in positions:
        size = len(source) if isinstance(source, FilePictures) else sum(1 for _ in source.records(None))
        while True:
            epoch, number = divmod(position, size)
            if isinstance(source, FilePictures):
                index = int(np.random.default_rng([seed, epoch]).permutation(size)[number])
                while "reason" in (reason_of(lambda index=index: source.read(index)) or ""):
                    index = (index + 1) % size
                name, picture, number = source.name(index), source.read(index), index
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


def test_an_epoch_visits_every_picture_once(corpus: Path) -> None:
    pictures = open_source("corpus", corpus, "train")
    ids = [one for one, _ in flat(training_batches(pictures, CROP, PROCESSOR, batch_size=4, seed=3), 18)]
    epochs = [[name.split("@") for name in ids[6 * epoch : 6 * epoch + 6]] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert {at for _, at in epoch} == {str(number)} and len({name for name, _ in epoch}) == 6
    assert [name for name, _ in epochs[0]] != [name for name, _ in epochs[1]]


def test_broken_pictures_are_told_and_replaced_by_the_next(numbered: FilePictures, stream: PictureStream) -> None:
    for workers in (0, 1):
        batch = next(
            training_batches(numbered, CROP, PROCESSOR, batch_size=8, seed=0, num_workers=workers)
        )  # an epoch
        assert sorted(batch.broken) == [
            ("b.png", "truncated: the file ends before the picture does"),
            ("d.jpg", "not an image that can be read, or damaged in its header"),
            ("f.png", "empty file"),
        ]
        assert sorted(batch.ids) == [f"{name}.png@0" for name in "acceegghh" if name != "h"] + ["h.png@0"]
        batch = next(training_batches(stream, CROP, PROCESSOR, batch_size=9, seed=0, num_workers=workers))
        names = {name.partition("#")[0]: reason for name, reason in batch.broken}
        assert sorted(names) == ["b.png", "d.jpg", "f.png", "row without a picture"]


def test_when_no_picture_can_be_read(
    numbered: FilePictures, stream: PictureStream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = [1, 3, 5]
    broken = FilePictures([numbered.files[i] for i in bad], [numbered.names[i] for i in bad])
    message = (
        r"3 pictures in a row, from .* to .*, cannot be read \(the last: .*\): expected pictures that Pillow opens"
    )
    for workers in (0, 1):
        with pytest.raises(ValueError, match=message):
            next(training_batches(broken, CROP, PROCESSOR, batch_size=2, seed=0, num_workers=workers))
    with pytest.raises(ValueError, match=message):
        next(validation_batches(broken, 16, PROCESSOR, count=2, batch_size=2))
    monkeypatch.setattr("training.stream_loader.MOST_IN_A_ROW", 12)
    no_rows = datasets.Dataset.from_dict({"image": [b"no", b"picture"]}).to_iterable_dataset()
    bad_stream = PictureStream(no_rows, "image", "rows", shuffle_buffer=2, seed=0)
    with pytest.raises(ValueError, match="12 pictures in a row"):
        next(training_batches(bad_stream, CROP, PROCESSOR, batch_size=2, seed=0))
    with pytest.raises(ValueError, match="the source holds no pictures: look at its path and split"):
        training_batches(FilePictures([], []), CROP, PROCESSOR, batch_size=2, seed=0)
    no_rows = datasets.Dataset.from_dict({"image": [b"no"]}).to_iterable_dataset()
    empty = PictureStream(no_rows, "image", "rows", shuffle_buffer=2, seed=0)
    empty.dataset = empty.dataset.take(0)
    with pytest.raises(ValueError, match="rows holds no pictures: look at the source's path and split"):
        next(training_batches(empty, CROP, PROCESSOR, batch_size=2, seed=0))
    assert samples.MOST_IN_A_ROW == 1000


def test_two_iterators_of_one_stream_do_not_disturb_each_other(stream: PictureStream) -> None:
    first = training_batches(stream, CROP, PROCESSOR, batch_size=3, seed=0)
    later = training_batches(stream, CROP, PROCESSOR, batch_size=3, seed=0, start=18)
    mixed = [flat(batches, 3) for _ in range(5) for batches in (first, later)]
    alone = flat(training_batches(stream, CROP, PROCESSOR, batch_size=3, seed=0), 33)
    assert same(list(itertools.chain(*mixed[0::2])), alone[:15])
    assert same(list(itertools.chain(*mixed[1::2])), alone[18:])


def test_the_processors_geometry_is_left_out_and_its_normalisation_is_not(numbered: FilePictures) -> None:
    resizing = {"do_resize": True, "size": {"shortest_edge": 40}, "do_center_crop": True}
    other = LGQImageProcessor(**resizing, pad_to_multiple_of=32, image_mean=[0.0] * 3, image_std=[1.0] * 3)  # type: ignore[arg-type]
    plain, changed = (
        next(training_batches(numbered, CROP, processor, batch_size=4, seed=0)) for processor in (PROCESSOR, other)
    )
    assert torch.allclose(changed.pixel_values, (plain.pixel_values + 1) / 2, atol=1e-6)


def test_torchs_global_generator_is_not_moved(numbered: FilePictures) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(training_batches(numbered, CROP, PROCESSOR, batch_size=4, seed=0, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropped_iterators_leave_no_workers(numbered: FilePictures) -> None:
    before = set(multiprocessing.active_children())
    batches = training_batches(numbered, CROP, PROCESSOR, batch_size=4, seed=0, num_workers=2)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del batches
    assert set(multiprocessing.active_children()) == before


def test_numbers_out_of_range(numbered: FilePictures) -> None:
    for name, value, lowest in (
        ("batch_size", 0, 1),
        ("start", -1, 0),
        ("world_size", 0, 1),
        ("rank", -1, 0),
        ("num_workers", -1, 0),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected at least {lowest}, got {value}"):
            training_batches(numbered, CROP, PROCESSOR, **{"batch_size": 2, "seed": 0, name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank: expected less than world_size=2, got 2"):
        training_batches(numbered, CROP, PROCESSOR, batch_size=2, seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        next(validation_batches(numbered, 16, PROCESSOR, count=0, batch_size=2))
    with pytest.raises(ValueError, match="rank: expected less than world_size=1, got 1"):
        next(validation_batches(numbered, 16, PROCESSOR, count=1, batch_size=2, rank=1))


def readable_names(source: Pictures | PictureStream) -> list[str]:
    return [name.partition("#")[0] for batch in validated(source, count=100) for name in batch.ids]


def validated(source: Any, **options: Any) -> list[Batch]:
    return list(validation_batches(source, 16, PROCESSOR, **{"batch_size": 2, **options}))


def fixed_order(source: Any) -> str:
    """First letters of all pictures as validation meets them: numbered ones in one random order, a stream as it is."""
    if isinstance(source, PictureStream):
        return "abcdefghr"
    letters = [source.name(index)[0] for index in np.random.default_rng(0).permutation(len(source))]
    assert letters != sorted(letters)
    return "".join(letters)


def test_validation_is_the_first_that_can_be_read_shared_by_ranks(source: Any, folder: Path) -> None:
    readable = [letter for letter in fixed_order(source) if letter in "acegh"]
    for _ in range(2):  # known and not yet known as readable
        batches = validated(source, count=4)
        assert [name[0] for batch in batches for name in batch.ids] == readable[:4]
    rng = np.random.default_rng(0)
    crops = [center_crop(Image.open(folder / f"{name}.png"), rng, size=16, flip=0.0) for name in readable[:4]]
    pixels = PROCESSOR(crops, return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), pixels)
    assert readable_names(source) == [f"{name}.png" for name in readable]
    shared = ["".join(readable[0:5:2]), "".join(readable[1:5:2])]
    for count, shares in ((5, shared), (1, [readable[0], ""])):
        for rank, share in enumerate(shares):
            batches = validated(source, count=count, rank=rank, world_size=2)
            assert "".join(name[0] for batch in batches for name in batch.ids) == share
            assert [len(batch.ids) for batch in batches] == [len(batch.pixel_values) for batch in batches]


def test_validation_tells_each_broken_picture_once(source: Any) -> None:
    order = fixed_order(source)
    fourth = [index for index, letter in enumerate(order) if letter in "acegh"][3]
    before, after = ([letter for letter in part if letter in "bdfr"] for part in (order[:fourth], order[fourth:]))
    for count, broken in ((4, before), (4, []), (100, after)):
        found = [name[0] for batch in validated(source, count=count, batch_size=5) for name, _ in batch.broken]
        assert found == broken


def test_validation_of_nothing_and_of_what_is_gone(folder: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the source of validation pictures is empty"):
        validated(FilePictures([], []), count=1)
    path = tmp_path / "a.png"
    path.write_bytes(files["a.png"])
    pictures = FilePictures([path], ["a.png"])
    validated(pictures, count=1)
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.png could be read before, and now cannot: no such file"):
        validated(pictures, count=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_lie_in_pinned_memory_where_that_is_asked_for(source: Any) -> None:
    for workers in (0, 1):
        for pin in (False, True):
            batches = training_batches(
                source, CROP, PROCESSOR, batch_size=2, seed=0, num_workers=workers, pin_memory=pin
            )
            assert next(batches).pixel_values.is_pinned() == pin
