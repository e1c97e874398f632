"""Tokenizes sample photographs: `make demo`, or `python -m demo.demo --model MODEL -o FILE`.

Prints the tokens of one photograph, then writes a picture with originals and reconstructions.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import photographs
from lgq_hf import default_checkpoint
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.cli.main import main as lgq

HERE = Path(__file__).parent
ROWS, COLUMNS = 8, 12


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status of `lgq reconstruct`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(default_checkpoint()), help="folder or repository (default: built in)")
    parser.add_argument("-o", "--output", default=str(HERE / "reconstruction.png"), help="PNG to write (in demo/)")
    options = parser.parse_args(arguments)
    checkpoint = load_checkpoint(options.model, "cpu")
    with torch.inference_mode():
        batch = checkpoint.processor(photographs.load("chelsea.png"), return_tensors="pt")
        tokens = checkpoint.model.encode(batch["pixel_values"]).image_tokens[0]
    tokens = tokens if tokens.ndim == 2 else tokens[..., 0]  # per-channel bins: those of the first channel
    print(f"chelsea.png at 256 x 256 px is a grid of {tokens.shape[0]} x {tokens.shape[1]} tokens below", end=" ")
    print(f"{checkpoint.config.codebook_size}; its middle:")
    top, left = (tokens.shape[0] - ROWS) // 2, (tokens.shape[1] - COLUMNS) // 2
    for row in tokens[top : top + ROWS, left : left + COLUMNS]:
        print(" ".join(f"{token:5d}" for token in row.tolist()))
    files = [str(photographs.folder() / name) for name in photographs.NAMED]
    return lgq(["reconstruct", *files, "--size", "256", "--model", options.model, "-o", options.output])


if __name__ == "__main__":
    sys.exit(main())
