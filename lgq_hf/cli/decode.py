"""`lgq decode`: a token file to PNG pictures."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lgq_hf.checkpoint import SHORT, Checkpoint, load_checkpoint
from lgq_hf.files import atomic_file

from .output import check_output_folder
from .report import Report
from .token_file import TokenFile, read_tokens


def run(args: argparse.Namespace) -> int:
    """Decodes the token file `args.tokens` into the folder `args.output`; returns the exit status.

    Raises:
        ValueError: wrong arguments, no token file or a damaged one, tokens of another model, or a model that cannot be
            loaded.
        OSError: the token file cannot be opened.
    """
    folder = Path(args.output)
    check_output_folder(folder)
    file = read_tokens(Path(args.tokens))
    checkpoint = load_checkpoint(args.model, args.device)
    _check_model(file, checkpoint, args.tokens)
    report, done = Report(), 0
    jobs = list(zip(file.names, output_names(file.names), file.tokens, file.original_sizes.tolist(), strict=True))
    for name, output_name, tokens, (height, width) in report.progress(jobs, "decoding"):
        with report.one(name):
            picture = checkpoint.decode(tokens, (height, width))
            with atomic_file(folder / output_name) as temporary:
                picture.save(temporary, format="PNG")
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


def _check_model(file: TokenFile, checkpoint: Checkpoint, path: str) -> None:
    """Refuses tokens that another model made: they would decode to noise."""
    if file.fingerprint != checkpoint.fingerprint:
        raise ValueError(
            f"{path} was made by the model {file.model} ({file.fingerprint[:SHORT]}), not by {checkpoint.name} "
            f"({checkpoint.fingerprint[:SHORT]}): pass the first with --model"
        )
