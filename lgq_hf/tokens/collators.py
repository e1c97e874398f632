"""Rows of token shards to batches of generators: autoregressive, and masked.

Shapes: B rows, T = h*w tokens in raster order, K codes. What is drawn for a row depends on (seed, its epoch, id, crop,
flip) alone, so it is the same in any batch, worker or process.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lgq_hf.images.sources import CROP, FLIP, ID, LABEL, TOKENS
from lgq_hf.tokens.reading import Row

IGNORED = -100  # what torch's and transformers' cross entropies leave out
# Share of tokens that is masked for r in [0, 1): from all at 0 to none at 1. MaskGIT (arXiv 2202.04200), section 3.3.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "square_root": lambda r: 1 - math.sqrt(r),
}


def _check_numbers(codebook_size: int, num_classes: int, label_dropout: float) -> None:
    if codebook_size < 1 or num_classes < 0:
        raise ValueError(f"expected at least one code and no negative classes, got {codebook_size=}, {num_classes=}")
    if not 0 <= label_dropout <= 1:
        raise ValueError(f"label_dropout: expected a share in [0, 1], got {label_dropout}")


def _generator(row: Row, seed: int, purpose: str) -> np.random.Generator:
    if ID not in row:
        raise ValueError(f"expected rows with {ID!r}, from which draws are made, got {sorted(row)}")
    named = f"{purpose}\0{row[ID]}\0{row.get(CROP, '')}\0{bool(row.get(FLIP, False))}"
    digest = hashlib.blake2b(named.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int(row.get("epoch", 0)), int.from_bytes(digest, "little")])


def _tokens(rows: Sequence[Row], codebook_size: int) -> Tensor:
    """(B,T) int64 in raster order; refuses grids of several shapes, several tokens per position, and K or more."""
    if not rows:
        raise ValueError("expected at least one row")
    shapes = sorted({tuple(row[TOKENS].shape) for row in rows})
    if len(shapes) > 1:
        raise ValueError(f"grids of one batch must have one shape, got {shapes[:4]}: batch rows of one size together")
    if len(shapes[0]) != 2:
        raise ValueError(f"expected one token per position, grids (h,w), got {shapes[0]}: choose which to model first")
    tokens_BT = torch.stack([row[TOKENS].reshape(-1) for row in rows])
    if (largest := int(tokens_BT.max())) >= codebook_size or int(tokens_BT.min()) < 0:
        raise ValueError(f"expected tokens in [0, {codebook_size}), got {int(tokens_BT.min())} to {largest}")
    return tokens_BT


def _classes(rows: Sequence[Row], num_classes: int, label_dropout: float, seed: int) -> Tensor:
    """(B,) int64 in [0, num_classes]; num_classes stands for no class: rows without a label, and dropped labels."""
    if not num_classes:
        return torch.zeros(len(rows), dtype=torch.int64)
    classes = []
    for row in rows:
        label = row.get(LABEL)
        if label is None or (label_dropout and _generator(row, seed, "label").random() < label_dropout):
            classes.append(num_classes)
        elif 0 <= int(label) < num_classes:
            classes.append(int(label))
        else:
            raise ValueError(f"{row.get(ID)} has label {label}: expected 0 to num_classes - 1 = {num_classes - 1}")
    return torch.tensor(classes, dtype=torch.int64)


@dataclass(frozen=True)
class AutoregressiveCollator:
    """Rows to what `LlamaForCausalLM` takes: a class, then the tokens in raster order.

    The vocabulary is [codes 0 to K - 1 | classes K to K + num_classes - 1 | none K + num_classes].

    Attributes:
        codebook_size: K.
        num_classes: 0 for training without classes: labels are not looked at.
        label_dropout: share of labels replaced by none, for classifier-free guidance; in [0, 1].
        seed: of what is dropped.
        shift: False: `labels` stand where their tokens do, for models that shift by themselves, as transformers' do.
            True: the label of each place is the next token, for models that compare place by place.
    """

    codebook_size: int
    num_classes: int
    label_dropout: float = 0.0
    seed: int = 0
    shift: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self.codebook_size, self.num_classes, self.label_dropout)

    @property
    def null_token(self) -> int:
        """The first token of a sequence without a class."""
        return self.codebook_size + self.num_classes

    @property
    def vocabulary_size(self) -> int:
        """Codes, classes and none."""
        return self.null_token + 1

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids` and `labels` (B,1+T) int64, labels -100 at the first place; with `shift` both (B,T).

        Raises:
            ValueError: grids of several shapes, tokens or labels out of range, rows without id if labels are dropped.
        """
        tokens_BT = _tokens(rows, self.codebook_size)
        classes_B = _classes(rows, self.num_classes, self.label_dropout, self.seed)
        sequence = torch.cat([self.codebook_size + classes_B[:, None], tokens_BT], dim=1)
        if self.shift:
            return {"input_ids": sequence[:, :-1], "labels": tokens_BT}
        ignored = torch.full_like(classes_B[:, None], IGNORED)
        return {"input_ids": sequence, "labels": torch.cat([ignored, tokens_BT], dim=1)}


@dataclass(frozen=True)
class MaskedCollator:
    """Rows to masked sequences and what was masked: MaskGIT (arXiv 2202.04200), section 3.1.

    Of each row ceil(schedule(r) * T) tokens are masked, at least one, r uniform in [0, 1), at places drawn uniformly.
    The vocabulary is [codes 0 to K - 1 | mask K]; classes are numbers of their own.

    Attributes:
        codebook_size: K; also the mask's token.
        num_classes: 0 for training without classes: labels are not looked at.
        schedule: one of `SCHEDULES`.
        label_dropout: share of labels replaced by `num_classes`, which stands for none; in [0, 1].
        seed: of what is drawn.
    """

    codebook_size: int
    num_classes: int
    schedule: str = "cosine"
    label_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_numbers(self.codebook_size, self.num_classes, self.label_dropout)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {sorted(SCHEDULES)}, got {self.schedule!r}")

    @property
    def mask_token(self) -> int:
        """What stands at masked places."""
        return self.codebook_size

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids` and `labels` (B,T) int64, labels -100 where nothing is masked; `class_labels` (B,) int64.

        Raises:
            ValueError: grids of several shapes, tokens or labels out of range, rows without id.
        """
        tokens_BT = _tokens(rows, self.codebook_size)
        length = tokens_BT.shape[1]
        masked_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for number, row in enumerate(rows):
            rng = _generator(row, self.seed, "mask")
            count = max(1, math.ceil(SCHEDULES[self.schedule](rng.random()) * length))
            masked_BT[number, torch.from_numpy(rng.permutation(length)[:count])] = True
        return {
            "input_ids": tokens_BT.masked_fill(masked_BT, self.mask_token),
            "labels": tokens_BT.masked_fill(~masked_BT, IGNORED),
            "class_labels": _classes(rows, self.num_classes, self.label_dropout, self.seed),
        }


__all__ = ["IGNORED", "SCHEDULES", "AutoregressiveCollator", "MaskedCollator"]
