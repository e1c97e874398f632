"""Measures one thing, and writes benchmarks/results/<thing>_<device>.json.

    python -m benchmarks.run assignment [--device cpu|cuda] [--quick] [--only CASE ...] [--provider PROVIDER ...]
    python -m benchmarks.run training_step [--device cpu|cuda] [--quick] [--variant VARIANT ...]
    python -m benchmarks.run tokenize [--device cpu|cuda] [--quick]
    python -m benchmarks.run generate [--device cpu|cuda] [--quick] [--variant VARIANT ...]

assignment: the assignment op against what it replaces. training_step: an optimizer step of the trainer, where its time
goes, and what the loader delivers. tokenize: JPEGs to token shards, against the encoder and the JPEG decoder alone,
one process against two, memory, and bytes a token. generate: pictures by token after token against transformers'
`generate()`, and in masked steps. Exits with status 1 where something was refused: its results are
wrong, and it is not timed.
"""

import argparse
import secrets
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.assignment import CASES, EAGER, GATE_PROTOCOL, PROVIDERS, Case, temperature
from benchmarks.generate import VARIANTS as DECODERS
from benchmarks.results_file import RESULTS, write_result
from benchmarks.rounds import Row, Worker, begin, check_machine, failed, gpu_rates, result_name, time_in_turns
from benchmarks.run_generate import run_generate
from benchmarks.run_tokenize import run_tokenize
from benchmarks.run_training_step import run_training_step
from benchmarks.timed import Timing
from benchmarks.training_step import VARIANTS
from benchmarks.worker import TIMING, Bench, Isolated


def _admit(worker: Worker) -> Row:
    """The row of a provider up to its timing: passed the gate and measured its memory, or the reason why not."""
    gate = worker.call("gate")
    if failed(gate):
        return gate
    failures = gate.pop("failures")
    if failures:
        return {"refused": "; ".join(failures), "gate": gate}
    return {**worker.call("prepare"), "gate": gate}


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
        time_in_turns(workers, rows, timing)
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


def _choose(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[list[Case], list[str]]:
    check_machine(arguments, parser)
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
    load, limit_bytes = begin(arguments)
    result: Row = {"protocol": protocol(device, timing, cases, limit_bytes), "seed": arguments.seed}
    result |= {"load_average": load, "cases": {}}
    name = result_name("assignment", device, arguments.quick)
    if device == "cuda":
        result["gpu_rates"] = rates = gpu_rates()
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


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command's, and that of each thing that it measures."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    common.add_argument("--quick", action="store_true", help="small shapes, to see that everything works")
    common.add_argument(
        "--threads", type=int, help="of the CPU; one is measurable on a busy machine too (torch's default)"
    )
    common.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of the inputs; drawn if not given")
    common.add_argument(
        "--memory-gib", type=float, help="by which a process may grow on the CPU (3/4 of what is free)"
    )
    common.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    things = parser.add_subparsers(dest="what", required=True)
    assignment = things.add_parser("assignment", parents=[common], help="the assignment op")
    assignment.add_argument("--only", nargs="+", metavar="CASE", help="these cases; the file then holds no others")
    assignment.add_argument("--provider", nargs="+", metavar="PROVIDER", help="these providers alone")
    step = things.add_parser("training_step", parents=[common], help="an optimizer step of the trainer")
    step.add_argument("--variant", nargs="+", choices=list(VARIANTS), help="these beside 'step' alone")
    whole = things.add_parser("tokenize", parents=[common], help="JPEGs to token shards")
    generate = things.add_parser("generate", parents=[common], help="generators: pictures a second")
    generate.add_argument("--variant", nargs="+", choices=list(DECODERS), help="these beside 'generate' alone")
    return parser, {"assignment": assignment, "training_step": step, "tokenize": whole, "generate": generate}


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser, parsers = _parser()
    chosen = parser.parse_args(arguments)
    run = {
        "assignment": run_assignment,
        "training_step": run_training_step,
        "tokenize": run_tokenize,
        "generate": run_generate,
    }[chosen.what]
    return run(chosen, parsers[chosen.what])


if __name__ == "__main__":
    sys.exit(main())
