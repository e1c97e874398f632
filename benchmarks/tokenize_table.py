"""Markdown of results/tokenize_*.json."""

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import cell, digits, provenance_line, replace_between
from benchmarks.results_file import RESULTS

BEGIN, END = "<!-- rendered: tokenize -->", "<!-- end -->"
OF_SLOWER, OF_ONE, GROWTH_MIB = 0.9, 1.8, 64


def _judged(met: bool) -> str:
    return "met" if met else "**missed**"


def _parts(parts: dict[str, Any]) -> list[str]:
    if "refused" in parts:
        return [f"Refused, and not timed: {cell(parts['refused'])}."]
    lines = ["| processes that read ahead | encoder alone | JPEG decoder alone | end to end | of the slower |"]
    lines.append("|" + "--|" * 5)
    for workers, row in parts["workers"].items():
        rates = [parts["encoder"], row["jpeg_decoder"], row["whole"]]
        share = f"{100 * row['against_slower']:.0f} %"
        lines.append(f"| {workers} | " + " | ".join(map(digits, rates)) + f" | {share} |")
    shares = {"decoding": "decoding_share", "lookup": "lookup_share", "writing": "writing_share"}
    told = ", ".join(f"{name} {100 * parts[key]:.1f} %" for name, key in shares.items())
    lines += [
        "",
        f"Pictures a second. Shares of the time without reading ahead: {told} (the lookup's: of the encoder).",
    ]
    rows = [
        (f"end to end, of the slower of the two, {workers} processes ahead", row["against_slower"], OF_SLOWER)
        for workers, row in parts["workers"].items()
    ]
    return [*lines, "", *_targets(rows)]


def _targets(rows: list[tuple[str, float, float]]) -> list[str]:
    lines = ["| target | measured | |", "|--|--|--|"]
    return lines + [f"| {name}: at least {low} | {value:.2f} | {_judged(value >= low)} |" for name, value, low in rows]


def _others(result: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if "processes" in result:
        rates = result["processes"]
        lines += [
            f"| two processes against one, a thread and a core each: at least {OF_ONE} | {rates['ratio']:.2f} "
            f"({digits(rates['one_pictures_per_s'])} and {digits(rates['two_pictures_per_s'])} pictures a second) | "
            f"{_judged(rates['ratio'] >= OF_ONE)} |"
        ]
    if "memory" in result:
        (few, many), (low, high) = result["memory"]["pictures"], result["memory"]["peak_mib"]
        lines += [
            f"| memory, {few} and {many} pictures: growth below {GROWTH_MIB} MiB | {low:.0f} and {high:.0f} MiB | "
            f"{_judged(high - low < GROWTH_MIB)} |"
        ]
    return lines


def _storage(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "| codes | log2(K) / 8 | bytes a token, parquet | Arrow, as `datasets` maps it | one row at random, ms |",
    ]
    lines.append("|" + "--|" * 5)
    for row in rows:
        stored = f"{row['parquet_bytes_a_token']:.2f} | {row['arrow_bytes_a_token']:.2f}"
        lines.append(f"| {row['codes']} | {row['bound']:.2f} | {stored} | {digits(row['row_ms'])} |")
    return lines


def tokenize_table(result: dict[str, Any]) -> str:
    """Markdown of one result file."""
    protocol = result["protocol"]
    where = f"{protocol['pictures']}; {protocol['model']}, {protocol['setting']['encoding']['dtype']}"
    lines = [f"{where}, size {protocol['setting']['size']}.", "", *_parts(result["parts"]), *_others(result)]
    return "\n".join([*lines, *_storage(result["storage"]), "", provenance_line(result)])


def section(results: Path = RESULTS) -> str:
    """A table for each machine measured, and what was not."""
    files = [*sorted(results.glob("tokenize_cpu.json")), *sorted(results.glob("tokenize_cuda_*.json"))]
    tables = [tokenize_table(json.loads(file.read_text())) for file in files]
    if not any("cuda" in file.name for file in files):
        tables.append("Not measured on a GPU yet: `python -m benchmarks.run tokenize --device cuda`.")
    return "\n\n".join(tables)


def render_tokenize(text: str, results: Path = RESULTS) -> str:
    """`text` with its table, if it has the markers; errors as [`benchmarks.markdown.replace_between`]."""
    return replace_between(text, BEGIN, END, lambda: section(results))
