"""`lgq decode`: a token file, or rows of token shards, to PNG pictures."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lgq_hf.checkpoint.loading import SHORT, Checkpoint, load_checkpoint
from lgq_hf.images.opening import SUFFIXES
from lgq_hf.images.sources import CROP, FLIP, ID, SIZES, TOKENS
from lgq_hf.tokens.manifest import check_tokenizer, read_manifest
from lgq_hf.tokens.reading import TokenDataset

from .output import check_output_folder, write_png
from .report import Report
from .token_file import is_relative, read_tokens


def run(args: argparse.Namespace) -> int:
    """Decodes the token file or shards `args.tokens` into the folder `args.output`; returns the exit status.

    Raises:
        ValueError: wrong arguments, no tokens or damaged ones, tokens of another model, or a model that cannot be
            loaded.
        OSError: the token file cannot be opened.
    """
    folder = Path(args.output)
    check_output_folder(folder)
    source: _File | _Shards
    if Path(args.tokens).is_dir():
        source = _Shards(args.tokens, args.rows)
    elif args.rows is not None:
        raise ValueError(f"--rows is for a folder of token shards, {args.tokens} is none")
    else:
        source = _File(args.tokens)
    checkpoint = load_checkpoint(args.model, args.device)
    source.check(checkpoint)
    report, done = Report(), 0
    jobs = list(zip(source.names, output_names(source.names), range(len(source.names)), strict=True))
    for name, output_name, number in report.progress(jobs, "decoding"):
        with report.one(name):
            write_png(folder / output_name, checkpoint.decode(*source.grid(number)))
            done += 1
    if done:
        report.line(f"{folder}: {done} pictures")
    return report.finish(done)


def output_names(names: Sequence[str]) -> list[str]:
    """A PNG name for each picture: its stem in the same folders, or its full name where stems collide.

    Names that differ in case alone collide, too, because some file systems do not tell them apart.
    """
    short = [str(PurePosixPath(name).with_suffix(".png")) for name in names]
    full = [f"{name}.png" for name in names]
    chosen = short
    while True:
        counts = Counter(name.casefold() for name in chosen)
        better = [long if counts[name.casefold()] > 1 else name for name, long in zip(chosen, full, strict=True)]
        if better == chosen:
            return chosen
        chosen = better


class _File:
    """The pictures of a token file."""

    def __init__(self, path: str) -> None:
        self.path, self.file = path, read_tokens(Path(path))
        self.names: Sequence[str] = self.file.names

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuses tokens that another model made: they would decode to noise."""
        if self.file.fingerprint != checkpoint.fingerprint:
            raise ValueError(
                f"{self.path} was made by the model {self.file.model} ({self.file.fingerprint[:SHORT]}), not by "
                f"{checkpoint.name} ({checkpoint.fingerprint[:SHORT]}): pass the first with --model"
            )

    def grid(self, number: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Tokens of a picture, and its height and width in pixels."""
        height, width = self.file.original_sizes[number].tolist()
        return self.file.tokens[number], (height, width)


class _Shards:
    """Rows of token shards; `rows` is (start, stop) or `None` for all."""

    def __init__(self, place: str, rows: tuple[int, int] | None) -> None:
        self.manifest = read_manifest(place)
        self.sizes = () if self.manifest.size else SIZES[2:]
        self.rows = TokenDataset(place, columns=self.sizes)
        start, stop = rows or (0, len(self.rows))
        if start >= min(stop, len(self.rows)):
            raise ValueError(f"--rows: no rows {start}:{stop} in {place}, which has {len(self.rows)}")
        self.numbers = range(start, min(stop, len(self.rows)))
        named = self.rows.rows.with_format(None).select_columns([ID, CROP, FLIP])
        self.names = [self._name(number, named[number]) for number in self.numbers]
        counts = Counter(name.casefold() for name in self.names)
        for place_of, (number, name) in enumerate(zip(self.numbers, self.names, strict=True)):
            if counts[name.casefold()] > 1:
                self.names[place_of] = f"row-{number}/{name}"

    def _name(self, number: int, row: dict[str, Any]) -> str:
        """The id, and which view of the picture it is; the row's number where an id cannot be a path."""
        path = PurePosixPath(row[ID] if is_relative(row[ID]) else f"row-{number}")
        several = [row[CROP]] * (self.manifest.preprocessing.crops > 1) + ["flipped"] * bool(row[FLIP])
        stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
        suffix = path.suffix if path.suffix.lower() in SUFFIXES else ".png"
        return str(path.with_name("-".join([stem, *several]) + suffix))

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuses tokens that another model made."""
        check_tokenizer(self.manifest, checkpoint.folder)

    def grid(self, number: int) -> tuple[np.ndarray, tuple[int, int]]:
        """As in `_File`."""
        row = self.rows[self.numbers[number]]
        height, width = (int(row[name]) for name in self.sizes) if self.sizes else self.manifest.size or (0, 0)
        return row[TOKENS].numpy(), (height, width)
