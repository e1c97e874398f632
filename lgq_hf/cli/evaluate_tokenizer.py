"""`lgq evaluate MODEL DATA`: how good a tokenizer is."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # types-tqdm is not on every index

from lgq_hf.checkpoint.loading import SHORT, Checkpoint, load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.evaluation.grid import draw_extremes
from lgq_hf.evaluation.naming import FRECHET, RFID, frechet_label
from lgq_hf.images.sources import ImageSource, open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.perceptual import EfficientNetDistance
from lgq_hf.runtime import DTYPES, own_device, world
from lgq_hf.tokens.engine import default_workers

from .networks import check_networks, extractor_of, lpips_of
from .output import write_json, write_png
from .report import shown

_LISTED = 20  # pictures that were passed over and are printed; all are in the file


def run_tokenizer(args: argparse.Namespace, output: Path, grid: Path | None) -> int:
    """Evaluates `args.model` on `args.data` and writes the results, and `grid` if it is not `None`.

    Of several processes the first one writes and prints.

    Returns:
        The exit status: 1 if pictures were passed over.

    Raises:
        ValueError: wrong arguments, a model that cannot be loaded, or pictures that cannot be used.
        OSError: the output cannot be written.
        ModuleNotFoundError: the package of the metrics is missing.
    """
    settings = _settings(args)
    check_networks(args)
    source = open_source(
        args.data,
        kind=args.kind,
        split=args.split,
        image_column=args.image_column,
        id_column=args.id_column,
        name=args.config,
        revision=args.source_revision,
    )
    dtype = DTYPES[args.dtype]
    checkpoint = load_checkpoint(args.model, own_device(args.device), revision=args.revision, dtype=dtype)
    first = world()[0] == 0
    result = _evaluate(args, checkpoint, source, settings, first)
    if not first:
        return 0
    write_json(output, result)
    if grid is not None:
        write_png(grid, draw_extremes(checkpoint, source, settings, result))
    print(f"{shown(args.output)}:\n" + "\n".join(f"  {line}" for line in lines_of(result)))
    return _failures(result["protocol"])


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        Preprocessing(args.size, args.crops, args.crop_scale),
        batch_size=args.batch_size,
        limit=args.limit,
        seed=args.seed,
        ema=args.ema,
        on_error=args.on_error,
        num_workers=default_workers(args.device) if args.workers is None else args.workers,
    )


def _evaluate(
    args: argparse.Namespace, checkpoint: Checkpoint, source: ImageSource, settings: Settings, first: bool
) -> dict[str, Any]:
    """What `evaluate_tokenizer` gives, with a bar on the first process's terminal."""
    perceptual = EfficientNetDistance().to(checkpoint.device)
    classifier = perceptual.network
    # one copy of a network is enough
    extractor = classifier if args.extractor == classifier.name else extractor_of(args).to(checkpoint.device)
    lpips = lpips_of(args)
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def watch(seen: int, total: int) -> None:
            if not bars:
                bar = tqdm(total=total, desc="evaluating", unit="picture", disable=None, dynamic_ncols=True)
                bars.append(stack.enter_context(bar))
            bars[0].update(seen - bars[0].n)

        return evaluate_tokenizer(
            checkpoint,
            source,
            settings,
            extractor,
            perceptual,
            classifier,
            None if lpips is None else lpips.to(checkpoint.device),
            watch if first else None,
        )


def lines_of(result: dict[str, Any]) -> list[str]:
    """The numbers of a tokenizer for people, each with what it depends on."""
    model, protocol, metrics, cost = (result[part] for part in ("model", "protocol", "metrics", "cost"))
    several = "" if protocol["views"] == protocol["pictures"] else f", {protocol['views']} crops"
    size = protocol["picture_size"]
    sizes = f"{size[0]} x {size[1]} pixels" if isinstance(size, list) else f"{size['sizes']} sizes"
    name = f"{shown(model['name'])} ({model['fingerprint'][:SHORT]})"
    lines = [f"{name}, {protocol['dtype']}: {protocol['pictures']} pictures{several} of {sizes}"]
    exact = metrics["identical_pictures"]
    told = "" if metrics["psnr"] is None else f"PSNR {_spread(metrics, 'psnr', '.2f')} dB, "
    lines.append(f"{told}SSIM {_spread(metrics, 'ssim', '.4f')}" + (f", {exact} reproduced exactly" if exact else ""))
    for key in ("perceptual", "lpips"):
        if key in metrics:
            title = "perceptual distance" if key == "perceptual" else "LPIPS"
            lines.append(f"{title} ({protocol[key]['network']}) {_spread(metrics, key, '.4f')}")
    key = RFID if RFID in metrics else FRECHET
    lines.append(f"{frechet_label(key, protocol['extractor'], protocol['pictures'])}: {metrics[key]:.4g}")
    if "top1_agreement" in metrics:
        agreement = f"{100 * metrics['top1_agreement']:.1f} %"
        lines.append(f"same first class as the original ({protocol['classifier']['network']}): {agreement}")
    return [*lines, *_code_lines(metrics), _cost_line(cost, protocol)]


def _spread(metrics: dict[str, Any], name: str, form: str) -> str:
    deviation = metrics[f"{name}_std"]
    return f"{metrics[name]:{form}}" + ("" if deviation is None else f" (deviation {deviation:{form}})")


def _code_lines(metrics: dict[str, Any]) -> list[str]:
    used, codes = metrics["codes_used"], metrics["codebook_size"]
    error = metrics["relative_quantization_error"]
    tenth = f"{metrics['codes_used_tenth']} at least 0.1 N/K times"
    entropy = f"entropy {metrics['entropy_bits']:.3f} bits, perplexity {metrics['perplexity']:.1f}"
    lengths = f"mean distance {metrics['mean_distance']:.4g}, median {metrics['median_distance']:.4g}"
    relative = "" if error is None else f", squared {100 * error:.3g} % of the latents' variance"
    return [
        f"codebook: {used} of {codes} codes used by N = {metrics['tokens']} tokens, {tenth}; {entropy}",
        f"{metrics['bits_per_pixel']:.4f} bits a pixel, {metrics['bits_per_pixel_by_entropy']:.4f} by the entropy",
        f"latents to codes: {lengths}{relative}",
    ]


def _cost_line(cost: dict[str, Any], protocol: dict[str, Any]) -> str:
    memory = cost["peak_memory_bytes"]
    held = "" if memory is None else f", {memory / 2**30:.2f} GiB at most ({cost['peak_memory_of']})"
    count = protocol["processes"]
    by = "" if count == 1 else f" by {count} processes"
    speed = f"{cost['pictures_per_second']:.4g} pictures a second encoded and decoded{by}"
    return f"{speed}, in batches of {protocol['batch_size']}{held}"


def _failures(protocol: dict[str, Any]) -> int:
    """Lists the pictures that were passed over on stderr; the exit status."""
    failed = protocol["failed"]
    if not failed:
        return 0
    lines = [f"  {shown(one['id'])}: {shown(one['reason'])}" for one in failed[:_LISTED]]
    more = [f"  and {len(failed) - _LISTED} more, all in the results"] if len(failed) > _LISTED else []
    heading = f"lgq: {len(failed)} of {len(failed) + protocol['pictures']} pictures were passed over:"
    tqdm.write("\n".join([heading, *lines, *more]), file=sys.stderr)
    return 1


__all__ = ["lines_of", "run_tokenizer"]
