"""Carries runs out, each in a process of its own, several at once; what is finished is not done again."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError

from benchmarks.equal_budget.crops import fingerprint, read_manifest
from benchmarks.equal_budget.plan import setting_overrides
from benchmarks.equal_budget.runs import TUNE, Run, effect, identity, start_folder
from benchmarks.equal_budget.scales import Scale
from lgq_hf import LGQConfig, LGQModel
from lgq_hf.files import atomic_file, atomic_folder
from training.recipe import NONE

ROOT = Path(__file__).parents[2]
RESULT, TASK, RECIPE, LOG = "result.json", "task.json", "recipe.yaml", "log.txt"


class Interrupted(Exception):
    """Some runs have no result; the message names them, with the last lines of their logs."""


def task_of(run: Run, place: Path) -> dict[str, Any]:
    """What a run is, without the places of this machine."""
    return {
        "name": run.name,
        "stage": run.stage,
        "method": run.method,
        "setting": run.setting,
        "chosen": setting_overrides(run.method, run.codes, run.setting),
        "codes": run.codes,
        "seed": run.seed,
        "arm": None if run.arm is None else run.arm.name,
        "overrides": run.overrides(),
        "recipe": identity(run.recipe(place)),
        "crops": fingerprint(read_manifest(place / "crops")),
        "evaluated_on": "validation" if run.stage == TUNE else "test",
    }


def read_result(run: Run, place: Path) -> dict[str, Any] | None:
    """What lies in a run's folder as its result, of whatever recipe; `None` where nothing does."""
    path = place / run.name / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def finished_result(run: Run, place: Path) -> dict[str, Any] | None:
    """The result of a run; `None` where it has none yet.

    Raises:
        ValueError: it has one, of another recipe or of other crops.
    """
    result = read_result(run, place)
    if result is None:
        return None
    task = json.loads(json.dumps(task_of(run, place)))
    try:
        differ = differences(effect(result["recipe"]), effect(task["recipe"]))
    except (ValueError, StrictDataclassError) as error:
        differ = [f"its recipe is of another version ({error})"]
    if result["crops"] != task["crops"]:
        differ.append("the crops are others")
    if differ:
        raise ValueError(
            f"{place / run.name} holds the result of another run than would be made now: {'; '.join(differ)}. Remove "
            "that folder, or give another by --work"
        )
    return result


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two nested recipes differ, in words."""
    found = []
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} was {old!r}, is {new!r}")
    return found


def make_start(scale: Scale, place: Path, seed: int) -> None:
    """Writes the encoder and decoder of a seed, once; its codebook has a shape that no run's has."""
    folder = start_folder(place, seed)
    if folder.is_dir():
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LGQModel(LGQConfig(**{**scale.recipe["model"], "codebook_size": 2}))
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)


def carry_out(runs: Sequence[Run], place: Path, jobs: int) -> list[str]:
    """Carries out the runs that have no result, `jobs` at once; returns the names of those that failed.

    A run that diverges has a result that says so, and counts as failed. One that was killed goes on from its last
    checkpoint when it is carried out again.

    Raises:
        ValueError: results of other recipes are there.
        Interrupted: processes that ended without a result; the other runs were carried out.
    """
    waiting = [run for run in runs if finished_result(run, place) is None]
    for run in waiting:
        make_start(run.scale, place, run.seed)
        prepare(run, place)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        ended = list(pool.map(lambda run: _process(place / run.name, threads), waiting))
    if lost := [f"{run.name}: {reason}" for run, reason in zip(waiting, ended, strict=True) if reason]:
        raise Interrupted("\n".join(["these runs ended without a result:", *lost]))
    return [run.name for run in runs if "failed" in (read_result(run, place) or {})]


def prepare(run: Run, place: Path) -> None:
    """Writes a run's task and recipe into its folder."""
    folder = place / run.name
    for name, text in (
        (TASK, json.dumps(task_of(run, place), indent=1)),
        (RECIPE, yaml.safe_dump({"preset": NONE, **run.recipe(place)}, sort_keys=False)),
    ):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text + "\n")


def _process(folder: Path, threads: int) -> str | None:
    """Trains and evaluates in a process; why it ended without a result, or `None`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.equal_budget.worker", str(folder)]
    print(f"begins: {folder.name}", flush=True)
    with (folder / LOG).open("ab") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if (folder / RESULT).is_file():
        result = json.loads((folder / RESULT).read_text())
        said = result.get("failed") or ", ".join(f"{k} {result['metrics'][k]:.4g}" for k in ("psnr", "codes_used"))
        print(f"done: {folder.name}: {said}", flush=True)
        return None
    last = (folder / LOG).read_text(errors="replace").strip().splitlines()[-1:]
    return f"status {code}; {folder / LOG} ends with: {' '.join(last)}"
