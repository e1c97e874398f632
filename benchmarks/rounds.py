"""What the commands share: workers that take turns, and what is asked of the machine before anything is measured."""

import argparse
import os
import re
import sys
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks import memory
from benchmarks.timed import Rates, Timing
from benchmarks.worker import Isolated
from lgq_hf.provenance import provenance

Row = dict[str, Any]


class Worker(Protocol):
    """[`benchmarks.worker.Isolated`] or `Local`."""

    def call(self, name: str) -> Row:
        """What the method of that name answers."""

    def close(self) -> None:
        """Ends it."""


def failed(answer: Row) -> bool:
    """Whether an answer is a [`benchmarks.worker.failure`]."""
    return "unavailable" in answer or "out_of_memory" in answer


def percentiles(times: list[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    return dict(zip(("p20", "p50", "p80"), map(float, np.percentile(times, (20, 50, 80))), strict=True))


def time_in_turns(workers: dict[str, Worker], rows: dict[str, Row], timing: Timing) -> None:
    """Rounds of all workers in turn, so that what else the machine does meets all alike; adds the times to `rows`."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(timing.rounds):
        for name in list(workers):
            done = times[name]
            if sum(done) >= 1000 * timing.enough_s and len(done) >= timing.fewest:
                continue
            answer = workers[name].call("round")
            if failed(answer):
                rows[name] = answer
                workers.pop(name).close()
            else:
                done += answer["ms"]
    for name in workers:
        rows[name]["ms"] = percentiles(times[name])
        rows[name]["calls"] = len(times[name])


def gpu_rates() -> dict[str, float]:
    """What the GPU itself can do, see [`benchmarks.timed.Rates`].

    Raises:
        RuntimeError: where that cannot be measured.
    """
    worker = Isolated(Rates)
    rates = worker.call("rates")
    worker.close()
    if failed(rates):
        raise RuntimeError(f"could not measure the GPU's own rates: {rates}")
    print("  ".join(f"{name} {value:.1f}" for name, value in rates.items()), flush=True)
    return rates


def result_name(what: str, device: str, quick: bool) -> str:
    """<what>_cpu or <what>_cuda_<GPU>; quick runs have a name that nothing renders."""
    where = device
    if device == "cuda":
        where += "_" + re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"quick_{what}_{where}" if quick else f"{what}_{where}"


def check_machine(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuses a GPU that is not there, and kernels that would be interpreted."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; run on a machine with one, or with --device cpu")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, so kernels would be interpreted: unset it to measure them")


def begin(arguments: argparse.Namespace) -> tuple[float, int | None]:
    """Sets the threads; returns the load of the machine, of which it warns, and by how much a process may grow."""
    limit_bytes = None
    if arguments.device == "cpu":
        gib = arguments.memory_gib
        limit_bytes = int(gib * 2**30) if gib is not None else memory.available_bytes() * 3 // 4
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    provenance()  # where it fails, it should before anything is measured
    load = os.getloadavg()[0]
    if load > 0.5:
        print(
            f"this machine is busy (load average {load:.1f}): times will be too long, those of several threads most",
            file=sys.stderr,
        )
    return load, limit_bytes
