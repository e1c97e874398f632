"""Measures the assignment op against what it replaces, and writes benchmarks/results/assignment_*.json.

    python -m benchmarks.run assignment [--device cpu|cuda] [--quick] [--only CASE ...]

Exits with status 1 where a provider was refused: its results are wrong, and it is not timed.
"""

import argparse
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks import memory
from benchmarks.assignment import CASES, EAGER, GATE_PROTOCOL, PROVIDERS, Case, temperature
from benchmarks.results_file import RESULTS, write_result
from lgq_hf.provenance import provenance
from benchmarks.worker import TIMING, Bench, Isolated, Rates, Timing

Row = dict[str, Any]


class Worker(Protocol):
    """[`benchmarks.worker.Isolated`] or `Local`."""

    def call(self, name: str) -> Row:
        """What the method of that name answers."""

    def close(self) -> None:
        """Ends it."""


def _failed(answer: Row) -> bool:
    return "unavailable" in answer or "out_of_memory" in answer


def _admit(worker: Worker) -> Row:
    """The row of a provider up to its timing: passed the gate and measured its memory, or the reason why not."""
    gate = worker.call("gate")
    if _failed(gate):
        return gate
    failures = gate.pop("failures")
    if failures:
        return {"refused": "; ".join(failures), "gate": gate}
    return {**worker.call("prepare"), "gate": gate}


def _time(workers: dict[str, Worker], rows: dict[str, Row], timing: Timing) -> None:
    """Rounds of all workers in turn, so that what else the machine does meets all alike; adds the times to `rows`."""
    times: dict[str, list[float]] = {provider: [] for provider in workers}
    for _ in range(timing.rounds):
        for provider in list(workers):
            done = times[provider]
            if sum(done) >= 1000 * timing.enough_s and len(done) >= timing.fewest:
                continue
            answer = workers[provider].call("round")
            if _failed(answer):
                rows[provider] = answer
                workers.pop(provider).close()
            else:
                done += answer["ms"]
    for provider in workers:
        percentiles = np.percentile(times[provider], (20, 50, 80))
        rows[provider]["ms"] = dict(zip(("p20", "p50", "p80"), map(float, percentiles), strict=True))
        rows[provider]["calls"] = len(times[provider])


def measure_case(case: Case, providers: Iterable[str], start: Callable[[Case, str], Worker], timing: Timing) -> Row:
    """Shape and precision of the case, and a row of each provider: its figures, or why there are none."""
    rows: dict[str, Row] = {}
    workers: dict[str, Worker] = {}
    try:
        for provider in providers:
            worker = workers[provider] = start(case, provider)
            rows[provider] = _admit(worker)
            if "peak_mib" not in rows[provider]:
                workers.pop(provider).close()
        _time(workers, rows, timing)
    finally:
        for worker in workers.values():
            worker.close()
    for name, other in {"reference": "reference", "eager": EAGER[case.op]}.items():
        base = rows.get(other, {}).get("ms")
        for row in rows.values():
            if "ms" in row:
                row[f"speed_against_{name}"] = base["p50"] / row["ms"]["p50"] if base else None
    return {**asdict(case), "providers": rows}


def add_products(measured: Row, case: Case, rates: dict[str, float]) -> None:
    """Adds the time of the matrix products alone at the GPU's own rate, and each provider's ratio to it."""
    if case.flop is None:
        return
    measured["products_ms"] = case.flop / rates[f"{case.precision}_tflop_per_s"] / 1e9
    for row in measured["providers"].values():
        if "ms" in row:
            row["ratio_to_products"] = row["ms"]["p50"] / measured["products_ms"]


def _line(case: Case, provider: str, row: Row) -> str:
    head = f"{case.name:20} {provider:26}"
    for reason in ("refused", "out_of_memory", "unavailable"):
        if reason in row:
            return f"{head} {reason.replace('_', ' ')}: {row[reason]}"
    speeds = {name: row[f"speed_against_{name}"] for name in ("reference", "eager")}
    ratios = "  ".join(f"{speed:.2f}x {name}" for name, speed in speeds.items() if speed is not None)
    return f"{head} {row['ms']['p50']:10.3f} ms {row['peak_mib']:10.1f} MiB   {ratios}"


