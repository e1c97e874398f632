"""Trains and evaluates one run, in this process.

    python -m benchmarks.equal_budget.worker FOLDER

FOLDER holds the task and the recipe; the result is written into it at the end, whole.
"""

import fcntl
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.equal_budget.carry_out import RECIPE, RESULT, TASK
from benchmarks.equal_budget.crops import read_manifest
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.files import atomic_file
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import EfficientNetDistance
from lgq_hf.provenance import provenance
from training import train_tokenizer
from training.output import read_csv
from training.results import finite_json

POINTS = 60  # of a curve
BATCH = 64


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 also for a run that diverged, as its result says so."""
    (place,) = sys.argv[1:] if arguments is None else arguments
    folder = Path(place)
    with _alone(folder):
        result = carried_out(folder, json.loads((folder / TASK).read_text()))
        with atomic_file(folder / RESULT) as temporary:
            temporary.write_text(json.dumps(finite_json(result), indent=1) + "\n")
        for leftover in [*folder.glob("checkpoint-*"), folder / "best", folder / "samples"]:
            shutil.rmtree(leftover, ignore_errors=True)
    return 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process is at this run.

    Raises:
        RuntimeError: one is.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another process is at the run in {folder}: let it end, or stop it") from error
        yield


def carried_out(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The task with what came of it: either `failed`, or metrics, curves and cost."""
    try:
        train_tokenizer.main(["--config", str(folder / RECIPE)])
    except FloatingPointError as error:  # it diverged: a property of the method, not of this machine
        return {**task, **provenance(strict=False), "failed": str(error).partition(";")[0]}
    memory, memory_of = peak_memory()
    final = folder / "final"
    trained = json.loads((final / "results.json").read_text())
    last = trained["last_row"]
    model = load_checkpoint(str(final), "cpu").model
    return {
        **task,
        **{name: trained[name] for name in ("commit", "versions", "hardware")},
        **(validated(trained) if task["evaluated_on"] == "validation" else evaluate(final, folder.parent)),
        "curve": curve(folder),
        "validation": trained["validation"],
        "seconds": last["seconds"],
        "pictures_per_second": trained["steps"] * trained["recipe"]["batch_size"] / last["seconds"],
        "peak_mib": memory,
        "peak_of": memory_of,
        "parameters": {
            "all": sum(parameter.numel() for parameter in model.parameters()),
            "quantizer": sum(parameter.numel() for parameter in model.quantizer.parameters()),
        },
    }


def peak_memory() -> tuple[float, str]:
    """In MiB, of what training needed most of: tensors on a GPU, or else the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20, "tensors on the GPU"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "process"  # KiB on Linux


def curve(folder: Path) -> dict[str, list[float]]:
    """Step and loss of at most `POINTS` rows of the training log, the last one among them."""
    rows = read_csv(folder / "training.csv")
    every = -(-len(rows) // POINTS)
    kept = rows[::-1][::every][::-1]
    return {name: [float(f"{row[name]:.5g}") for row in kept] for name in ("step", "loss")}


def evaluate(model: Path, place: Path, device: str = "auto") -> dict[str, Any]:
    """Everything, on the test crops.

    Args:
        model: folder of a published model.
        place: of the scale, with its crops.
        device: "auto", or one of torch's.
    """
    checkpoint = load_checkpoint(str(model), device)
    source = open_source(str(place / "crops"), kind="parquet", split="test", image_column="image", id_column="id")
    size = read_manifest(place / "crops")["settings"]["size"]
    network = EfficientNetLite0().to(checkpoint.device)
    settings = Settings(preprocessing=Preprocessing(size=size), batch_size=BATCH)
    distance = EfficientNetDistance().to(checkpoint.device)
    result = evaluate_tokenizer(checkpoint, source, settings, network, perceptual=distance, classifier=network)
    protocol = {name: value for name, value in result["protocol"].items() if name not in ("source", "failed")}
    counts = sorted((count for count in result["codebook_counts"] if count), reverse=True)
    return {"metrics": result["metrics"], "protocol": protocol, "codebook_counts": counts}


def validated(trained: dict[str, Any]) -> dict[str, Any]:
    """What the trainer measured last, on the validation crops, of the averaged weights."""
    last, codes = trained["validation"][-1], trained["model"]["codebook_size"]
    names = ("psnr", "ssim", "perplexity", "tokens", "pictures")
    used = {"codes_used": codes - int(last["dead_codes"]), "share_used": last["codebook_usage"]}
    return {"metrics": {**{name: last[name] for name in names}, **used}, "protocol": trained["protocol"]}


if __name__ == "__main__":
    sys.exit(main())
