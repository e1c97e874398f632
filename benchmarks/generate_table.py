"""Markdown of results/generate_*.json."""

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import cell, digits, provenance_line, reason_of, replace_between
from benchmarks.results_file import RESULTS

BEGIN, END = "<!-- rendered: generate -->", "<!-- end -->"
TARGET = 2.0  # times the speed of generate()


def _row(row: dict[str, Any]) -> list[str]:
    reason = reason_of(row)
    if reason is not None:
        return [cell(reason), "", ""]
    times = " / ".join(digits(row["seconds"][key]) for key in ("p20", "p50", "p80"))
    return [times, digits(row["pictures_per_s"]), digits(row["peak_mib"])]


def _speed(row: dict[str, Any]) -> str:
    return f"{digits(row['speed_against_generate'])}x" if "speed_against_generate" in row else ""


def _judged(rows: dict[str, Any]) -> str:
    speeds = {name: row["speed_against_generate"] for name, row in rows.items() if "speed_against_generate" in row}
    ours = {name: speeds[name] for name in ("static", "static_compiled") if name in speeds}
    if not ours:
        return "The static cache was not measured against `generate`."
    best = max(ours, key=lambda name: ours[name])
    met = "met" if ours[best] >= TARGET else "**missed**"
    return f"Target: a static cache at least {digits(TARGET)}x as fast as `generate`: {digits(ours[best])}x, {met}."


def generate_table(result: dict[str, Any]) -> str:
    """Markdown of one result file."""
    setting, ways = result["protocol"]["setting"], result["protocol"]["ways"]
    where = (
        f"{setting['layers']} layers of width {setting['hidden_size']}, K = {setting['codes']}, grids of "
        f"{setting['side']} x {setting['side']} tokens, batches of {setting['batch']} pictures with guidance, "
        f"{setting['dtype']}; to tokens, without the tokenizer's decoder."
    )
    head = "p20 / p50 / p80 s a batch | pictures/s | peak MiB"
    lines = [where, "", f"| token after token | {head} | speed against generate |", "|" + "--|" * 5]
    for name, row in result["autoregressive"].items():
        lines.append(f"| {cell(ways[name])} | " + " | ".join([*_row(row), _speed(row)]) + " |")
    lines += ["", _judged(result["autoregressive"]), ""]
    if compiled := result["autoregressive"].get("static_compiled", {}).get("first_call_s"):
        lines += [f"Compiling took {digits(compiled)} s in the first call.", ""]
    lines += [f"| masked, steps | {head} |", "|" + "--|" * 4]
    for steps, row in result.get("masked", {}).items():
        lines.append(f"| {steps} | " + " | ".join(_row(row)) + " |")
    return "\n".join([*lines, "", provenance_line(result)])


def section(results: Path = RESULTS) -> str:
    """A table for each machine measured, and what was not."""
    files = [*sorted(results.glob("generate_cpu.json")), *sorted(results.glob("generate_cuda_*.json"))]
    tables = [generate_table(json.loads(file.read_text())) for file in files]
    if not any("cuda" in file.name for file in files):
        tables.append("Not measured on a GPU yet: `python -m benchmarks.run generate --device cuda`.")
    return "\n\n".join(tables)


def render_generate(text: str, results: Path = RESULTS) -> str:
    """`text` with its table, if it has the markers; errors as [`benchmarks.markdown.replace_between`]."""
    return replace_between(text, BEGIN, END, lambda: section(results))


__all__ = ["BEGIN", "generate_table", "render_generate", "section"]
