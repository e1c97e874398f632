"""Renders results as Markdown, between markers of a text.

    python -m benchmarks.tables [FILE] [--check]

results/assignment_*.json: between `<!-- assignment:cpu -->` and `<!-- /assignment:cpu -->`, likewise
`assignment:cuda`. results/training_step_*.json: between `<!-- rendered: training_step -->` and `<!-- end -->`, and
likewise tokenize_*.json and generate_*.json. results/equal_budget_*.json: see `benchmarks.equal_budget.page`. Without
FILE, those of lgq_hf/kernels/README.md, docs/training.md, docs/tokenizing.md, docs/generating.md and
docs/comparison.md.
`--check` changes nothing and fails where a text differs from the numbers.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.assignment import TARGETS, Target
from benchmarks.equal_budget.page import BEGIN as EQUAL_BUDGET_BEGIN
from benchmarks.equal_budget.page import PAGE as COMPARISON
from benchmarks.equal_budget.page import render_equal_budget
from benchmarks.generate_table import BEGIN as GENERATE_BEGIN
from benchmarks.generate_table import render_generate
from benchmarks.markdown import cell, digits, provenance_line, reason_of
from benchmarks.results_file import RESULTS
from benchmarks.step_table import BEGIN as STEP_BEGIN
from benchmarks.step_table import render_step
from benchmarks.tokenize_table import BEGIN as TOKENIZE_BEGIN
from benchmarks.tokenize_table import render_tokenize

ROOT = Path(__file__).parents[1]
README = ROOT / "lgq_hf" / "kernels" / "README.md"
TRAINING = ROOT / "docs" / "training.md"
TOKENIZING = ROOT / "docs" / "tokenizing.md"
GENERATING = ROOT / "docs" / "generating.md"


def _case_cell(case: dict[str, Any]) -> str:
    shape = f"N={case['rows']} C={case['channels']} K={case['codes']}"
    what = "soft_assign, forward and backward" if case["op"] == "soft_assign" else "nearest_code"
    return f"{what}; {shape} {case['precision']}"


def _row_cells(row: dict[str, Any]) -> list[str]:
    reason = reason_of(row)
    if reason is not None:
        return [cell(reason), "", "", ""]
    times = " / ".join(digits(row["ms"][key]) for key in ("p20", "p50", "p80"))
    speeds = [row[f"speed_against_{name}"] for name in ("reference", "eager")]
    return [times, digits(row["peak_mib"]), *("" if speed is None else f"{digits(speed)}x" for speed in speeds)]


def _words(target: Target) -> str:
    limit = digits(target.limit)
    reached = {
        "speed": f"at least {limit}x faster than {target.against}",
        "memory": f"at most 1/{limit} of the memory of {target.against}",
        "memory_mib": f"at most {limit} MiB",
        "products": f"at most {limit}x the seven products alone",
        "growth": f"from {target.against}, time grows at most {limit}x as K does",
    }
    return f"{target.case}: {target.provider} {reached[target.measure]}"


def judge(target: Target, result: dict[str, Any]) -> tuple[float | None, str]:
    """What was measured of a target (`None`: nothing), and `met`, `missed` or why it is open."""
    cases, growth = result["cases"], target.measure == "growth"
    row = _find(cases, target.case, target.provider)
    if row is None or reason_of(row):
        return None, f"{target.provider} {reason_of(row)}"
    if target.measure in ("memory_mib", "products"):
        value = row["peak_mib" if target.measure == "memory_mib" else "ratio_to_products"]
        return value, "met" if value <= target.limit else "missed"
    other = _find(cases, target.against, target.provider) if growth else _find(cases, target.case, target.against)
    if other is None or reason_of(other):
        return None, f"{target.against} {reason_of(other)}"
    if growth:
        codes = cases[target.case]["codes"] / cases[target.against]["codes"]
        value = row["ms"]["p50"] / other["ms"]["p50"] / codes
        return value, "met" if value <= target.limit else "missed"
    if target.measure == "speed":
        value = other["ms"]["p50"] / row["ms"]["p50"]
    else:
        value = other["peak_mib"] / max(row["peak_mib"], 1 / 1024)
    return value, "met" if value >= target.limit else "missed"


def _find(cases: dict[str, Any], case: str, provider: str) -> dict[str, Any] | None:
    return cases.get(case, {}).get("providers", {}).get(provider)


def _targets(result: dict[str, Any]) -> tuple[Target, ...]:
    """Those of the CPU, or of the GPU's kind."""
    if "gpu_rates" not in result:
        return TARGETS["cpu"]
    gpu = result["hardware"]["gpu"] or ""
    return next((targets for kind, targets in TARGETS.items() if kind != "cpu" and kind in gpu), ())


