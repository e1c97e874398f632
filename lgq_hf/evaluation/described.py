"""What a result says beside its numbers: which model, and all that must be equal where numbers are compared."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers.image_utils import PILImageResampling

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.processes import Processes
from lgq_hf.evaluation.settings import Settings
from lgq_hf.evaluation.totals import Totals, described_sizes
from lgq_hf.images.sources import ImageSource
from lgq_hf.metrics.frozen import sha256_of

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


__all__ = ["describe_model", "describe_protocol", "ema_of"]
