import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader

from lgq_hf.tokens import reading
from lgq_hf.tokens.engine import Job, tokenize
from lgq_hf.tokens.reading import EpochSampler, TokenDataset, TokenStream


@pytest.fixture(scope="module")
def module_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading")


@pytest.fixture
def tokens(job: Callable[..., Job], module_tmp: Path) -> Path:
    """22 rows in four files."""
    tokenize(job(module_tmp / "tokens", flip=True))  # made once, and found finished afterwards
    return module_tmp / "tokens"


@pytest.fixture
def ragged(job: Callable[..., Job], module_tmp: Path) -> Path:
    tokenize(job(module_tmp / "ragged", mixed_sizes=True))
    return module_tmp / "ragged"


def _names(rows: Any) -> list[tuple[str, bool]]:
    return [(row["id"], bool(row["flip"])) for row in rows]


def test_rows_by_number(tokens: Path) -> None:
    dataset = TokenDataset(tokens)
    stored = datasets.load_dataset(str(tokens), split="train")
    assert len(dataset) == len(stored) == 22
    for number in (0, 7, 21):
        row, expected = dataset[number], stored[number]
        assert row["image_tokens"].dtype == torch.int64 and row["image_tokens"].shape == (8, 8)
        assert row["image_tokens"].tolist() == expected["image_tokens"]
        assert {name: row[name] for name in ("id", "label", "flip", "crop")} == {
            name: expected[name] for name in ("id", "label", "flip", "crop")
        }
    assert (dataset[3]["epoch"], dataset[5, 3]["epoch"]) == (0, 5)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[4]["image_tokens"], dataset[4]["image_tokens"])


def test_a_stream_gives_the_same_rows(tokens: Path, ragged: Path) -> None:
    for place in (tokens, ragged):
        dataset = TokenDataset(place)
        rows = list(TokenStream(place, shuffle_buffer=0))
        assert len(rows) == len(dataset)
        for number, row in enumerate(rows):
            expected = dataset[number]
            assert row.keys() == expected.keys()
            assert torch.equal(row["image_tokens"], expected["image_tokens"])
            assert row["image_tokens"].dtype == torch.int64
            assert row["id"] == expected["id"]
    assert {tuple(row["image_tokens"].shape) for row in rows} == {(9, 9), (10, 9), (12, 15)}


