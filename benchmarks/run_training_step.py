"""Measures an optimizer step of the trainer; the command is `python -m benchmarks.run training_step`."""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import photographs
from benchmarks.markdown import reason_of
from benchmarks.results_file import write_result
from benchmarks.rounds import (
    Row,
    Worker,
    begin,
    check_machine,
    failed,
    gpu_rates,
    percentiles,
    result_name,
    time_in_turns,
)
from benchmarks.training_step import PARTS, SETTINGS, VARIANTS, Setting, compare, not_finite, protocol
from benchmarks.worker import Isolated

ANSWER_S = 3600  # to compile and to take three steps on a CPU is slow

Start = Callable[[str, int], Worker]


def _admit(worker: Worker, rows: dict[str, Row], setting: Setting) -> Row:
    """The row of a variant up to its timing: agrees with "step", and its memory; or the reason why it is not timed."""
    answer = worker.call("gate")
    if failed(answer):
        return answer
    values = answer["values"]
    expected = rows["step"].get("gate", {}).get("values") if rows else values
    if expected is None:
        return {"unavailable": "'step' has no losses to compare with"}
    gate = {"values": values}
    failures = not_finite(values)
    if not failures:
        gate["largest_error"], failures = compare(values, expected, setting.mixed_precision)
    if failures:
        return {"refused": "; ".join(failures), "gate": gate}
    return {**worker.call("prepare"), "gate": gate}


def admit_all(setting: Setting, variants: list[str], start: Start, result: Row) -> dict[str, Worker]:
    """Starts the variants at the first batch size that "step" has memory for; adds rows and that size to `result`.

    Returns:
        The workers that may be timed.
    """
    rows: dict[str, Row] = {}
    result |= {"variants": rows, "batch_sizes_out_of_memory": {}}
    workers: dict[str, Worker] = {}
    sizes = list(setting.batch_sizes)
    try:
        for variant in variants:
            worker = workers[variant] = start(variant, sizes[0])
            row = _admit(worker, rows, setting)
            while variant == "step" and "out_of_memory" in row and len(sizes) > 1:
                worker.close()
                result["batch_sizes_out_of_memory"][str(sizes.pop(0))] = row["out_of_memory"]
                worker = workers[variant] = start(variant, sizes[0])
                row = _admit(worker, rows, setting)
            rows[variant] = row
            if "peak_mib" not in row:
                workers.pop(variant).close()
    except BaseException:
        for worker in workers.values():
            worker.close()
        raise
    result["batch_size"] = sizes[0]
    return workers


def finish_rows(result: Row, rates: dict[str, float] | None, setting: Setting) -> None:
    """Turns times into seconds, and adds what follows from them: pictures and FLOP a second, ratios to "step"."""
    rows = result["variants"]
    total = result.get("flop", {}).get("total")
    for row in rows.values():
        if "ms" not in row:
            continue
        row["seconds"] = {name: value / 1000 for name, value in row.pop("ms").items()}
        median = row["seconds"]["p50"]
        row["pictures_per_s"] = result["batch_size"] / median
        if total is not None:
            row["tflop_per_s"] = total / median / 1e12
            if rates is not None:
                row["mfu"] = row["tflop_per_s"] / rates[_rate(setting)]
    base = rows["step"]
    for row in rows.values():
        if "seconds" in row and "seconds" in base:
            row["speed_against_step"] = base["seconds"]["p50"] / row["seconds"]["p50"]
            row["memory_against_step"] = row["peak_mib"] / base["peak_mib"] if base["peak_mib"] else None


def _rate(setting: Setting) -> str:
    """Which of the GPU's rates is the peak: plain products in the precision of the convolutions."""
    return "bf16_tflop_per_s" if setting.mixed_precision == "bf16" else "tf32_tflop_per_s"


def measure_parts(worker: Worker, setting: Setting) -> Row:
    """Seconds of each part and of the whole step, and shares of it; or why there are none."""
    timing = setting.part_timing
    times: dict[str, list[float]] = {}
    for _ in range(timing.rounds):
        answer = worker.call("parts")
        if failed(answer):
            return answer
        for name, measured in answer["ms"].items():
            times.setdefault(name, []).extend(measured)
        if sum(times["step"]) >= 1000 * timing.enough_s and len(times["step"]) >= timing.fewest:
            break
    seconds = {name: percentiles(measured)["p50"] / 1000 for name, measured in times.items()}
    step = seconds.pop("step")
    share = {name: seconds[name] / step for name in PARTS}
    return {
        "step_seconds": step,
        "seconds": seconds,
        "share": share,
        "outside_networks_share": 1 - share["networks"],
        "quantizer_and_bookkeeping_share": share["quantizer"] + share["bookkeeping"],
        "unexplained_share": 1 - sum(share.values()),
        "calls": len(times["step"]),
    }


