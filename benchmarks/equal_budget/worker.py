"""Trains and evaluates one run, in this process.

    python -m benchmarks.equal_budget.worker FOLDER

FOLDER holds the task and the recipe; the result is written into it at the end, whole.
"""

import ctypes
import fcntl
import json
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.equal_budget.carry_out import RECIPE, RESULT, TASK
from benchmarks.equal_budget.evaluate import evaluate, validated
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.files import atomic_file
from lgq_hf.provenance import provenance
from training import train_tokenizer
from training.output import read_csv
from training.results import finite_json

POINTS = 60  # of a curve
_PR_SET_PDEATHSIG = 1


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


def end_with_parent() -> None:
    """Sends this process SIGTERM when its parent ends, at which training writes a checkpoint (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
