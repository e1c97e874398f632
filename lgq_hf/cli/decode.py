"""`lgq decode`: a token file, or rows of token shards, to PNG images."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lgq_hf.checkpoint.loading import SHORT, Checkpoint, load_checkpoint
from lgq_hf.images.opening import SUFFIXES
from lgq_hf.images.sources import CROP, FLIP, ID, SIZES, TOKENS
from lgq_hf.tokens.manifest import read_manifest
from lgq_hf.tokens.reading import TokenDataset

from .output import check_output_folder, write_png
from .report import Report
from .token_file import is_relative, read_tokens

# of an image by its place: tokens, and height and width in pixels
Grid = Callable[[int], tuple[np.ndarray, tuple[int, int]]]


def run(args: argparse.Namespace) -> int:
    """Decodes the token file or shards `args.tokens` into the folder `args.output`; returns the exit status.

    Raises:
        ValueError: wrong arguments, no tokens or damaged ones, tokens of another model, or a model that cannot be
            loaded.
        OSError: the token file cannot be opened.
    """
    folder, place = Path(args.output), Path(args.tokens)
    check_output_folder(folder)
    if args.rows is not None and not place.is_dir():
        raise ValueError(f"--rows is for a folder of token shards, {args.tokens} is none")
    checkpoint = load_checkpoint(args.model, args.device)
    names, grid = _shards(args.tokens, args.rows, checkpoint) if place.is_dir() else _file(place, checkpoint)
    report, done = Report(), 0
    jobs = list(zip(names, output_names(names), range(len(names)), strict=True))
    for name, output_name, number in report.progress(jobs, "decoding"):
        with report.one(name):
            write_png(folder / output_name, checkpoint.decode(*grid(number)))
            done += 1
    if done:
        report.line(f"{folder}: {done} pictures")
    return report.finish(done)


def output_names(names: Sequence[str]) -> list[str]:
    """A PNG name for each image: its stem in the same folders, or its full name where stems collide.

    Names that differ in case alone collide, too, because some file systems do not tell them apart.
    """
    chosen = [str(PurePosixPath(name).with_suffix(".png")) for name in names]
    full = [f"{name}.png" for name in names]
    while True:
        counts = Counter(name.casefold() for name in chosen)
        better = [long if counts[name.casefold()] > 1 else name for name, long in zip(chosen, full, strict=True)]
        if better == chosen:
            return chosen
        chosen = better


def _file(place: Path, checkpoint: Checkpoint) -> tuple[list[str], Grid]:
    """Names and grids of a token file; `ValueError` where another model made it: it would decode to noise."""
    file = read_tokens(place)
    if file.fingerprint != checkpoint.fingerprint:
        raise ValueError(
            f"{place} was made by the model {file.model} ({file.fingerprint[:SHORT]}), not by "
            f"{checkpoint.name} ({checkpoint.fingerprint[:SHORT]}): pass the first with --model"
        )

    def grid(number: int) -> tuple[np.ndarray, tuple[int, int]]:
        height, width = file.original_sizes[number].tolist()
        return file.tokens[number], (height, width)

    return file.names, grid


def _shards(place: str, rows: tuple[int, int] | None, checkpoint: Checkpoint) -> tuple[list[str], Grid]:
    """Names and grids of rows of token shards, from the first number to before the second; `None`: of all.

    A row is called by its id, and which view of the image it is; by its number where an id cannot be a path.
    """
    manifest = read_manifest(place)
    sizes = () if manifest.size else SIZES[2:]
    dataset = TokenDataset(place, tokenizer=checkpoint.folder, columns=sizes)
    start, stop = rows or (0, len(dataset))
    numbers = range(start, min(stop, len(dataset)))
    if not numbers:
        raise ValueError(f"--rows: no rows {start}:{stop} in {place}, which has {len(dataset)}")

    def name_of(number: int, row: dict[str, Any]) -> str:
        path = PurePosixPath(row[ID] if is_relative(row[ID]) else f"row-{number}")
        several = [row[CROP]] * (manifest.preprocessing.crops > 1) + ["flipped"] * bool(row[FLIP])
        known = path.suffix.lower() in SUFFIXES
        stem, suffix = (path.stem, path.suffix) if known else (path.name, ".png")
        return str(path.with_name("-".join([stem, *several]) + suffix))

    def grid(place: int) -> tuple[np.ndarray, tuple[int, int]]:
        row = dataset[numbers[place]]
        height, width = (int(row[name]) for name in sizes) if sizes else manifest.size or (0, 0)
        return row[TOKENS].numpy(), (height, width)

    named = dataset.rows.with_format(None).select_columns([ID, CROP, FLIP])
    names = [name_of(number, named[number]) for number in numbers]
    counts = Counter(name.casefold() for name in names)
    return [
        f"row-{number}/{name}" if counts[name.casefold()] > 1 else name
        for number, name in zip(numbers, names, strict=True)
    ], grid


__all__ = ["output_names", "run"]
