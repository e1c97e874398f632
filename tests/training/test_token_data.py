"""A generator's tokens: sets that belong together and those that do not, and the order of their rows."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lgq_hf.tokens import MaskedCollator, TokenDataset
from tests.training import generators
from tests.training.generators import CODES
from training.generator_recipe import Tokens
from training.token_data import TokenBatch, TokenSets, fixed_batches, token_batches

MASKED = MaskedCollator(CODES, 3, label_dropout=0.3, seed=5)
Flat = list[tuple[str, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def dataset(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return TokenDataset(tokens / "train")


def flat(batches: Iterator[TokenBatch], count: int) -> Flat:
    """(id, tensors of one row) of the first `count` rows."""
    found: Flat = []
    while len(found) < count:
        batch = next(batches)
        for number, name in enumerate(batch.ids):
            found.append((name, {key: tensor[number] for key, tensor in batch.tensors.items()}))
    return found[:count]


def shared(dataset: Any, count: int, *, world_size: int, batch_size: int, **options: Any) -> Flat:
    """The first `count` rows of several processes, in their global order."""
    ranks = [
        token_batches(dataset, MASKED, rank=rank, world_size=world_size, batch_size=batch_size, **options)
        for rank in range(world_size)
    ]
    found: Flat = []
    while len(found) < count:
        for batches in ranks:
            found += flat(batches, batch_size)
    return found[:count]


def same(one: Flat, other: Flat) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a[0] == b[0] and all(torch.equal(a[1][key], b[1][key]) for key in a[1] | b[1]) for a, b in pairs)


def test_rows_are_those_of_the_definition(dataset: TokenDataset) -> None:
    found = flat(token_batches(dataset, MASKED, batch_size=5, seed=3), 60)
    for position, (name, tensors) in enumerate(found):
        epoch, offset = divmod(position, 24)
        row = dataset[epoch, int(np.random.default_rng([3, epoch]).permutation(24)[offset])]
        alone = MASKED([row])
        assert name == f"{row['id']}@{epoch}"
        assert all(torch.equal(tensors[key], alone[key][0]) for key in alone)


def test_nothing_but_the_seed_changes_the_order(dataset: TokenDataset) -> None:
    whole = shared(dataset, 64, world_size=1, batch_size=8, seed=1)
    for options in ({"world_size": 1, "batch_size": 4}, {"world_size": 2, "batch_size": 4}):
        assert same(shared(dataset, 64, **options, seed=1), whole)
    assert same(shared(dataset, 64, world_size=2, batch_size=4, seed=1, num_workers=2), whole)
    for start in (1, 8, 23, 24, 27):
        assert same(shared(dataset, 12, world_size=2, batch_size=3, seed=1, start=start), whole[start : start + 12])
    assert not same(shared(dataset, 64, world_size=1, batch_size=8, seed=2), whole)


def test_fixed_rows_are_shared_by_processes(dataset: TokenDataset) -> None:
    def of(**options: Any) -> list[str]:
        return [name for batch in fixed_batches(dataset, MASKED, batch_size=2, **options) for name in batch.ids]

    order = [f"{dataset[int(number)]['id']}@0" for number in np.random.default_rng(0).permutation(24)]
    assert of(count=7) == of(count=7) == order[:7] and of(count=100) == order
    assert of(count=7, rank=0, world_size=2) == order[0:7:2] and of(count=7, rank=1, world_size=2) == order[1:7:2]
    assert of(count=1, rank=1, world_size=2) == []
    with pytest.raises(ValueError, match="no rows of tokens"):
        token_batches([], MASKED, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="world_size: expected at least 3, got 2"):
        token_batches(dataset, MASKED, batch_size=2, seed=0, rank=2, world_size=2)


NUMBERS = {"dtype": "int64", "_type": "Value"}


@pytest.fixture
def opened(tokens: Path, tmp_path: Path) -> Callable[..., TokenSets]:
    """`opened(train=..., validation=..., **fields of data)`."""

    def make(train: Path = tokens / "train", validation: Path = tokens / "validation", **data: Any) -> TokenSets:
        places = {"path": str(train), "validation_path": str(validation), "tokenizer": str(tokens / "tokenizer")}
        return TokenSets(Tokens(**{**places, **data}))

    return make


@pytest.fixture
def copied(tokens: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the tokens of a split, to be changed."""

    def copy(split: str) -> Path:
        return Path(shutil.copytree(tokens / split, tmp_path / split))

    return copy


