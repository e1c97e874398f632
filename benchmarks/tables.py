"""Renders results as Markdown, between markers of a text.

    python -m benchmarks.tables [FILE] [--check]

A part stands between `<!-- rendered: NAME -->` and `<!-- end -->`, with the names of `SECTIONS` or those of
`benchmarks.equal_budget.page`.
Without FILE, those of lgq_hf/kernels/README.md, docs/training.md, docs/tokenizing.md, docs/generating.md and
docs/comparison.md. `--check` changes nothing and fails where a text differs from the numbers.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.equal_budget.page import PAGE as COMPARISON
from benchmarks.equal_budget.page import render_equal_budget
from benchmarks.harness import reason_of
from benchmarks.markdown import cell, digits, replace_between
from benchmarks.results_file import RESULTS
from benchmarks.step_parts import PARTS

ROOT = Path(__file__).parents[1]
README = ROOT / "lgq_hf" / "kernels" / "README.md"
FILES = (README, *(ROOT / "docs" / f"{name}.md" for name in ("training", "tokenizing", "generating")), COMPARISON)
STEP_SHARE = 0.1  # of a step, at most, for quantizer and bookkeeping together
OF_SLOWER, OF_ONE, GROWTH_MIB = 0.9, 1.8, 64  # tokenizing: end to end, two processes, memory
STATIC_SPEED = 2.0  # times the speed of generate()


def provenance_line(result: dict[str, Any]) -> str:
    """Machine, commit, versions and seed."""
    hardware, versions = result["hardware"], result["versions"]
    where = f"{hardware['cpu']}, {hardware['threads']} threads"
    if "gpu_rates" in result:
        where = hardware["gpu"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "lgq_hf")
    if result["load_average"] > 0.5:
        where += f" (busy: load average {result['load_average']:.1f} before)"
    return f"Measured on {where} at commit `{result['commit'][:12]}` with {named}; seed {result['seed']}."


@dataclass(frozen=True)
class Target:
    """What a provider should reach in a case.

    Attributes:
        measure: `speed` and `memory`: at least `limit` times better than the provider `against`; `memory_mib` and
            `products` (times the seven products alone): at most `limit`; `growth`: of the time from the case
            `against` to this one, at most `limit` times the growth of K.
    """

    case: str
    provider: str
    measure: Literal["speed", "memory", "memory_mib", "products", "growth"]
    limit: float
    against: str = ""


_H100_SOFT = ("soft-fp32", "soft-tf32", "soft-bf16")
TARGETS: dict[str, tuple[Target, ...]] = {
    "cpu": (
        Target("soft-k16384", "chunked", "speed", 2.5, "reference"),
        Target("soft-k16384", "chunked", "memory", 20, "reference"),
        Target("nearest-k16384", "chunked", "speed", 3, "cdist+argmin"),
        Target("nearest-k16384", "chunked", "memory", 20, "cdist+argmin"),
        Target("nearest-c8-k262144", "chunked", "speed", 3, "cdist+argmin"),
        Target("nearest-c8-k262144", "chunked", "memory", 20, "cdist+argmin"),
    ),
    "H100": (
        *(Target(case, "triton", "speed", 10, "reference") for case in _H100_SOFT),
        *(Target(case, "triton", "memory", 50, "reference") for case in _H100_SOFT),
        *(Target(case, "triton", "products", 2.5) for case in _H100_SOFT),
        Target("soft-k262144", "triton", "memory_mib", 2048),
        Target("soft-k262144", "triton", "growth", 1, "soft-fp32"),
        Target("nearest-k262144", "triton", "speed", 5, "cdist+argmin"),
    ),
}


def _case_cell(case: dict[str, Any]) -> str:
    shape = f"N={case['rows']} C={case['channels']} K={case['codes']}"
    what = "soft_assign, forward and backward" if case["op"] == "soft_assign" else "nearest_code"
    return f"{what}; {shape} {case['precision']}"


def _provider_cells(row: dict[str, Any]) -> list[str]:
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
            lines.append("| " + " | ".join([f"{name}: {_case_cell(case)}", provider, *_provider_cells(row)]) + " |")
    lines += ["", "Memory is what a call takes beyond its inputs. For nearest_code, eager is cdist+argmin."]
    lines += [*_product_lines(result), *_target_lines(result), "", provenance_line(result)]
    return "\n".join(lines)


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
    verdict = "met" if both <= STEP_SHARE else "missed"
    text = f"{_percent(parts['outside_networks_share'])} of a step are outside encoder and decoder. Quantizer and "
    text += f"bookkeeping take {_percent(both)} together (target: at most {_percent(STEP_SHARE)}, {verdict})."
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


def _judged(met: bool) -> str:
    return "met" if met else "**missed**"


def _tokenize_parts(parts: dict[str, Any]) -> list[str]:
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
    return [*lines, "", *_tokenize_targets(rows)]


def _tokenize_targets(rows: list[tuple[str, float, float]]) -> list[str]:
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
    lines = [f"{where}, size {protocol['setting']['size']}.", "", *_tokenize_parts(result["parts"]), *_others(result)]
    return "\n".join([*lines, *_storage(result["storage"]), "", provenance_line(result)])


def _generate_row(row: dict[str, Any]) -> list[str]:
    reason = reason_of(row)
    if reason is not None:
        return [cell(reason), "", ""]
    times = " / ".join(digits(row["seconds"][key]) for key in ("p20", "p50", "p80"))
    return [times, digits(row["pictures_per_s"]), digits(row["peak_mib"])]


def _speed(row: dict[str, Any]) -> str:
    return f"{digits(row['speed_against_generate'])}x" if "speed_against_generate" in row else ""


def _static_judged(rows: dict[str, Any]) -> str:
    speeds = {name: row["speed_against_generate"] for name, row in rows.items() if "speed_against_generate" in row}
    ours = {name: speeds[name] for name in ("static", "static_compiled") if name in speeds}
    if not ours:
        return "The static cache was not measured against `generate`."
    best = max(ours, key=lambda name: ours[name])
    met = "met" if ours[best] >= STATIC_SPEED else "**missed**"
    return (
        f"Target: a static cache at least {digits(STATIC_SPEED)}x as fast as `generate`: {digits(ours[best])}x, {met}."
    )


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
        lines.append(f"| {cell(ways[name])} | " + " | ".join([*_generate_row(row), _speed(row)]) + " |")
    lines += ["", _static_judged(result["autoregressive"]), ""]
    if compiled := result["autoregressive"].get("static_compiled", {}).get("first_call_s"):
        lines += [f"Compiling took {digits(compiled)} s in the first call.", ""]
    lines += [f"| masked, steps | {head} |", "|" + "--|" * 4]
    for steps, row in result.get("masked", {}).items():
        lines.append(f"| {steps} | " + " | ".join(_generate_row(row)) + " |")
    return "\n".join([*lines, "", provenance_line(result)])


def render_results(results: Path, pattern: str, table: Callable[[dict[str, Any]], str], missing: str = "") -> str:
    """A table for each result whose name fits, one below the other; `missing` where there is none."""
    files = sorted(results.glob(pattern))
    return "\n\n".join(table(json.loads(file.read_text())) for file in files) or missing


def render_assignment(results: Path, device: str) -> str:
    """The assignment op on a device, "cpu" or "cuda"."""
    where, pattern = ("a GPU", "assignment_cuda_*.json") if device == "cuda" else ("a CPU", "assignment_cpu.json")
    missing = f"not measured on {where} yet: run `python -m benchmarks.run assignment --device {device}`"
    return render_results(results, pattern, assignment_table, missing)


def render_training_step(results: Path) -> str:
    """The training step, on each machine measured."""
    missing = "not measured yet: run `python -m benchmarks.run training_step`"
    return render_results(results, "training_step_*.json", training_step_table, missing)


def _with_gpu(results: Path, what: str, table: Callable[[dict[str, Any]], str]) -> str:
    missing = f"Not measured on a GPU yet: `python -m benchmarks.run {what} --device cuda`."
    both = (render_results(results, f"{what}_cpu.json", table), render_results(results, f"{what}_cuda_*.json", table))
    return "\n\n".join([*filter(None, both), *([] if both[1] else [missing])])


def render_tokenize(results: Path) -> str:
    """Tokenizing, on each machine measured."""
    return _with_gpu(results, "tokenize", tokenize_table)


def render_generate(results: Path) -> str:
    """Generating, on each machine measured."""
    return _with_gpu(results, "generate", generate_table)


# by name; those of the comparison are in `benchmarks.equal_budget.page`
SECTIONS: dict[str, Callable[[Path], str]] = {
    "assignment:cpu": partial(render_assignment, device="cpu"),
    "assignment:cuda": partial(render_assignment, device="cuda"),
    "training_step": render_training_step,
    "tokenize": render_tokenize,
    "generate": render_generate,
}


def render(text: str, results: Path = RESULTS) -> str:
    """`text` with what stands between its markers made anew.

    Raises:
        ValueError: where a marker's end is missing, and where there is none of those of `SECTIONS`.
    """
    if "<!-- rendered: " not in text:
        raise ValueError("no markers: put '<!-- rendered: NAME -->' and '<!-- end -->' around the table")
    for name, section in SECTIONS.items():
        text = replace_between(text, f"<!-- rendered: {name} -->", "<!-- end -->", partial(section, results))
    return render_equal_budget(text, results)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="with markers")
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    chosen = parser.parse_args(arguments)
    differ = False
    for file in [chosen.file] if chosen.file else FILES:
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
