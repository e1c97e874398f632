"""The numbers of an evaluation, from the totals of all ranks, and all that they depend on."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import PILImageResampling

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.settings import Networks, Settings, frechet_key
from lgq_hf.evaluation.totals import Processes, Totals, column, described_sizes, median_length
from lgq_hf.images.sources import ImageSource
from lgq_hf.metrics.codebook import codebook_statistics
from lgq_hf.metrics.frechet import frechet_distance
from lgq_hf.metrics.frozen import sha256_of

EXTREMES = 8  # best pictures, and worst
# the shortest side in pixels that each of them measures
_SSIM, _PERCEPTUAL, _LPIPS = 11, 32, 16


def smallest_side(networks: Networks, settings: Settings) -> int:
    """The shortest side in pixels that all numbers can be had of; `ValueError` where the settings cut smaller ones."""
    smallest = max(_SSIM, _PERCEPTUAL * (networks.perceptual is not None), _LPIPS * (networks.lpips is not None))
    size = settings.preprocessing.size
    if size is not None and size < smallest:
        raise ValueError(f"size: expected at least {smallest} pixels, which the metrics need, got {size}")
    return smallest


def metrics(totals: Totals, pictures: int) -> dict[str, Any]:
    """All numbers by name; what is not finite is `None`.

    Args:
        totals: of all processes, with at least 2 views.
        pictures: how many different pictures these views show.
    """
    rows, networks = totals.rows, totals.networks
    decibels = column(rows, "psnr")
    exact = decibels.isinf()
    found: dict[str, Any] = {**_spread("psnr", decibels[~exact]), "identical_pictures": int(exact.sum())}
    for name in ("ssim", "perceptual", "lpips"):
        if name in rows[0]:
            found |= _spread(name, column(rows, name))
    reference = getattr(networks.extractor, "is_reference", True)  # a file of weights may be any
    key = frechet_key(networks.extractor.name, pictures, reference)
    found[key] = frechet_distance(totals.reconstructions, totals.originals)
    if networks.classifier is not None:
        found["top1_agreement"] = float(column(rows, "top1_agreement").mean())
    found |= _codes(totals) | _distances(totals)
    unknown = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
    return found | dict.fromkeys(unknown)


def _spread(name: str, values: Tensor) -> dict[str, float | None]:
    """Mean over views and standard deviation (divided by their number - 1)."""
    mean = float(values.mean()) if len(values) else None
    return {name: mean, f"{name}_std": float(values.std()) if len(values) > 1 else None}


def _codes(totals: Totals) -> dict[str, Any]:
    """How the codes are used, and what the tokens cost."""
    groups = len(totals.counts_GK)
    statistics = codebook_statistics(totals.counts_GK.sum(0))
    entropies = [codebook_statistics(counts_K)["entropy_bits"] for counts_K in totals.counts_GK]
    pixels = sum(height * width * views for (height, width), views in totals.sizes.items())
    tokens = totals.positions * groups
    return {
        **statistics,
        **({"entropy_bits_by_group": entropies} if groups > 1 else {}),
        "bits_per_pixel": tokens * math.log2(statistics["codebook_size"]) / pixels,
        "bits_per_pixel_by_entropy": totals.positions * math.fsum(entropies) / pixels,
    }


def _distances(totals: Totals) -> dict[str, float]:
    """How far latent vectors lie from their codes: sums over the parts of a vector that have tokens of their own."""
    parts = [distances.statistics() for distances in totals.distances]
    squared, variance = (
        math.fsum(part[name] for part in parts) for name in ("mean_squared_distance", "mean_latent_variance")
    )
    centroids = [part["mean_code_to_centroid_distance"] for part in parts]
    return {
        "mean_squared_distance": squared,
        "mean_latent_variance": variance,
        "relative_quantization_error": squared / variance if variance else (math.inf if squared else 0.0),
        "mean_distance": float(totals.length_sum) / totals.positions,
        "median_distance": median_length(totals.lengths),
        "mean_code_to_centroid_distance": math.fsum(centroids) / len(centroids),
    }


def extremes(totals: Totals, source: ImageSource, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """The views with the highest PSNR and those with the lowest, the extreme first; of equal ones the first in order.

    Returns:
        `best` and `worst`, up to 8 each and none in both: id of the picture, crop ("" without one), whether it is
        mirrored, PSNR in dB (`None` for two equal pictures) and the number of the view.
    """
    views = settings.preprocessing.views()
    count = min(EXTREMES, len(totals.rows) // 2)
    found = {}
    for name, sign in (("best", -1), ("worst", 1)):
        ranked = sorted(totals.rows, key=lambda row: (sign * row["psnr"], row["view"]))[:count]
        found[name] = [_view(row, source, views) for row in ranked]
    return found


def _view(row: dict[str, float], source: ImageSource, views: list[tuple[str, bool]]) -> dict[str, Any]:
    index, which = divmod(int(row["view"]), len(views))
    crop, flipped = views[which]
    psnr = row["psnr"] if math.isfinite(row["psnr"]) else None
    return {"id": source.id(index), "crop": crop, "flip": flipped, "psnr": psnr, "view": int(row["view"])}


def cost(parts: list[dict[str, Any] | None]) -> dict[str, Any]:
    """What encoding and decoding cost, from `Clock.cost` of each process that did any."""
    timed = [part for part in parts if part is not None]
    memory = [part["peak_memory_bytes"] for part in timed]
    return {
        "pictures_per_second": math.fsum(1 / part["seconds_per_picture"] for part in timed),
        "timed": "encode and decode of pictures on the device; without the first batch where others follow",
        "timed_pictures": sum(part["timed_pictures"] for part in timed),
        "processes_together": len(timed),
        "peak_memory_bytes": None if None in memory else max(memory),
        "peak_memory_of": timed[0]["peak_memory_of"] + (", the largest" if len(timed) > 1 else ""),
    }


_ROUNDED = "values in [0, 1], reconstructions clamped to it and rounded to 8 bits"


def describe_model(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model: name, fingerprint of the weights, and its sizes."""
    config, model = checkpoint.config, checkpoint.model
    return {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "quantizer": config.quantizer,
        "codebook_mode": config.codebook_mode,
        "distance": config.distance,
        "codebook_size": config.codebook_size,
        "code_dim": config.quantizer_dim,
        "tokens_per_position": config.tokens_per_position,
        "downsampling": config.spatial_downsample_factor,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "quantizer_parameters": sum(parameter.numel() for parameter in model.quantizer.parameters()),
    }