def test_labels_of_validation_are_matched_by_name(opened: Callable[..., TokenSets], tokens: Path) -> None:
    sets = opened()
    assert sets.classes == ["camera", "chelsea", "coffee"] and sets.num_classes == 3
    assert sets.grid == (4, 4) and sets.pixels == 32 * 32 and sets.codebook_size == generators.CODES
    own = TokenDataset(tokens / "validation")
    assert {own[number]["label"] for number in range(6)} == {0, 1}
    for number in range(6):
        row = sets.validation[0, number]
        assert row["id"].startswith(sets.classes[row["label"]]) and row["label"] == own[number]["label"] + 1
    summary = sets.summary()
    assert summary["train"]["rows"] == 24 and summary["validation"]["rows"] == 6
    assert summary["train"]["size"] == [32, 32] and len(summary["train"]["manifest_sha256"]) == 64


def test_without_labels(opened: Callable[..., TokenSets], copied: Callable[[str], Path]) -> None:
    sets = opened(use_labels=False)
    assert (sets.classes, sets.num_classes) == ([], 0)
    plain = generators.relabel(copied("train"), None)
    assert opened(plain).num_classes == 0
    with pytest.raises(ValueError, match=r"num_classes=3 .*train have no labels"):
        opened(plain, num_classes=3)
    with pytest.raises(ValueError, match=r"validation .* cannot be matched"):
        opened(validation=generators.relabel(copied("validation"), None))


def test_labels_that_are_numbers(opened: Callable[..., TokenSets], copied: Callable[[str], Path]) -> None:
    train, validation = (generators.relabel(copied(split), NUMBERS) for split in ("train", "validation"))
    sets = opened(train, validation, num_classes=5)
    assert (sets.classes, sets.num_classes) == ([], 5)
    assert {sets.validation[0, number]["label"] for number in range(6)} == {0, 1}
    for given, message in (
        ({"train": train, "validation": validation}, "train are numbers without names: give data.num_classes"),
        ({"num_classes": 5}, "num_classes=5 .* 3 named classes"),
        ({"train": train, "num_classes": 5}, "validation .* cannot be matched"),
        ({"validation": validation}, "validation .* cannot be matched"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(**given)
    other = generators.relabel(validation, {"names": ["coffee", "tea", "water"], "_type": "ClassLabel"})
    with pytest.raises(ValueError, match="not learned: tea, water"):
        opened(validation=other)


def test_tokens_that_do_not_belong_together(opened: Callable[..., TokenSets], tokens: Path, tmp_path: Path) -> None:
    pictures = tokens.parent / "pictures" / "validation"
    wide = generators.tokenize(pictures, tmp_path / "wide", tokens / "tokenizer", "--size", "40")
    with pytest.raises(ValueError, match=r"train are grids \(4, 4\), those of .*wide \(5, 5\): make both with one"):
        opened(validation=wide)
    mixed = generators.tokenize(pictures, tmp_path / "mixed", tokens / "tokenizer", "--mixed-sizes")
    with pytest.raises(ValueError, match=r"mixed are of images of several sizes, .* \(lgq tokenize --size\)"):
        opened(validation=mixed)
    other = generators.save_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="these tokens were made by .*tokenizer.*, not by .*other"):
        opened(tokenizer=str(other))
    with pytest.raises(ValueError, match="not by .*lgq-tiny"):
        opened(tokenizer=None)
    bins = generators.save_tokenizer(tmp_path / "bins", codebook_mode="per_channel", latent_channels=2, code_dim=None)
    several = generators.tokenize(pictures, tmp_path / "several", bins)
    with pytest.raises(ValueError, match="several have 2 numbers at each position, and generators here model one"):
        opened(several, several, tokenizer=str(bins))
