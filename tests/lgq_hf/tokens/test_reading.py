import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader

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


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 2), (5, 0)])
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
        for shares, readers in ((by_number, samplers), (streamed, streams)):
            assert Counter(name for share in shares for name in share) == everything
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            assert [len(share) for share in shares] == [len(reader) for reader in readers]
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
    repeated = [list(EpochSampler(2, rank=rank, world_size=3, even="repeat")) for rank in range(3)]
    assert [len(share) for share in repeated] == [1, 1, 1]  # fewer rows than processes


def test_going_on_within_an_epoch() -> None:
    whole = EpochSampler(22, rank=0, world_size=1)
    whole.set_epoch(3)
    sampler = EpochSampler(22, rank=0, world_size=1, epoch=3, start=7)
    sampler.set_epoch(3)  # as a loop over epochs does, which does not know of the start
    assert list(sampler) == list(whole)[7:]
    sampler.set_epoch(4)
    assert len(sampler) == len(list(sampler)) == 22
    for even, length in (("drop", 3), ("repeat", 4)):  # of 15 rows that are left
        shares = [list(EpochSampler(22, rank=rank, world_size=4, even=even, start=7)) for rank in range(4)]
        assert [len(share) for share in shares] == [length] * 4
    assert len(EpochSampler(22, rank=0, world_size=4, even="repeat", start=24)) == 0
    with pytest.raises(ValueError, match="got 99"):
        sampler.set_epoch(5, 99)


def test_a_stream_reads_its_share_only(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile, "read_row_group", lambda self, n, **o: read.append(n) or original(self, n, **o)
    )
    stream = TokenStream(tokens, rank=1, world_size=11, shuffle_buffer=0)  # rows 2 and 3 of six in the first file
    monkeypatch.setattr(stream, "place", str(tmp_path))
    (tmp_path / "data").mkdir()
    first = stream.manifest.shards[0].file
    parquet.write_table(parquet.read_table(tokens / first), tmp_path / first, row_group_size=2)
    assert _names(stream) == _names(TokenDataset(tokens)[number] for number in (2, 3))
    assert read == [1]


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


def test_a_folder_whose_name_is_a_pattern(tokens: Path, tmp_path: Path) -> None:
    shutil.copytree(tokens, tmp_path / "run[1]*")
    assert len(TokenDataset(tmp_path / "run[1]*")) == 22


def test_from_another_place(tokens: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(tokens), "/tokens", recursive=True)
    try:
        rows = list(TokenStream("memory://tokens", shuffle_buffer=0))
        assert np.array_equal(rows[3]["image_tokens"], TokenDataset(tokens)[3]["image_tokens"])
        with pytest.raises(ValueError, match="memory://tokens is not on this machine"):
            TokenDataset("memory://tokens")
    finally:
        fs.rm("/tokens", recursive=True)


def test_shares_by_environment(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert (TokenStream(tokens).world_size, EpochSampler(9).rank) == (3, 1)


def test_what_is_refused(
    job: Callable[..., Job], model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    made = job()
    tokenize(made)
    for kind in (TokenDataset, TokenStream):
        assert len(kind(made.output, tokenizer=model_folder)) == 11
        with pytest.raises(ValueError, match="made by 'org/tiny'"):
            kind(made.output, tokenizer=other_model_folder)
        with pytest.raises(ValueError, match="no manifest.json in"):
            kind(tmp_path)
        with pytest.raises(ValueError, match="'caption'"):
            kind(made.output, columns=["caption"])
    with pytest.raises(ValueError, match="'epoch'"):
        TokenStream(made.output, columns=["epoch"])
    with pytest.raises(ValueError, match="shuffle_buffer.*-1"):
        TokenStream(made.output, shuffle_buffer=-1)
    with pytest.raises(ValueError, match="got 2"):
        TokenStream(made.output, rank=2, world_size=2)
    with pytest.raises(ValueError, match="even.*'pad'"):
        EpochSampler(3, even="pad")
    with pytest.raises(ValueError, match="rank and world_size"):
        EpochSampler(3, rank=0)
    shard = Path(made.output, "data", "train-00001-of-00004.parquet")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"00001-of-00004.parquet of .* has {len(content) - 1} bytes"):
        TokenStream(made.output)
    shard.unlink()
    with pytest.raises(ValueError, match="train-00001-of-00004.parquet of .* is missing"):
        TokenDataset(made.output)
