"""Markdown of results/training_step_*.json."""

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import cell, digits, provenance_line, reason_of, replace_between
from benchmarks.results_file import RESULTS
from benchmarks.training_step import PARTS, TARGET_SHARE

BEGIN, END = "<!-- rendered: training_step -->", "<!-- end -->"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _variant_cells(row: dict[str, Any], mfu: bool) -> list[str]:
    columns = 6 + mfu
    if (reason := reason_of(row)) is not None:
        return [cell(reason), *[""] * (columns - 1)]
    memory = row["memory_against_step"]
    cells = [
        " / ".join(digits(row["seconds"][key]) for key in ("p20", "p50", "p80")),
        digits(row["pictures_per_s"]),
        digits(row["peak_mib"]),
        f"{digits(row['speed_against_step'])}x" if "speed_against_step" in row else "",
        "" if memory is None else f"{digits(memory)}x",
        digits(row["tflop_per_s"]) if "tflop_per_s" in row else "",
    ]
    return [*cells, _percent(row["mfu"])] if mfu else cells


def _variant_lines(result: dict[str, Any]) -> list[str]:
    mfu = "gpu_rates" in result
    titles = ["variant", "p20 / p50 / p80 s", "pictures/s", "peak MiB", "speed against step", "memory against step"]
    titles += ["TFLOP/s"] + ["MFU"] * mfu
    lines = ["| " + " | ".join(titles) + " |", "|" + "--|" * len(titles)]
    for name, row in result["variants"].items():
        lines.append("| " + " | ".join([name, *_variant_cells(row, mfu)]) + " |")
    setting = result["setting"]
    size, batch = setting["image_size"], result["batch_size"]
    precision = "fp32" if setting["mixed_precision"] == "no" else setting["mixed_precision"]
    text = f"{batch} pictures of {size} px in {precision} a step."
    for larger in result["batch_sizes_out_of_memory"]:
        text += f" For {larger} the memory did not suffice."
    if "total" in result.get("flop", {}):
        text += f" A step takes {digits(result['flop']['total'] / 1e12)} TFLOP"
        rate = "bf16" if setting["mixed_precision"] == "bf16" else "tf32"
        text += f"; MFU is against plain {rate} products at " if mfu else "."
        text += f"{digits(result['gpu_rates'][f'{rate}_tflop_per_s'])} TFLOP/s." if mfu else ""
    text += " Memory is what a step takes beyond networks, moments and pixels."
    return [*lines, "", text]


def _part_lines(result: dict[str, Any]) -> list[str]:
    parts = result.get("parts")
    if parts is None or (reason := reason_of(parts)) is not None:
        return [] if parts is None else ["", f"Parts of a step: {reason}"]
    lines = ["", "| part of 'step', alone | s | share |", "|--|--|--|"]
    for name, text in PARTS.items():
        lines.append(f"| {name}: {text} | {digits(parts['seconds'][name])} | {_percent(parts['share'][name])} |")
    unexplained = parts["unexplained_share"]
    lines.append(f"| not explained by the parts |  | {_percent(unexplained)} |")
    both = parts["quantizer_and_bookkeeping_share"]
    verdict = "met" if both <= TARGET_SHARE else "missed"
    text = f"{_percent(parts['outside_networks_share'])} of a step are outside encoder and decoder. Quantizer and "
    text += f"bookkeeping take {_percent(both)} together (target: at most {_percent(TARGET_SHARE)}, {verdict})."
    return [*lines, "", text]


def _data_lines(result: dict[str, Any]) -> list[str]:
    data = result.get("data")
    if data is None:
        return []
    alone, loop = data["alone"], data["loop"]
    lines = ["", "| loader | pictures/s |", "|--|--|"]
    if (reason := reason_of(alone)) is not None:
        lines.append(f"| alone | {cell(reason)} |")
    for workers, rate in alone.get("pictures_per_s", {}).items():
        lines.append(f"| alone, {workers} worker processes | {digits(rate)} |")
    if (reason := reason_of(loop)) is not None:
        return [*lines, f"| with the step | {cell(reason)} |"]
    lines.append(f"| with the step, {loop['num_workers']} worker processes | {digits(loop['pictures_per_s'])} |")
    text = f"In the loop the step waits for pictures {_percent(loop['wait_share'])} of the time"
    if "gpu_rates" in result:
        text += f", and the GPU is idle between two steps {_percent(loop['idle_share'])} of it"
    return [*lines, "", text + "."]


def training_step_table(result: dict[str, Any]) -> str:
    """Markdown of a result file: variants, parts of a step, loader, and where it was measured."""
    lines = _variant_lines(result) + _part_lines(result) + _data_lines(result)
    return "\n".join([*lines, "", provenance_line(result)])


def step_section(results: Path = RESULTS) -> str:
    """What stands between the markers: a table for each machine measured, or how to measure."""
    files = sorted(results.glob("training_step_*.json"))
    if not files:
        return "not measured yet: run `python -m benchmarks.run training_step`"
    return "\n\n".join(training_step_table(json.loads(file.read_text())) for file in files)


def render_step(text: str, results: Path = RESULTS) -> str:
    """`text` with its table, if it has the markers; errors as [`benchmarks.markdown.replace_between`]."""
    return replace_between(text, BEGIN, END, lambda: step_section(results))