def _target_lines(result: dict[str, Any]) -> list[str]:
    targets = _targets(result)
    if not targets:
        return []
    lines = ["", "| target | measured | |", "|--|--|--|"]
    for target in targets:
        value, verdict = judge(target, result)
        lines.append(f"| {_words(target)} | {'' if value is None else digits(value)} | {cell(verdict)} |")
    return lines


def _product_lines(result: dict[str, Any]) -> list[str]:
    rates = result.get("gpu_rates")
    if rates is None:
        return []
    names = {"fp32_tflop_per_s": "fp32", "tf32_tflop_per_s": "TF32", "bf16_tflop_per_s": "bf16"}
    products = ", ".join(f"{label} {digits(rates[name])} TFLOP/s" for name, label in names.items())
    lines = ["", f"This GPU's own rates: {products} (8192^3 products); copy {digits(rates['copy_gb_per_s'])} GB/s."]
    lines += ["", "| case | seven products alone, ms | times that |", "|--|--|--|"]
    for name, case in result["cases"].items():
        if "products_ms" in case:
            rows = case["providers"].items()
            ratios = [f"{key} {digits(row['ratio_to_products'])}" for key, row in rows if "ratio_to_products" in row]
            lines.append(f"| {name} | {digits(case['products_ms'])} | {', '.join(ratios)} |")
    return lines


def assignment_table(result: dict[str, Any]) -> str:
    """Markdown of a result file: a row per case and provider, the targets, and where it was measured."""
    lines = [
        "| case | provider | p20 / p50 / p80 ms | peak MiB | speed against reference | against eager |",
        "|" + "--|" * 6,
    ]
    for name, case in result["cases"].items():
        for provider, row in case["providers"].items():
            lines.append("| " + " | ".join([f"{name}: {_case_cell(case)}", provider, *_row_cells(row)]) + " |")
    lines += ["", "Memory is what a call takes beyond its inputs. For nearest_code, eager is cdist+argmin."]
    lines += [*_product_lines(result), *_target_lines(result), "", provenance_line(result)]
    return "\n".join(lines)


def section(device: str, results: Path = RESULTS) -> str:
    """What stands between the markers of a device: a table for each machine measured, or how to measure."""
    files = sorted(results.glob("assignment_cpu.json" if device == "cpu" else f"assignment_{device}_*.json"))
    if not files:
        where = "a GPU" if device == "cuda" else "a CPU"
        return f"not measured on {where} yet: run `python -m benchmarks.run assignment --device {device}`"
    return "\n\n".join(assignment_table(json.loads(file.read_text())) for file in files)


def render(text: str, results: Path = RESULTS) -> str:
    """`text` with what stands between its markers replaced.

    Raises:
        ValueError: where it has no markers, or a pair of them is not whole.
    """
    others = (STEP_BEGIN, TOKENIZE_BEGIN, GENERATE_BEGIN, EQUAL_BUDGET_BEGIN)
    if not re.search(r"<!-- /?assignment:", text) and not any(begin in text for begin in others):
        raise ValueError("no markers: put '<!-- assignment:cpu -->' and '<!-- /assignment:cpu -->' around the table")
    for one in (render_step, render_tokenize, render_generate, render_equal_budget):
        text = one(text, results)
    for device in ("cpu", "cuda"):
        begin, end = f"<!-- assignment:{device} -->", f"<!-- /assignment:{device} -->"
        counts = text.count(begin), text.count(end)
        if counts not in ((0, 0), (1, 1)):
            raise ValueError(f"expected one '{begin}' and one '{end}', got {counts[0]} and {counts[1]}")
        if begin in text:
            before, rest = text.split(begin)
            if end not in rest:
                raise ValueError(f"'{end}' stands before '{begin}'")
            text = f"{before}{begin}\n{section(device, results)}\n{end}{rest.split(end)[1]}"
    return text


def rendered_files() -> list[Path]:
    """The texts of this repository that hold tables."""
    others = [(TRAINING, STEP_BEGIN), (TOKENIZING, TOKENIZE_BEGIN), (GENERATING, GENERATE_BEGIN)]
    others.append((COMPARISON, EQUAL_BUDGET_BEGIN))
    return [README, *(file for file, begin in others if file.exists() and begin in file.read_text())]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="with markers")
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    chosen = parser.parse_args(arguments)
    differ = False
    for file in [chosen.file] if chosen.file else rendered_files():
        text = file.read_text()
        rendered = render(text)
        if rendered == text:
            continue
        differ = True
        print(f"{'differs' if chosen.check else 'rendered'}: {file}")
        if not chosen.check:
            file.write_text(rendered)
    return int(chosen.check and differ)


if __name__ == "__main__":
    sys.exit(main())
