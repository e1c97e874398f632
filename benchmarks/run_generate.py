"""Measures generators; the command is `python -m benchmarks.run generate`."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import memory
from benchmarks.generate import SETTINGS, STEPS, VARIANTS, AutoregressiveBench, MaskedBench, Setting, protocol
from benchmarks.markdown import reason_of
from benchmarks.results_file import write_result
from benchmarks.rounds import Row, Worker, begin, check_machine, failed, result_name, time_in_turns
from benchmarks.worker import Isolated

ANSWER_S = 1800  # to compile on a CPU is slow


def admit(worker: Worker) -> Row:
    """The row of a way of decoding up to its timing: passed the gate, and its memory; or why it is not timed."""
    gate = worker.call("gate")
    if failed(gate):
        return gate
    if failures := gate.pop("failures"):
        return {"refused": "; ".join(failures), "gate": gate}
    return {**worker.call("prepare"), "gate": gate}


def measure(names: list[str], start: Callable[[str], Worker], setting: Setting) -> dict[str, Row]:
    """A row for each name: seconds of a batch, pictures a second, memory."""
    rows: dict[str, Row] = {}
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            worker = workers[name] = start(name)
            rows[name] = admit(worker)
            if "peak_mib" not in rows[name]:
                workers.pop(name).close()
        time_in_turns(workers, rows, setting.timing)
    finally:
        for worker in workers.values():
            worker.close()
    for row in rows.values():
        if "ms" in row:
            row["seconds"] = {name: value / 1000 for name, value in row.pop("ms").items()}
            row["pictures_per_s"] = setting.batch / row["seconds"]["p50"]
    return rows


def compare(rows: dict[str, Row]) -> None:
    """Adds each row's speed and memory against the first one's."""
    base = rows[next(iter(VARIANTS))]
    for row in rows.values():
        if "seconds" in row and "seconds" in base:
            row["speed_against_generate"] = base["seconds"]["p50"] / row["seconds"]["p50"]
            row["memory_against_generate"] = row["peak_mib"] / base["peak_mib"] if base["peak_mib"] else None


def _line(name: str, row: Row) -> str:
    reason = reason_of(row)
    if reason is not None:
        return f"{name:20} {reason}"
    speed = f"{row['speed_against_generate']:.2f}x generate" if "speed_against_generate" in row else ""
    return f"{name:20} {row['pictures_per_s']:9.3f} pictures/s {row['peak_mib']:9.1f} MiB   {speed}"


def run_generate(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measures both kinds and writes the file after each; 1 where something was refused."""
    check_machine(arguments, parser)
    device, quick = arguments.device, arguments.quick
    setting = SETTINGS["quick" if quick else device]
    load, limit_bytes = begin(arguments)
    result: Row = {"protocol": {**protocol(setting), "memory": memory.method(device)}, "seed": arguments.seed}
    result["load_average"] = load
    settings: tuple[Any, ...] = (setting, device, arguments.seed, torch.get_num_threads(), limit_bytes)
    chosen = [name for name in VARIANTS if name in (arguments.variant or VARIANTS) or name == "generate"]
    result["autoregressive"] = measure(
        chosen, lambda name: Isolated(AutoregressiveBench, name, *settings, answer_s=ANSWER_S), setting
    )
    compare(result["autoregressive"])
    name = result_name("generate", device, quick)
    path = write_result(name, result, arguments.output)
    result["masked"] = measure(
        [str(steps) for steps in STEPS],
        lambda steps: Isolated(MaskedBench, int(steps), *settings, answer_s=ANSWER_S),
        setting,
    )
    path = write_result(name, result, arguments.output)
    for kind in ("autoregressive", "masked"):
        for what, row in result[kind].items():
            print(_line(what if kind == "autoregressive" else f"masked, {what} steps", row), flush=True)
    print(path)
    return int(any("refused" in row for kind in ("autoregressive", "masked") for row in result[kind].values()))


__all__ = ["compare", "measure", "run_generate"]
