"""`lgq reconstruct`: originals and reconstructions side by side, with PSNR."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.images.opening import find_pictures
from lgq_hf.images.sheet import MOST_PIXELS, Row, draw_sheet, pixels, shortened
from lgq_hf.metrics.reconstruction import psnr

from .output import check_output_file, write_png
from .report import Report, shown


def run(args: argparse.Namespace) -> int:
    """Draws `args.inputs` beside their reconstructions into `args.output`; returns the exit status.

    Raises:
        ValueError: wrong arguments, nothing to do, or a model that cannot be loaded.
        OSError: the output cannot be written.
    """
    output = Path(args.output)
    check_output_file(output, ".png")
    sources, failures = find_pictures(args.inputs, leave_out=output)
    checkpoint = load_checkpoint(args.model, args.device)
    report = Report(failures)
    rows: list[Row] = []
    for source in report.progress(sources, "reconstructing"):
        with report.one(str(source.path)):
            pixel_values, size = checkpoint.pixels(report.open(source.path), args.size)
            if pixels([*(row.original.size for row in rows), size[::-1]]) > MOST_PIXELS:
                raise ValueError(f"no room: a sheet holds up to {MOST_PIXELS // 10**6} megapixels; use --size")
            original, reconstruction, numbers = compare(checkpoint, pixel_values, size)
            caption = (f"{shortened(shown(source.name))} (original, reconstruction)", numbers)
            rows.append(Row(original, reconstruction, caption))
            report.line(f"{source.name}: {numbers}")
    if rows:
        write_png(output, draw_sheet(rows))
    return report.finish(done=len(rows))


def compare(
    checkpoint: Checkpoint, pixel_values: torch.Tensor, size: tuple[int, int]
) -> tuple[Image.Image, Image.Image, str]:
    """Reconstructs one picture.

    Args:
        checkpoint: the model.
        pixel_values: (1,3,H,W), as the checkpoint's processor made it.
        size: height and width before padding.

    Returns:
        The original and the reconstruction as RGB pictures of that size, and a line with size, PSNR (of the 8-bit
        pictures), token grid, and bits per pixel: the bits of all tokens over the picture's own pixels.
    """
    with torch.inference_mode():
        result = checkpoint.model(pixel_values)
    tokens = result.image_tokens[0]
    original = checkpoint.picture(pixel_values, size)
    reconstruction = checkpoint.picture(result.decoded_pixel_values, size)
    decibels = float(psnr([_unit_range(original)], [_unit_range(reconstruction)])[0])
    height, width = size
    bits = tokens.numel() * math.log2(checkpoint.config.codebook_size) / (height * width)
    grid = " x ".join(str(side) for side in tokens.shape)
    per_channel = " x channels" if tokens.ndim == 3 else ""
    numbers = f"{width} x {height} px, PSNR {decibels:.2f} dB, {grid} tokens (h x w{per_channel}), {bits:.3f} bits/px"
    return original, reconstruction, numbers


def _unit_range(picture: Image.Image) -> torch.Tensor:
    """An 8-bit picture as (3,h,w) in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 255