def describe_protocol(
    checkpoint: Checkpoint,
    source: ImageSource,
    settings: Settings,
    totals: Totals,
    processes: Processes,
) -> dict[str, Any]:
    """All that the numbers depend on.

    Args:
        checkpoint: the model.
        source: the pictures that were taken.
        settings: how.
        totals: of all processes.
        processes: how many there were.
    """
    views, networks = settings.preprocessing.views(), totals.networks
    on_gpu = checkpoint.device.type == "cuda"
    return {
        "extractor": networks.extractor.name,
        "extractor_sha256": networks.extractor.weights_sha256,
        "extractor_preparation": networks.extractor.preparation,
        "extractor_is_reference": getattr(networks.extractor, "is_reference", None),  # of weights from a file
        "perceptual": _named(networks.perceptual),
        "lpips": _named(networks.lpips),
        "classifier": _named(networks.classifier),
        "failed": totals.failures,
        "source": {"kind": source.kind, "name": source.name, "sha256": source.digest()},
        "picture_size": described_sizes(totals.sizes),
        "resize": _resize(checkpoint, settings),
        "crops": [f"{crop}{', mirrored' * flipped}" for crop, flipped in views if crop] or None,
        "crop_scale": settings.preprocessing.crop_scale,
        "pixels": {
            "psnr, ssim, perceptual, lpips, Fréchet distance, top1_agreement": _ROUNDED,
            "model": "8-bit pictures, normalised by the image processor",
        },
        "code_distances": "Euclidean, of latents and codes in the space where the lookup compares them",
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "metrics_dtype": "networks float32, all else float64",
        "ema": settings.ema or ema_of(checkpoint),
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "processes": processes.count,
        "process_backend": processes.backend,
        "device": checkpoint.device.type,
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
        if on_gpu
        else None,
    }


def _named(network: Any) -> dict[str, str] | None:
    return None if network is None else {"network": network.name, "weights_sha256": network.weights_sha256}


def _resize(checkpoint: Checkpoint, settings: Settings) -> str:
    if settings.preprocessing.size is None:
        return "as the image processor is set; padded for the model where it must be, and cut back"
    resample = PILImageResampling(checkpoint.processor.resample).name.lower()
    return f"shorter side, {resample}, then crops"


def ema_of(checkpoint: Checkpoint) -> str:
    """Whether the weights are a moving average: "yes", "no" or "unknown".

    Known of what `training.train_tokenizer` published (by results.json beside the weights, if it is of these weights),
    and of a converted checkpoint whose source had moving averages.
    """
    converted = checkpoint.config.converted_from
    if converted is not None:
        return "yes" if converted.get("weights") == "ema" else "unknown"
    weights, results = checkpoint.folder / "model.safetensors", checkpoint.folder / "results.json"
    try:
        content = json.loads(Path(results).read_text(encoding="utf-8"))
        decay = content["recipe"]["optimizer"]["ema_decay"]
        same = content["weights_sha256"] == sha256_of(weights)
    except (OSError, ValueError, LookupError, TypeError):
        return "unknown"
    return "unknown" if not same or not isinstance(decay, int | float) else ("yes" if decay else "no")
