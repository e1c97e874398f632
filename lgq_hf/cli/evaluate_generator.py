"""`lgq evaluate-generator`: how good a generator is, in a JSON file that says how its numbers came about."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lgq_hf.images.sheet import draw_grid
from lgq_hf.images.sources import open_source
from lgq_hf.metrics.extractors import build_extractor

from .evaluate import memory_of
from .generate import draw_of, load_quietly
from .output import check_output_file, write_json, write_png
from .report import progress_bar, shown

_ON_GRID = 64  # images at most


def run(args: argparse.Namespace) -> int:
    """Evaluates `args.pipeline` on `args.pictures`, and writes `args.output`, and `args.grid` if not `None`.

    Returns:
        The exit status: 0.

    Raises:
        ValueError: wrong arguments, or a pipeline, images or tokens that do not fit.
        OSError: the output cannot be written.
        ModuleNotFoundError: a package that is needed is missing.
    """
    output, grid = Path(args.output), None if args.grid is None else Path(args.grid)
    check_output_file(output, ".json")
    if grid is not None:
        check_output_file(grid, ".png")
    extractor = build_extractor(args.extractor, args.inception_weights)
    images: Any = open_source(args.pictures, kind="folder")
    pipe = load_quietly(args.pipeline, args.device)
    result, some = _evaluate(args, pipe, images, extractor, [] if grid is None else _evenly(args.num))
    result = {"pipeline": {"name": args.pipeline, **result.pop("pipeline")}, **result}
    write_json(output, result)
    if grid is not None:
        write_png(grid, draw_grid(some, [""] * len(some)))
    print(f"{shown(args.output)}:\n" + "\n".join(f"  {line}" for line in _lines(result)))
    return 0


def _evaluate(
    args: argparse.Namespace, pipe: Any, images: Any, extractor: Any, wanted: list[int]
) -> tuple[dict[str, Any], list[Image.Image]]:
    """What `evaluate` gives, and the generated images of these numbers."""
    from lgq_hf.evaluation.generators import evaluate  # takes diffusers, which takes seconds

    some: list[Image.Image] = []
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def watch(stage: str, first: int, batch: torch.Tensor) -> None:
            if stage not in bars:
                bars[stage] = stack.enter_context(progress_bar(f"{stage} images"))
            bars[stage](first + len(batch), args.num if stage == "generated" else len(images))
            if stage == "generated":
                inside = [number - first for number in wanted if first <= number < first + len(batch)]
                some.extend(Image.fromarray(array) for array in batch[inside].permute(0, 2, 3, 1).cpu().numpy())

        draw = draw_of(args, args.seed)
        extractor = extractor.to(pipe.vqvae.device)
        return evaluate(pipe, images, args.num, extractor, draw, tokens=args.tokens, watch=watch), some


def _evenly(num: int) -> list[int]:
    """Numbers of up to 64 images, evenly over all, since classes follow each other."""
    return np.linspace(0, num - 1, min(num, _ON_GRID)).astype(int).tolist()


def _lines(result: dict[str, Any]) -> list[str]:
    """The numbers for people, each with what it depends on."""
    metrics, protocol, cost = result["metrics"], result["protocol"], result["cost"]
    counts = f"{protocol['generated_pictures']} generated and {protocol['real_pictures']} real images"
    lines = [
        f"Fréchet distance of {protocol['extractor']} features: {metrics['frechet_distance']:.4g} ({counts})",
        f"of the tokenizer's reconstructions of the real ones: {metrics['frechet_distance_of_reconstructions']:.4g}",
        f"precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f} (k = {protocol['neighbours']})",
    ]
    if "bits_per_token" in metrics:
        exact = "at most " if protocol["bits"].startswith("upper bound") else ""
        bits = f"{exact}{metrics['bits_per_token']:.4f} bits a token, {metrics['bits_per_pixel']:.4f} bits a pixel"
        lines.append(f"{bits} ({protocol['held_out_rows']} rows held out)")
    speed = f"{cost['seconds_per_picture']:.4g} s an image in batches of {protocol['batch_size']}"
    return [*lines, f"{speed}{memory_of(cost)}"]
