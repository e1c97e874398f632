"""Workers outlive a SIGTERM to their group as long as they are needed, and no longer than their process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal, sys, time
from lgq_hf import LGQImageProcessor
from training.crops import scaled_crop
from training.loader import training_batches
from training.pictures import open_source

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
pictures = open_source("corpus", sys.argv[1], "train")
mode = sys.argv[2]

def crop(picture, rng):
    if mode == "crop fails":
        raise RuntimeError("in a worker")
    return scaled_crop(picture, rng, size=64)

batches = training_batches(pictures, crop, LGQImageProcessor(), batch_size=16, seed=0, num_workers=2)
next(batches)
print("ready", flush=True)
while not told:
    time.sleep(0.05)
for _ in range(20):  # more than was read ahead
    next(batches)
print("saved", flush=True)
if mode == "end fails":
    raise RuntimeError("with its workers alive")
"""


def alive(group: int) -> list[int]:
    """Processes of a group that run; those that ended and nobody waited for are left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, in_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(in_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def start(corpus: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the program above as a group of its own; what is left of it in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(mode: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(corpus), mode]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe, start_new_session=True)
        started.append(process)
        return process

    yield run
    for process in started:
        for pid in alive(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_signals_to_the_group_and_to_the_process(start: Callable[[str], subprocess.Popen[str]]) -> None:
    told, failing, killed = (start(mode) for mode in ("end", "end fails", "is killed"))
    for process in (told, failing, killed):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert len(alive(process.pid)) == 3
    os.killpg(told.pid, signal.SIGTERM)
    os.killpg(failing.pid, signal.SIGTERM)
    os.kill(killed.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    for process, status, words in ((told, 0, ""), (failing, 1, "RuntimeError: with its workers alive\n")):
        output, errors = process.communicate(timeout=30)
        assert (output, process.returncode) == ("saved\n", status), errors
        assert errors.endswith(words)
        assert alive(process.pid) == []
    while alive(killed.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive(killed.pid) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_an_error_in_a_worker_ends_the_process(start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start("crop fails")
    output, errors = process.communicate(timeout=60)  # the traceback holds the iterator until the end
    assert (output, process.returncode) == ("", 1)
    assert errors.endswith("RuntimeError: in a worker\n\n")
    assert alive(process.pid) == []
