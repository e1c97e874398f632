"""`lgq evaluate`: how good a tokenizer is, in a JSON file that says how its numbers came about."""

import argparse
from pathlib import Path
from typing import Any

from lgq_hf.checkpoint.loading import SHORT, load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.evaluation.settings import FRECHET, RFID, frechet_label
from lgq_hf.evaluation.tokenizers import draw_extremes
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.extractors import build_extractor
from lgq_hf.metrics.perceptual import LPIPS, EfficientNetDistance
from lgq_hf.runtime import DTYPES, own_device, world
from lgq_hf.tokens.engine import default_workers

from .output import check_output_file, write_json, write_png
from .report import list_failures, progress_bar, shown


def run(args: argparse.Namespace) -> int:
    """Evaluates `args.model` on `args.data` and writes `args.output`, and `args.grid` if it is not `None`.

    Of several processes the first one writes and prints.

    Returns:
        The exit status: 1 if images were passed over.

    Raises:
        ValueError: wrong arguments, a model that cannot be loaded, or images that cannot be used.
        OSError: the output cannot be written, or a file of weights is missing.
        ModuleNotFoundError: the package of the metrics is missing.
    """
    output, grid = Path(args.output), None if args.grid is None else Path(args.grid)
    check_output_file(output, ".json")
    if grid is not None:
        check_output_file(grid, ".png")
    settings = Settings(
        Preprocessing(args.size, args.crops, args.crop_scale),
        batch_size=args.batch_size,
        limit=args.limit,
        seed=args.seed,
        ema=args.ema,
        on_error=args.on_error,
        num_workers=default_workers(args.device) if args.workers is None else args.workers,
    )
    if (args.lpips_vgg is None) != (args.lpips_heads is None):
        raise ValueError("--lpips-vgg and --lpips-heads belong together: LPIPS needs both files, or leave both out")
    lpips = None if args.lpips_vgg is None else LPIPS(args.lpips_vgg, args.lpips_heads)
    perceptual = EfficientNetDistance()
    classifier = perceptual.network
    own = args.extractor == classifier.name and args.inception_weights is None  # one copy of a network is enough
    extractor = classifier if own else build_extractor(args.extractor, args.inception_weights)
    source = open_source(
        args.data,
        kind=args.kind,
        split=args.split,
        image_column=args.image_column,
        id_column=args.id_column,
        name=args.config,
        revision=args.source_revision,
    )
    checkpoint = load_checkpoint(args.model, own_device(args.device), revision=args.revision, dtype=DTYPES[args.dtype])
    for network in (perceptual, extractor, lpips):
        if network is not None:
            network.to(checkpoint.device)
    first = world()[0] == 0
    with progress_bar("evaluating") as watch:
        result = evaluate_tokenizer(
            checkpoint, source, settings, extractor, perceptual, classifier, lpips, watch if first else None
        )
    if not first:
        return 0
    write_json(output, result)
    if grid is not None:
        write_png(grid, draw_extremes(checkpoint, source, settings, result))
    print(f"{shown(args.output)}:\n" + "\n".join(f"  {line}" for line in _lines(result)))
    protocol = result["protocol"]
    failed = [(one["id"], one["reason"]) for one in protocol["failed"]]
    return list_failures(failed, len(failed) + protocol["pictures"], place="the results")


def _lines(result: dict[str, Any]) -> list[str]:
    """The numbers for people, each with what it depends on."""
    model, protocol, metrics, cost = (result[part] for part in ("model", "protocol", "metrics", "cost"))
    several = "" if protocol["views"] == protocol["pictures"] else f", {protocol['views']} crops"
    size = protocol["picture_size"]
    sizes = f"{size[0]} x {size[1]} pixels" if isinstance(size, list) else f"{size['sizes']} sizes"
    name = f"{shown(model['name'])} ({model['fingerprint'][:SHORT]})"
    lines = [f"{name}, {protocol['dtype']}: {protocol['pictures']} images{several} of {sizes}"]
    exact = metrics["identical_pictures"]
    told = "" if metrics["psnr"] is None else f"PSNR {_spread(metrics, 'psnr', '.2f')} dB, "
    lines.append(f"{told}SSIM {_spread(metrics, 'ssim', '.4f')}" + (f", {exact} reproduced exactly" if exact else ""))
    for key, title in (("perceptual", "perceptual distance"), ("lpips", "LPIPS")):
        if key in metrics:
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
    count = protocol["processes"]
    by = "" if count == 1 else f" by {count} processes"
    speed = f"{cost['pictures_per_second']:.4g} images a second encoded and decoded{by}"
    return f"{speed}, in batches of {protocol['batch_size']}{memory_of(cost)}"


def memory_of(cost: dict[str, Any]) -> str:
    """The peak memory of a result's cost, for the end of a line."""
    memory = cost["peak_memory_bytes"]
    return "" if memory is None else f", {memory / 2**30:.2f} GiB at most ({cost['peak_memory_of']})"


__all__ = ["memory_of", "run"]