def test_tokens_of_several_channels(job: Callable[..., Job], make_model: Callable[..., Path], tmp_path: Path) -> None:
    from lgq_hf.checkpoint.loading import find_checkpoint

    folder = make_model(tmp_path / "model", codebook_mode="per_channel", codebook_size=6, latent_channels=5)
    like = find_checkpoint(str(folder))
    for mixed in (False, True):
        made = job(tmp_path / str(mixed), like=like, mixed_sizes=mixed)
        tokenize(made)
        row, streamed = TokenDataset(made.output)[0], next(iter(TokenStream(made.output, shuffle_buffer=0)))
        assert row["image_tokens"].shape == ((10, 9, 5) if mixed else (8, 8, 5))
        assert torch.equal(row["image_tokens"], streamed["image_tokens"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_exactly_once_in_an_epoch(tokens: Path, world_size: int, workers: int) -> None:
    dataset = TokenDataset(tokens)
    everything = Counter(_names(dataset[number] for number in range(len(dataset))))
    assert max(everything.values()) == 1
    samplers = [EpochSampler(len(dataset), rank=rank, world_size=world_size) for rank in range(world_size)]
    streams = [TokenStream(tokens, rank=rank, world_size=world_size, shuffle_buffer=5) for rank in range(world_size)]
    orders = []
    for epoch in range(2):
        for one in (*samplers, *streams):
            one.set_epoch(epoch)
        options: dict[str, Any] = {"batch_size": None, "num_workers": workers}
        by_number = [_names(DataLoader(dataset, sampler=sampler, **options)) for sampler in samplers]
        streamed = [_names(DataLoader(stream, **options)) for stream in streams]
        for shares in (by_number, streamed):
            assert Counter(name for share in shares for name in share) == everything
        assert max(map(len, by_number)) - min(map(len, by_number)) <= 1
        assert [len(share) for share in by_number] == [len(sampler) for sampler in samplers]
        orders.append((by_number, streamed))
    assert orders[0][0] != orders[1][0] and orders[0][1] != orders[1][1]


def test_the_order_does_not_depend_on_the_processes() -> None:
    def order(world_size: int, **options: Any) -> list[tuple[int, int]]:
        shares = [
            list(EpochSampler(22, rank=rank, world_size=world_size, seed=3, **options)) for rank in range(world_size)
        ]
        return [shares[i % world_size][i // world_size] for i in range(sum(map(len, shares)))]

    assert order(1) == order(2) == order(3)
    assert order(3, start=7) == order(1)[7:] == order(2, start=7)
    assert [number for _, number in order(1, shuffle=False)] == list(range(22))
    assert order(1) != [(0, number) for _, number in sorted(order(1))]
    assert len(order(3, even="drop")) == 21 and order(3, even="drop") == order(1)[:21]
    assert order(4, even="repeat") == order(1) + order(1)[:2]
    sampler = EpochSampler(22, rank=0, world_size=1, start=5)
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(sampler) == 22


def test_going_on_within_an_epoch() -> None:
    whole = EpochSampler(22, rank=0, world_size=1)
    whole.set_epoch(3)
    sampler = EpochSampler(22, rank=0, world_size=1, epoch=3, start=7)
    sampler.set_epoch(3)  # as a loop over epochs does, which does not know of the start
    assert list(sampler) == list(whole)[7:]
    sampler.set_epoch(4)
    assert len(sampler) == 22
    for even, length in (("drop", 3), ("repeat", 4)):  # of 15 rows that are left
        shares = [list(EpochSampler(22, rank=rank, world_size=4, even=even, start=7)) for rank in range(4)]
        assert [len(share) for share in shares] == [length] * 4
    assert len(EpochSampler(22, rank=0, world_size=4, even="repeat", start=24)) == 0
    with pytest.raises(ValueError, match="start: expected 0 to the 22 rows of an epoch, got 99"):
        sampler.set_epoch(5, 99)


def test_fewer_rows_than_processes() -> None:
    shares = [list(EpochSampler(2, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(number for share in shares for _, number in share) == [0, 1]
    repeated = [list(EpochSampler(2, rank=rank, world_size=3, even="repeat")) for rank in range(3)]
    assert [len(share) for share in repeated] == [1, 1, 1]


def test_a_stream_reads_its_share_only(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = TokenStream._file

    def note(self: TokenStream, name: str, start: int, stop: int) -> Iterator[Any]:
        opened.append(name)
        return original(self, name, start, stop)

    monkeypatch.setattr(TokenStream, "_file", note)
    list(TokenStream(tokens, rank=0, world_size=4))
    assert len(opened) <= 2  # of four files


def test_a_stream_decodes_no_further_than_it_needs(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = parquet.ParquetFile.iter_batches

    def note(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        for batch in original(self, *args, **options):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", note)
    monkeypatch.setattr(reading, "_READ_AT_ONCE", 1)
    assert len(list(TokenStream(tokens, rank=0, world_size=11, shuffle_buffer=0))) == sum(decoded) == 2  # of six


def test_workers_that_outlive_an_epoch(tokens: Path) -> None:
    stream = TokenStream(tokens, rank=0, world_size=1)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        rows = list(loader)
        assert {row["epoch"] for row in rows} == {epoch}
        epochs.append(_names(rows))
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_length_of_a_loader(tokens: Path) -> None:
    """What trainers take for the steps of an epoch: of a stream those of its process, not of all."""
    for rank in range(3):
        loader = DataLoader(TokenStream(tokens, rank=rank, world_size=3), batch_size=2, collate_fn=list)
        assert len(loader) == len(list(loader)) == 4


def test_a_folder_whose_name_is_a_pattern(tokens: Path, tmp_path: Path) -> None:
    shutil.copytree(tokens, tmp_path / "run[1]*")
    assert len(TokenDataset(tmp_path / "run[1]*")) == 22


def test_from_another_place(tokens: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(tokens), "/tokens", recursive=True)
    try:
        rows = list(TokenStream("memory://tokens", shuffle_buffer=0))
        assert np.array_equal(rows[3]["image_tokens"], TokenDataset(tokens)[3]["image_tokens"])
        with pytest.raises(ValueError, match="memory://tokens is not on this machine: read it by TokenStream"):
            TokenDataset("memory://tokens")
    finally:
        fs.rm("/tokens", recursive=True)


def test_columns_and_shares_by_environment(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert (TokenStream(tokens).world_size, EpochSampler(9).rank) == (3, 1)
    with pytest.raises(
        ValueError, match=r"no column 'caption' in the tokens of .*, which have \['crop', 'flip', 'id',"
    ):
        TokenDataset(tokens, columns=["caption"])


def test_what_is_refused(
    job: Callable[..., Job], model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    made = job()
    tokenize(made)
    for kind in (TokenDataset, TokenStream):
        assert len(kind(made.output, tokenizer=model_folder)) == 11
        with pytest.raises(ValueError, match="these tokens were made by 'org/tiny'"):
            kind(made.output, tokenizer=other_model_folder)
        with pytest.raises(ValueError, match="no manifest.json in"):
            kind(tmp_path)
    shard = Path(made.output, "data", "train-00001-of-00004.parquet")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"00001-of-00004.parquet of .* has {len(content) - 1} bytes, expected"):
        TokenStream(made.output)
    shard.unlink()
    with pytest.raises(ValueError, match="train-00001-of-00004.parquet of .* is missing"):
        TokenDataset(made.output)
    with pytest.raises(ValueError, match="shuffle_buffer: expected 0 or more rows, got -1"):
        tokenize(made)
        TokenStream(made.output, shuffle_buffer=-1)
    with pytest.raises(ValueError, match="even: expected None, 'drop' or 'repeat', got 'pad'"):
        EpochSampler(3, even="pad")
    with pytest.raises(ValueError, match="start: expected 0 to the 3 rows of an epoch, got 4"):
        EpochSampler(3, start=4)
    with pytest.raises(ValueError, match="rank and world_size belong together: give both or none"):
        EpochSampler(3, rank=0)
    with pytest.raises(ValueError, match="rank: expected 0 to world_size - 1 = 1, got 2"):
        TokenStream(made.output, rank=2, world_size=2)
    with pytest.raises(ValueError, match="cannot return the column 'epoch': rows tell by that name which epoch"):
        TokenStream(made.output, columns=["epoch"])
