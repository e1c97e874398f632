"""Batches of token shards, in an order that depends on the seed alone, as `training.loader` gives pictures."""

from collections.abc import Iterator, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lgq_hf.images.sources import ID
from lgq_hf.tokens.collators import AutoregressiveCollator, MaskedCollator
from training.generator_recipe import Kind
from training.ordered_loader import Key, check_numbers, check_shares, ordered_batches
from training.token_sets import TokenSets

Collator = AutoregressiveCollator | MaskedCollator


def make_collator(kind: Kind, tokens: TokenSets, *, mask_schedule: str, **draws: Any) -> Collator:
    """What makes batches of rows for a kind of generator.

    Args:
        tokens: whose codes and classes they have.
        mask_schedule: of masked generators.
        **draws: `label_dropout` and `seed` of the collator.
    """
    shape = {"codebook_size": tokens.codebook_size, "num_classes": tokens.num_classes}
    if kind == "masked":
        return MaskedCollator(**shape, schedule=mask_schedule, **draws)
    return AutoregressiveCollator(**shape, shift=True, **draws)


class TokenBatch(NamedTuple):
    """Rows of one pass of one process.

    Attributes:
        tensors: what the collator made of them.
        ids: the id of each row's picture, and its epoch: "id@epoch".
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
) -> Iterator[TokenBatch]:
    """Endless batches for one process, in the order that `training.loader.training_batches` describes for pictures.

    Args:
        rows: a `TokenDataset`, or what gives its rows by (epoch, number).
        collator: draws masks and dropped labels by a row's epoch and id.
        batch_size, seed, rank, world_size, start, num_workers, pin_memory: as there.

    Raises:
        ValueError: no rows, or numbers out of range.
    """
    check_numbers(batch_size=(batch_size, 1), start=(start, 0), num_workers=(num_workers, 0))
    check_shares(rank, world_size)
    if not len(rows):
        raise ValueError("there are no rows of tokens: look at the manifest's failures")
    return ordered_batches(
        _Collated(rows, collator),
        len(rows),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start=start,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.accelerator.is_available(),
    )


def fixed_batches(
    rows: Sized, collator: Collator, *, count: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[TokenBatch]:
    """The first `count` rows of one fixed random order, or all where there are fewer, always as of epoch 0.

    Of these, process `rank` gets numbers rank, rank + world_size, ...: processes may have one row more or less than
    others, and their last batch may be smaller, or there may be none.
    """
    check_numbers(count=(count, 1), batch_size=(batch_size, 1))
    check_shares(rank, world_size)
    order = np.random.default_rng(0).permutation(len(rows))[:count]  # shards are sorted by class, as folders are
    own = [(0, int(number)) for number in order[rank::world_size]]
    collated = _Collated(rows, collator)
    for first in range(0, len(own), batch_size):
        yield collated[own[first : first + batch_size]]
