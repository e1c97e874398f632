"""`lgq evaluate`: how good a tokenizer or a generator is, in a JSON file that says how its numbers came about."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # types-tqdm is not on every index

from lgq_hf.images.sheet import draw_grid
from lgq_hf.images.sources import FolderSource, open_source

from .arguments import FOR_GENERATORS, FOR_TOKENIZERS
from .evaluate_tokenizer import run_tokenizer
from .networks import extractor_of
from .output import check_output_file, write_json, write_png
from .pipeline import draw_of, load_quietly
from .report import shown

_ON_GRID = 64  # pictures at most
_FORMS = "expected MODEL DATA (a tokenizer and pictures), or --pipeline, --pictures and --num (a generator)"


def run(args: argparse.Namespace) -> int:
    """Evaluates `args.model` on `args.data`, or `args.pipeline` on `args.pictures`, and writes `args.output`.

    Returns:
        The exit status: 1 if pictures were passed over.

    Raises:
        ValueError: wrong arguments, or a model, pipeline, pictures or tokens that do not fit.
        OSError: the output cannot be written.
        ModuleNotFoundError: a package that is needed is missing.
    """
    of_tokenizer = check_form(args)
    output, grid = Path(args.output), None if args.grid is None else Path(args.grid)
    for file, suffix in ((output, ".json"), (grid, ".png")):
        if file is not None:
            if file.suffix.lower() != suffix:
                raise ValueError(f"{file}: expected a name that ends in {suffix}")
            check_output_file(file)
    if of_tokenizer:
        return run_tokenizer(args, output, grid)
    return _run_generator(args, output, grid)


def check_form(args: argparse.Namespace) -> bool:
    """Whether a tokenizer is to be evaluated; fills in the defaults of that form's options.

    Raises:
        ValueError: neither form, both, half of one, or an option of the other one.
    """
    given = {name for name in ("model", "data", "pipeline") if getattr(args, name) is not None}
    if not given:
        raise ValueError(_FORMS)
    of_tokenizer = "pipeline" not in given
    own, other = (FOR_TOKENIZERS, FOR_GENERATORS) if of_tokenizer else (FOR_GENERATORS, FOR_TOKENIZERS)
    if not of_tokenizer and len(given) > 1:
        raise ValueError(f"{shown(args.model)} and --pipeline are two things to evaluate, one at a time: {_FORMS}")
    needed = ("data",) if of_tokenizer else ("pictures", "num")
    if missing := [name for name in needed if getattr(args, name) is None]:
        names = " and ".join("DATA" if of_tokenizer else f"--{name}" for name in missing)
        raise ValueError(f"{names} not given: {_FORMS}")
    if wrong := [f"--{name.replace('_', '-')}" for name in other if getattr(args, name) is not None]:
        kinds = ("generators", "a tokenizer") if of_tokenizer else ("tokenizers", "a generator")
        raise ValueError(f"{', '.join(wrong)}: for {kinds[0]} only, and this is {kinds[1]}; leave out")
    for name, default in own.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return of_tokenizer


def _run_generator(args: argparse.Namespace, output: Path, grid: Path | None) -> int:
    """Evaluates `args.pipeline` on `args.pictures`; returns the exit status."""
    pictures: Any = open_source(args.pictures, kind="folder")
    pipe = load_quietly(args.pipeline, args.device)
    result, some = _evaluate(args, pipe, pictures, [] if grid is None else _spread(args.num))
    result = {"pipeline": {"name": args.pipeline, **result.pop("pipeline")}, **result}
    write_json(output, result)
    if grid is not None:
        write_png(grid, draw_grid(some, [""] * len(some)))
    print(f"{shown(args.output)}:\n" + "\n".join(f"  {line}" for line in _lines(result)))
    return 0


def _evaluate(
    args: argparse.Namespace, pipe: Any, pictures: FolderSource, wanted: list[int]
) -> tuple[dict[str, Any], list[Image.Image]]:
    """What `evaluate` gives, and the generated pictures of these numbers."""
    from lgq_hf.evaluation.generators import evaluate

    some: list[Image.Image] = []
    draw = draw_of(args, args.seed)
    with ExitStack() as stack:
        bars: dict[str, tqdm] = {}

        def watch(stage: str, first: int, batch: torch.Tensor) -> None:
            if stage not in bars:
                total = args.num if stage == "generated" else len(pictures)
                bar = tqdm(total=total, desc=f"{stage} pictures", unit="picture", disable=None, dynamic_ncols=True)
                bars[stage] = stack.enter_context(bar)
            bars[stage].update(len(batch))
            if stage == "generated":
                inside = [number - first for number in wanted if first <= number < first + len(batch)]
                some.extend(Image.fromarray(array) for array in batch[inside].permute(0, 2, 3, 1).cpu().numpy())

        extractor = extractor_of(args).to(pipe.vqvae.device)
        return evaluate(pipe, pictures, args.num, extractor, draw, tokens=args.tokens, watch=watch), some


def _spread(num: int) -> list[int]:
    """Numbers of up to 64 pictures, evenly over all, since classes follow each other."""
    return np.linspace(0, num - 1, min(num, _ON_GRID)).astype(int).tolist()


def _lines(result: dict[str, Any]) -> list[str]:
    """The numbers for people, each with what it depends on."""
    metrics, protocol, cost = result["metrics"], result["protocol"], result["cost"]
    counts = f"{protocol['generated_pictures']} generated and {protocol['real_pictures']} real pictures"
    lines = [
        f"Fréchet distance of {protocol['extractor']} features: {metrics['frechet_distance']:.4g} ({counts})",
        f"of the tokenizer's reconstructions of the real ones: {metrics['frechet_distance_of_reconstructions']:.4g}",
        f"precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f} (k = {protocol['neighbours']})",
    ]
    if "bits_per_token" in metrics:
        exact = "at most " if protocol["bits"].startswith("upper bound") else ""
        bits = f"{exact}{metrics['bits_per_token']:.4f} bits a token, {metrics['bits_per_pixel']:.4f} bits a pixel"
        lines.append(f"{bits} ({protocol['held_out_rows']} rows held out)")
    memory = cost["peak_memory_bytes"]
    held = "" if memory is None else f", {memory / 2**30:.2f} GiB at most ({cost['peak_memory_of']})"
    return [*lines, f"{cost['seconds_per_picture']:.4g} s a picture in batches of {protocol['batch_size']}{held}"]
