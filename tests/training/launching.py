"""Trainers as processes of their own: started, killed, and what they leave compared."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.output import RunLog

ROOT = Path(__file__).parents[2]
TIMES = ("step_seconds", "pictures_per_second", "rows_per_second", "data_share", "seconds")


def launch(trainer: str, recipe: Path, *overrides: str, processes: int = 0) -> subprocess.Popen:
    """Starts `training.<trainer>`: by itself, or in so many processes."""
    command = [sys.executable, "-m"]
    if processes:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command += [f"training.{trainer}", "--config", str(recipe), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits for its end; returns what it said."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output.decode()[-3000:]
    return output.decode()


def kill_when(process: subprocess.Popen, happened: Any, number: int = signal.SIGKILL) -> None:
    """Sends a signal to all of the process's group as soon as something has happened."""
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None, process.communicate()[0].decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, number)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs of this process get a SIGTERM after so many steps."""
    step = RunLog.step

    def step_and_stop(log: RunLog) -> None:
        step(log)
        if log.bar.n == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "step", step_and_stop)


def rows(path: Path) -> list[dict[str, str]]:
    """A log without what depends on the time."""
    with path.open() as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path, *weights: str) -> None:
    """Both ended with the same bits in the files `weights` of `final/`, and with the same logs."""
    for name in weights:
        a, b = (load_file(run / "final" / name) for run in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
    for name in ("training.csv", "validation.csv"):
        assert rows(one / name) == rows(other / name)
