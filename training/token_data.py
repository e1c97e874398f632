"""A generator's tokens: training and validation shards that belong together, and batches of their rows."""

import hashlib
import json
from collections.abc import Generator, Iterator, Sized
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lgq_hf.checkpoint import find_checkpoint
from lgq_hf.images.loading import in_order
from lgq_hf.images.sources import ID, LABEL
from lgq_hf.tokens.collators import AutoregressiveCollator, MaskedCollator
from lgq_hf.tokens.manifest import Manifest
from lgq_hf.tokens.reading import Row, TokenDataset
from training.data import Key, check_numbers, ordered_keys
from training.generator_recipe import Kind, Tokens

Collator = AutoregressiveCollator | MaskedCollator


class TokenSets:
    """What a recipe's section `data` names, opened and compared: one tokenizer, one grid, one meaning of each label.

    Attributes:
        train: rows to learn from, a `TokenDataset`.
        validation: rows to measure by, with the labels' numbers of training.
        reference: the tokenizer.
        codebook_size: K.
        grid: (h, w) of every row.
        pixels: of an image.
        classes: their names, by number; empty where they have none.
        num_classes: 0 for training without classes.

    Raises:
        ValueError: tokens of another tokenizer, of several sizes, with several tokens per position, of different
            grids, or labels that cannot be matched.
    """

    def __init__(self, data: Tokens) -> None:
        self.reference = find_checkpoint(data.tokenizer)
        self.train = TokenDataset(data.path, tokenizer=self.reference)
        validation = TokenDataset(data.validation_path, tokenizer=self.reference)
        self.manifest: Manifest = self.train.manifest
        self.codebook_size = self.manifest.tokenizer.codebook_size
        self.grid, other = (_grid(one) for one in (self.train, validation))
        if self.grid != other:
            raise ValueError(
                f"the tokens of {self.train.place} are grids {self.grid}, those of {validation.place} {other}: make "
                "both with one size"
            )
        assert validation.manifest.size is not None  # as it has a grid
        height, width = validation.manifest.size
        self.pixels = height * width
        self.classes, self.num_classes = _classes(self.train, data)
        self.validation = _Renumbered(validation, self.classes, use_labels=self.num_classes > 0)

    def summary(self) -> dict[str, Any]:
        """What the tokens are, for the results; names of places as they were given to `lgq tokenize`."""
        return {name: _summary(one.manifest) for name, one in (("train", self.train), ("validation", self.validation))}


def _grid(rows: TokenDataset) -> tuple[int, int]:
    manifest = rows.manifest
    if manifest.grid is None:
        raise ValueError(
            f"the tokens of {rows.place} are of images of several sizes, and a generator has one grid: make them "
            "with one size (lgq tokenize --size)"
        )
    if (several := manifest.tokenizer.tokens_per_position) != 1:
        raise ValueError(
            f"the tokens of {rows.place} have {several} numbers at each position, and generators here model one: use "
            "a tokenizer with one token per position"
        )
    height, width = manifest.grid
    return height, width


def _names(rows: TokenDataset) -> list[str] | None:
    """Of the classes, by number; `None` where there are no labels, or labels are numbers alone."""
    return rows.manifest.features.get(LABEL, {}).get("names")


def _classes(train: TokenDataset, data: Tokens) -> tuple[list[str], int]:
    """Names and number of the classes to learn."""
    labelled, names = LABEL in train.manifest.features, _names(train)
    if not data.use_labels or (not labelled and data.num_classes is None):
        return [], 0
    if labelled and names is None and data.num_classes is None:
        raise ValueError(f"the labels of {train.place} are numbers without names: give data.num_classes")
    if names is None and labelled:
        return [], int(data.num_classes or 0)
    if names is None or data.num_classes is not None:
        found = f"{len(names)} named classes" if names is not None else "no labels"
        raise ValueError(
            f"data.num_classes={data.num_classes} is for labels that are numbers, and the tokens of {train.place} "
            f"have {found}: leave it out"
        )
    return names, len(names)


