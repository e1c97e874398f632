"""How much of a run's error is a wrong mean colour of a crop, and how large the rest is.

An error e of a crop is its mean over the pixels, which has three components along `AXES`, and the rest:
MSE = sum_axes (mean e . axis)^2 / 3 + mean (e - mean e)^2. Whether a small network finds an axis of colour at all
within few steps depends on the seed too, which says nothing of its quantizer.

Shapes: B crops, H W pixels.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.equal_budget.carry_out import finished_result
from benchmarks.equal_budget.collect import COLOURS, finished_runs
from benchmarks.equal_budget.crops import read_manifest
from benchmarks.equal_budget.geometry import batches
from benchmarks.equal_budget.runs import TUNE
from benchmarks.equal_budget.scales import Scale
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.files import atomic_file
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.provenance import provenance
from lgq_hf.tokens.encoding import Encoder, Encoding

AXES = {"grey": (1.0, 1.0, 1.0), "green_magenta": (1.0, -2.0, 1.0), "red_blue": (1.0, 0.0, -1.0)}
REST = "rest"


def split(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """The squared error of each crop in parts that add up to its MSE.

    Args:
        originals: (B,3,H,W) uint8.
        reconstructions: (B,3,H,W) uint8.

    Returns:
        (B,) float64, for values in [0, 1]: those of the mean colour by the names of `AXES`, and `REST`.
    """
    error = (reconstructions.double() - originals.double()) / 255
    mean = error.mean((2, 3))
    axes = torch.nn.functional.normalize(torch.tensor(list(AXES.values()), dtype=torch.float64), dim=1).to(mean.device)
    parts = dict(zip(AXES, (mean @ axes.T).square().div(3).unbind(1), strict=True))
    return {**parts, REST: (error - mean[:, :, None, None]).square().mean((1, 2, 3))}


@torch.inference_mode()
def measure(model: Path, crops: Path) -> dict[str, Any]:
    """Of a published model, on all test crops: `psnr_matched`, in dB, the mean over crops of 10 log10(1 / rest), what
    PSNR would be if every crop had its mean colour; and `shares`, of all crops' squared error, by axis.

    Raises:
        ValueError: a crop that is right but for its mean colour, so that its `psnr_matched` is infinite.
    """
    checkpoint = load_checkpoint(str(model))
    source = open_source(str(crops), kind="parquet", split="test", image_column="image", id_column="id")
    encoder = Encoder(checkpoint, Encoding())
    preprocessing = Preprocessing(size=read_manifest(crops)["settings"]["size"])
    found: list[dict[str, Tensor]] = []
    for _, pixels in batches(checkpoint, source, None, preprocessing):
        decoded = checkpoint.model(encoder.pixel_values(pixels)).decoded_pixel_values
        pictures = torch.stack(checkpoint.processor.postprocess(decoded, output_type="pt"))
        found.append(split(pixels.to(pictures.device), (pictures * 255).round().to(torch.uint8)))
    parts = {name: torch.cat([one[name] for one in found]) for name in (*AXES, REST)}
    if not bool((parts[REST] > 0).all()):
        raise ValueError(f"{model}: a crop is right but for its mean colour; its PSNR without that is infinite")
    total = torch.stack(list(parts.values())).sum()
    return {
        "psnr_matched": float(-10 * parts[REST].log10().mean()),
        "shares": {name: float(parts[name].sum() / total) for name in AXES},
        "crops": len(parts[REST]),
        "weights_sha256": checkpoint.fingerprint,
    }


def measure_runs(scale: Scale, place: Path) -> int:
    """Measures the finished runs of all stages but the tuning, into a file in each one's folder; returns how many.

    One that was measured is not measured again.
    """
    count = 0
    for run in finished_runs(scale, place):
        result = finished_result(run, place) or {}
        file = place / run.name / COLOURS
        if run.stage == TUNE or "failed" in result or file.is_file():
            continue
        measured = measure(place / run.name / "final", place / "crops")
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps({**measured, **provenance(strict=False)}, indent=1) + "\n")
        print(f"{run.name}: PSNR with mean colours matched {measured['psnr_matched']:.2f} dB", flush=True)
        count += 1
    return count