def measure_data(start: Callable[[str], Worker], setting: Setting) -> Row:
    """What the loader delivers alone and in a loop, from files in a temporary folder; or why nothing is known."""
    from benchmarks.step_worker import write_photographs

    with tempfile.TemporaryDirectory() as folder:
        pictures = write_photographs(Path(folder), setting.sides)
        worker = start(folder)
        try:
            return {"pictures": pictures, "alone": worker.call("alone"), "loop": worker.call("loop")}
        finally:
            worker.close()


def run_training_step(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measures, writing the file after each stage; 1 where a variant was refused or 'step' did not run."""
    from benchmarks.step_worker import DataBench, StepBench  # with packages that the assignment op does without

    check_machine(arguments, parser)
    device, seed, name = (
        arguments.device,
        arguments.seed,
        result_name("training_step", arguments.device, arguments.quick),
    )
    setting = SETTINGS["quick" if arguments.quick else device]
    photographs.folder()  # where it fails, it should before anything is measured
    load, limit_bytes = begin(arguments)
    threads = torch.get_num_threads()
    result: Row = {"protocol": protocol(device, setting, limit_bytes), "setting": asdict(setting), "seed": seed}
    result["load_average"] = load
    rates = gpu_rates() if device == "cuda" else None
    if rates is not None:
        result["gpu_rates"] = rates

    def start(variant: str, batch_size: int) -> Worker:
        what = (variant, setting, batch_size, device, seed, threads, limit_bytes)
        return Isolated(StepBench, *what, answer_s=ANSWER_S)

    def start_data(folder: str) -> Worker:
        what = (folder, setting, result["batch_size"], device, seed, threads)
        return Isolated(DataBench, *what, answer_s=ANSWER_S, parent=True)

    chosen = [variant for variant in VARIANTS if variant == "step" or variant in (arguments.variant or VARIANTS)]
    workers = admit_all(setting, chosen, start, result)
    try:
        time_in_turns(workers, result["variants"], setting.timing)
        for variant in [variant for variant in workers if variant != "step"]:
            workers.pop(variant).close()  # what they hold would be missing from here on
        if "step" in workers:
            result["flop"] = workers["step"].call("flop")
        finish_rows(result, rates, setting)
        _write_and_say(name, result, arguments.output, *(line(*row) for row in result["variants"].items()))
        if "step" in workers:
            result["parts"] = measure_parts(workers["step"], setting)
            _write_and_say(name, result, arguments.output, parts_line(result["parts"]))
    finally:
        for worker in workers.values():
            worker.close()
    if "seconds" in result["variants"]["step"]:
        result["data"] = measure_data(start_data, setting)
        _write_and_say(name, result, arguments.output, data_line(result["data"]))
    print(write_result(name, result, arguments.output))
    rows = result["variants"]
    return int("seconds" not in rows["step"] or any("refused" in row for row in rows.values()))


def _write_and_say(name: str, result: Row, folder: Path, *lines: str) -> None:
    write_result(name, result, folder)
    for text in lines:
        print(text, flush=True)


def line(variant: str, row: Row) -> str:
    """A variant's row for the terminal."""
    if (reason := reason_of(row)) is not None:
        return f"{variant:14} {reason}"
    figures = f"{row['seconds']['p50']:9.3f} s {row['pictures_per_s']:8.2f} pictures/s {row['peak_mib']:9.1f} MiB"
    return f"{variant:14} {figures}   {row['speed_against_step']:.2f}x step"


def parts_line(parts: Row) -> str:
    """The parts for the terminal."""
    if (reason := reason_of(parts)) is not None:
        return f"{'parts':14} {reason}"
    shares = {**parts["share"], "unexplained": parts["unexplained_share"]}
    return f"{'parts':14} " + "  ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items())


def data_line(data: dict[str, Any]) -> str:
    """The loader for the terminal."""
    texts = []
    for name, answer in (("alone", data["alone"]), ("loop", data["loop"])):
        reason = reason_of(answer)
        figures = {key: value for key, value in answer.items() if reason is None}
        texts.append(f"{name}: {reason or figures}")
    return f"{'data':14} " + "  ".join(texts)