class _Renumbered(Dataset[Row]):
    """Rows whose labels have the numbers that their names have among `classes`.

    Raises:
        ValueError: labels that training has and these rows do not, classes that training has not, or names on one side
            alone.
    """

    def __init__(self, rows: TokenDataset, classes: list[str], *, use_labels: bool) -> None:
        self.rows, self.manifest = rows, rows.manifest
        self.numbers: list[int] | None = None
        if not use_labels:
            return
        names = _names(rows)
        if LABEL not in rows.manifest.features or (names is None) == bool(classes):
            raise ValueError(
                f"the labels of {rows.place} and those to learn from cannot be matched, as one side has no labels or "
                "no names: make both sets of tokens in one way, or set data.use_labels=false"
            )
        if unknown := [name for name in names or () if name not in classes]:
            raise ValueError(f"{rows.place} has classes that are not learned: {', '.join(unknown)}")
        self.numbers = [classes.index(name) for name in names] if names else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Row:
        row = self.rows[key]
        return row if self.numbers is None else {**row, LABEL: self.numbers[int(row[LABEL])]}


def _summary(manifest: Manifest) -> dict[str, Any]:
    text = json.dumps(asdict(manifest), sort_keys=True)
    source = asdict(manifest)["source"]
    return {
        "source": {name: source[name] for name in ("kind", "name", "split", "sha256")},
        "pictures": manifest.counts["pictures"],
        "rows": manifest.counts["rows"],
        "size": manifest.size,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def make_collator(kind: Kind, tokens: TokenSets, *, mask_schedule: str, **draws: Any) -> Collator:
    """What makes batches of rows for a kind of generator.

    Args:
        kind: "masked" or "autoregressive".
        tokens: whose codes and classes they have.
        mask_schedule: of masked generators.
        **draws: `label_dropout` and `seed` of the collator.
    """
    shape = {"codebook_size": tokens.codebook_size, "num_classes": tokens.num_classes}
    if kind == "masked":
        return MaskedCollator(**shape, schedule=mask_schedule, **draws)
    return AutoregressiveCollator(**shape, shift=True, **draws)


class TokenBatch(NamedTuple):
    """Rows of one micro-batch of one rank.

    Attributes:
        tensors: what the collator made of them.
        ids: the id of each row's image, and its epoch: "id@epoch".
    """

    tensors: dict[str, Tensor]
    ids: list[str]


class _Collated(Dataset[TokenBatch]):
    """Makes the batch of a list of keys."""

    def __init__(self, rows: Any, collator: Collator) -> None:
        self.rows, self.collator = rows, collator

    def __getitem__(self, keys: list[Key]) -> TokenBatch:
        rows = [self.rows[key] for key in keys]
        ids = [f"{row[ID]}@{epoch}" for row, (epoch, _) in zip(rows, keys, strict=True)]
        return TokenBatch(self.collator(rows), ids)


def token_batches(
    rows: Sized,
    collator: Collator,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[TokenBatch, None, None]:
    """Endless batches for one rank, in the order of `ordered_keys`.

    Args:
        rows: a `TokenDataset`, or what gives its rows by (epoch, number).
        collator: draws masks and dropped labels by a row's epoch and id.
        batch_size, seed, rank, world_size, start, num_workers, pin_memory: as in `training.data.training_batches`.

    Raises:
        ValueError: no rows, or numbers out of range.
    """
    check_numbers(batch_size=(batch_size, 1), start=(start, 0), num_workers=(num_workers, 0))
    check_numbers(rank=(rank, 0), world_size=(world_size, rank + 1))
    if not len(rows):
        raise ValueError("there are no rows of tokens: look at the manifest's failures")
    keys = ordered_keys(len(rows), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, start=start)
    pin = pin_memory and torch.accelerator.is_available()
    return in_order(_Collated(rows, collator), keys, num_workers=num_workers, pin_memory=pin)


def fixed_batches(
    rows: Sized, collator: Collator, *, count: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[TokenBatch]:
    """The first `count` rows of one fixed random order, or all where there are fewer, always as of epoch 0.

    Of these, rank r gets numbers r, r + world_size, ...: ranks may have one row more or less than others, and their
    last batch may be smaller, or there may be none.
    """
    check_numbers(count=(count, 1), batch_size=(batch_size, 1))
    order = np.random.default_rng(0).permutation(len(rows))[:count]  # shards are sorted by class, as folders are
    own = [(0, int(number)) for number in order[rank::world_size]]
    collated = _Collated(rows, collator)
    for first in range(0, len(own), batch_size):
        yield collated[own[first : first + batch_size]]
