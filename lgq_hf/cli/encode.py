"""`lgq encode`: pictures to one token file."""

import argparse
from pathlib import Path

import numpy as np

from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.images.opening import find_pictures

from .output import check_output_file
from .report import Report
from .token_file import MOST_PICTURES, SUFFIXES, TokenFile, write_tokens


def run(args: argparse.Namespace) -> int:
    """Encodes `args.inputs` one at a time and writes `args.output`; returns the exit status.

    Raises:
        ValueError: wrong arguments, nothing to do, or a model that cannot be loaded.
        OSError: the output cannot be written.
    """
    output = Path(args.output)
    check_output_file(output, *SUFFIXES)
    sources, failures = find_pictures(args.inputs)
    if len(sources) > MOST_PICTURES:
        raise ValueError(f"{len(sources)} pictures: a token file holds up to {MOST_PICTURES}, make several")
    checkpoint = load_checkpoint(args.model, args.device)
    report = Report(failures)
    names, tokens, sizes = [], [], []
    for source in report.progress(sources, "encoding"):
        with report.one(str(source.path)):
            pixel_values, size = checkpoint.pixels(report.open(source.path), args.size)
            tokens.append(checkpoint.encode(pixel_values))
            names.append(source.name)
            sizes.append(size)
    if names:
        config = checkpoint.config
        write_tokens(
            output,
            TokenFile(
                tokens=tokens,
                original_sizes=np.array(sizes, dtype=np.int64),
                names=names,
                model=checkpoint.name,
                fingerprint=checkpoint.fingerprint,
                codebook_size=config.codebook_size,
                downsample_factor=config.spatial_downsample_factor,
            ),
        )
        total = sum(grid.size for grid in tokens)
        report.line(f"{output}: {len(names)} pictures, {total} tokens, {output.stat().st_size} bytes")
    return report.finish(done=len(names))
