"""Training and validation tokens that belong together: one tokenizer, one grid, one meaning of each label."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset

from lgq_hf.checkpoint.loading import find_checkpoint
from lgq_hf.images.sources import LABEL
from lgq_hf.tokens.manifest import Manifest
from lgq_hf.tokens.reading import Row, TokenDataset
from training.generator_recipe import Tokens


class TokenSets:
    """What a recipe's section `data` names, opened and compared.

    Attributes:
        train: rows to learn from, a `TokenDataset`.
        validation: rows to measure by, with the labels' numbers of training.
        reference: the tokenizer.
        codebook_size: K.
        grid: (h, w) of every row.
        pixels: of a picture.
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
        self.codebook_size = int(self.manifest["tokenizer"]["codebook_size"])
        grids = [_grid(one) for one in (self.train, validation)]
        if grids[0] != grids[1]:
            raise ValueError(
                f"the tokens of {self.train.place} are grids {grids[0]}, those of {validation.place} {grids[1]}: make "
                "both with one size"
            )
        self.grid = grids[0]
        height, width = validation.manifest["size"]
        self.pixels = height * width
        self.classes, self.num_classes, numbers = _match(self.train, validation, data)
        self.validation = _Renumbered(validation, numbers)

    def summary(self) -> dict[str, Any]:
        """What the tokens are, for the results; names of places as they were given to `lgq tokenize`."""
        return {name: _summary(one.manifest) for name, one in (("train", self.train), ("validation", self.validation))}


class _Renumbered(Dataset[Row]):
    """Rows whose label `n` becomes `numbers[n]`; `None`: as they are."""

    def __init__(self, rows: TokenDataset, numbers: list[int] | None) -> None:
        self.rows, self.numbers, self.manifest = rows, numbers, rows.manifest

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Row:
        row = self.rows[key]
        return row if self.numbers is None else {**row, LABEL: self.numbers[int(row[LABEL])]}


def _grid(rows: TokenDataset) -> tuple[int, int]:
    manifest = rows.manifest
    if manifest["grid"] is None:
        raise ValueError(
            f"the tokens of {rows.place} are of pictures of several sizes, and a generator has one grid: make them "
            "with one size (lgq tokenize --size)"
        )
    if (several := manifest["tokenizer"]["tokens_per_position"]) != 1:
        raise ValueError(
            f"the tokens of {rows.place} have {several} numbers at each position, and generators here model one: use "
            "a tokenizer with one token per position"
        )
    height, width = manifest["grid"]
    return height, width


def _names(rows: TokenDataset) -> list[str] | None:
    """Of the classes, by number; `None` where labels are numbers alone."""
    feature = rows.manifest["features"][LABEL]
    return list(feature["names"]) if "names" in feature else None


def _match(train: TokenDataset, validation: TokenDataset, data: Tokens) -> tuple[list[str], int, list[int] | None]:
    """Names and number of classes, and the number in training of each of validation's labels (`None`: the same)."""
    if not data.use_labels:
        return [], 0, None
    if LABEL not in train.manifest["features"]:
        if data.num_classes is not None:
            raise ValueError(f"data.num_classes={data.num_classes}, but the tokens of {train.place} have no labels")
        return [], 0, None
    if LABEL not in validation.manifest["features"]:
        raise ValueError(
            f"the tokens of {train.place} have labels and those of {validation.place} have none: make both with "
            "labels, or set data.use_labels=false"
        )
    names, others = _names(train), _names(validation)
    if names is None:
        if data.num_classes is None:
            raise ValueError(f"the labels of {train.place} are numbers without names: give data.num_classes")
        if others is not None:
            raise ValueError(
                f"the labels of {validation.place} have names and those of {train.place} have none: they cannot be "
                "matched. Make both in one way"
            )
        return [], data.num_classes, None
    if data.num_classes is not None:
        raise ValueError(
            f"data.num_classes={data.num_classes} is for labels without names, and those of {train.place} name their "
            f"{len(names)} classes: leave it out"
        )
    if others is None:
        raise ValueError(
            f"the labels of {train.place} have names and those of {validation.place} have none: they cannot be "
            "matched. Make both in one way"
        )
    if unknown := [name for name in others if name not in names]:
        raise ValueError(
            f"{validation.place} has classes that {train.place} does not: {', '.join(unknown)}. Validate on pictures "
            "of the classes that are learned"
        )
    return names, len(names), [names.index(name) for name in others]


def _summary(manifest: Manifest) -> dict[str, Any]:
    source, counts = manifest["source"], manifest["counts"]
    text = json.dumps(asdict(manifest), sort_keys=True)
    return {
        "source": {name: source[name] for name in ("kind", "name", "split", "sha256")},
        "pictures": counts["pictures"],
        "rows": counts["rows"],
        "size": manifest["size"],
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
