"""Tokens that belong together, and those that do not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgq_hf.tokens import TokenDataset
from tests.training import generators
from training.generator_recipe import Tokens
from training.token_sets import TokenSets

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
    with pytest.raises(ValueError, match=r"data\.num_classes=3, but the tokens of .*train have no labels"):
        opened(plain, num_classes=3)
    unlabelled = generators.relabel(copied("validation"), None)
    message = r"the tokens of .*train have labels and those of .*validation have none: .* data\.use_labels=false"
    with pytest.raises(ValueError, match=message):
        opened(validation=unlabelled)


def test_labels_that_are_numbers(opened: Callable[..., TokenSets], copied: Callable[[str], Path]) -> None:
    train, validation = (generators.relabel(copied(split), NUMBERS) for split in ("train", "validation"))
    sets = opened(train, validation, num_classes=5)
    assert (sets.classes, sets.num_classes) == ([], 5)
    assert {sets.validation[0, number]["label"] for number in range(6)} == {0, 1}
    with pytest.raises(ValueError, match=r"labels of .*train are numbers without names: give data\.num_classes"):
        opened(train, validation)
    with pytest.raises(ValueError, match=r"data\.num_classes=5 is for labels without names, .* name their 3 classes"):
        opened(num_classes=5)
    with pytest.raises(ValueError, match="labels of .*validation have names and those of .*train have none"):
        opened(train, num_classes=5)
    with pytest.raises(ValueError, match="labels of .*train have names and those of .*validation have none"):
        opened(validation=validation)


def test_classes_that_are_not_learned_are_named(
    opened: Callable[..., TokenSets], copied: Callable[[str], Path]
) -> None:
    other = generators.relabel(copied("validation"), {"names": ["coffee", "tea", "water"], "_type": "ClassLabel"})
    with pytest.raises(ValueError, match=r"validation has classes that .*train does not: tea, water\. Validate on"):
        opened(validation=other)


def test_tokens_that_do_not_belong_together(opened: Callable[..., TokenSets], tokens: Path, tmp_path: Path) -> None:
    pictures = tokens.parent / "pictures" / "validation"
    wide = generators.tokenize(pictures, tmp_path / "wide", tokens / "tokenizer", "--size", "40")
    with pytest.raises(ValueError, match=r"train are grids \(4, 4\), those of .*wide \(5, 5\): make both with one"):
        opened(validation=wide)
    mixed = generators.tokenize(pictures, tmp_path / "mixed", tokens / "tokenizer", "--mixed-sizes")
    with pytest.raises(ValueError, match=r"mixed are of pictures of several sizes, .* \(lgq tokenize --size\)"):
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