def protocol(device: str, timing: Timing, cases: Iterable[Case], limit_bytes: int | None) -> dict[str, Any]:
    """How the figures of a result file came about."""
    return {
        "inputs": "normal latents and codes; random gradients of soft codes, peak and usage",
        "distance": "sq_l2",
        "temperature": {case.name: temperature(case) for case in cases if case.op == "soft_assign"},
        "gate": GATE_PROTOCOL,
        "time": "forward and backward (soft_assign) or the index (nearest_code); milliseconds a call; a process for "
        "each provider, rounds of the providers alternate"
        + ("; between CUDA events, calls issued one behind the other" if device == "cuda" else ""),
        "rounds": asdict(timing),
        "memory": memory.method(device),
        "memory_limit_gib": None if limit_bytes is None else limit_bytes / 2**30,
    }


def result_name(device: str, quick: bool) -> str:
    """assignment_cpu or assignment_cuda_<GPU>; quick runs have a name that nothing renders."""
    where = device
    if device == "cuda":
        where += "_" + re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"quick_assignment_{where}" if quick else f"assignment_{where}"


def _choose(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[list[Case], list[str]]:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; run on a machine with one, or with --device cpu")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, so kernels would be interpreted: unset it to measure them")
    cases = CASES["quick" if arguments.quick else arguments.device]
    names = [case.name for case in cases]
    if unknown := set(arguments.only or ()) - set(names):
        parser.error(f"--only: no case {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    known = list(dict.fromkeys(name for providers in PROVIDERS.values() for name in providers))
    if unknown := set(arguments.provider or ()) - set(known):
        parser.error(f"--provider: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [case for case in cases if case.name in (arguments.only or names)]
    return chosen, arguments.provider or known


def run_assignment(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measures the chosen cases, writing the file after each; 1 where a provider was refused."""
    cases, chosen = _choose(arguments, parser)
    device = arguments.device
    timing = TIMING["quick" if arguments.quick else device]
    limit_bytes = None
    if device == "cpu":
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
    result: Row = {"protocol": protocol(device, timing, cases, limit_bytes), "seed": arguments.seed}
    result |= {"load_average": load, "cases": {}}
    name = result_name(device, arguments.quick)
    if device == "cuda":
        result["gpu_rates"] = rates = _rates()
    settings = (device, arguments.seed, timing, torch.get_num_threads(), limit_bytes)
    for case in cases:
        providers = [provider for provider in PROVIDERS[case.op] if provider in chosen]
        measured = measure_case(case, providers, lambda *what: Isolated(Bench, *what, *settings), timing)
        if device == "cuda":
            add_products(measured, case, rates)
        result["cases"][case.name] = measured
        path = write_result(name, result, arguments.output)
        for provider, row in measured["providers"].items():
            print(_line(case, provider, row), flush=True)
    print(path)
    rows = (row for measured in result["cases"].values() for row in measured["providers"].values())
    return int(any("refused" in row for row in rows))


def _rates() -> dict[str, float]:
    worker = Isolated(Rates)
    rates = worker.call("rates")
    worker.close()
    if _failed(rates):
        raise RuntimeError(f"could not measure the GPU's own rates: {rates}")
    print("  ".join(f"{name} {value:.1f}" for name, value in rates.items()), flush=True)
    return rates


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["assignment"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that everything works")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="these cases; the file then holds no others")
    parser.add_argument("--provider", nargs="+", metavar="PROVIDER", help="these providers alone")
    parser.add_argument(
        "--threads", type=int, help="of the CPU; one is measurable on a busy machine too (torch's default)"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of the inputs; drawn if not given")
    parser.add_argument(
        "--memory-gib", type=float, help="by which a process may grow on the CPU (3/4 of what is free)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    return run_assignment(parser.parse_args(arguments), parser)


if __name__ == "__main__":
    sys.exit(main())
