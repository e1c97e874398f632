"""Converts every recorded miniature, measures how near it comes, and renders the table of conversion/README.md.

python -m conversion.parity            # writes parity.json and the table
python -m conversion.parity --check    # fails where the table is not that of parity.json
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers.utils import logging

from conversion.convert import convert
from conversion.formats import FORMATS
from lgq_hf.files import atomic_file
from lgq_hf.provenance import provenance

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "fixtures" / "vqgan_family"
RESULT, PAGE = HERE / "parity.json", HERE / "README.md"
# what stands in a miniature's folder, as a user of the project has it
SOURCES = {
    "taming_a": ["checkpoint.ckpt"],
    "llamagen_a": ["checkpoint.pt", "checkpoint_release.pt"],
    "ibq_a": ["checkpoint.ckpt"],
    "magvit2_a": ["checkpoint.ckpt"],
    "simvq_a": ["checkpoint.ckpt"],
    "wetok_a": ["checkpoint.ckpt"],
    "maskgit_a": ["checkpoint.bin"],
    "diffusers_a": ["checkpoint", "checkpoint_legacy"],
    "amused_a": ["checkpoint"],
}


def measure(fixtures: Path = FIXTURES) -> dict[str, Any]:
    """The result: by file, its format, weights, dropped keys by reason, what was baked, and the differences."""
    rows = {}
    for folder, names in SOURCES.items():
        for name in names:
            with tempfile.TemporaryDirectory() as temporary:
                expected = fixtures / folder / "expected.safetensors"
                report = convert(fixtures / folder / name, Path(temporary) / "out", expected=expected)
            rows[f"{folder}/{name}"] = {
                "format": report["format"],
                "weights": report["source"]["weights"],
                "dropped": _by_reason(report["dropped"]),
                "baked": report["baked"],
                "recorded": report["verification"]["recorded"],
                "beside_diffusers": report["verification"]["beside_diffusers"],
            }
    return {
        **provenance(),
        "protocol": "fp32, recorded random-weight miniatures, square and oblong input",
        "files": rows,
    }


def _by_reason(dropped: dict[str, str]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for reason in dropped.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


def table(result: dict[str, Any]) -> str:
    """Markdown rows, one per file, and where they were measured."""
    head = "| format | project, licence of its code | file | dropped | baked | latents | pixels | tokens wrong |"
    lines = [head, "|--|--|--|--|--|--|--|--|"]
    for name, row in result["files"].items():
        kind = FORMATS[row["format"]]
        parts = row["recorded"].values()
        dropped = "; ".join(f"{count} of: {reason}" for reason, count in row["dropped"].items()) or "nothing"
        baked = "; ".join(f"{ours}: {how}" for ours, how in row["baked"].items()) or "nothing"
        worst = [f"{max(part[key] for part in parts):.1e}" for key in ("latents", "pixels")]
        tokens = f"{sum(part['tokens_wrong'] for part in parts)} of {sum(part['tokens'] for part in parts)}"
        project = f"[{kind.project}]({kind.url}), {kind.code_licence}"
        file = f"{name} ({row['weights']})"
        lines.append(
            f"| `{row['format']}` | {project} | {file} | {dropped} | {baked} | {' | '.join(worst)} | {tokens} |"
        )
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("python", "torch", "transformers"))
    lines += ["", f"{result['protocol']}. Measured at commit `{result['commit'][:12]}` with {versions}."]
    return "\n".join(lines)


def render(page: str, result: dict[str, Any]) -> str:
    """The page with the text between its markers replaced."""
    found = re.subn(
        r"(<!-- parity -->\n).*?(<!-- /parity -->)", lambda m: f"{m[1]}{table(result)}\n{m[2]}", page, flags=re.DOTALL
    )
    if found[1] != 1:
        raise ValueError(f"expected one part <!-- parity --> ... <!-- /parity -->, found {found[1]}")
    return found[0]


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m conversion.parity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="measure nothing, compare the page with parity.json")
    if parser.parse_args(arguments).check:
        same = render(PAGE.read_text(), json.loads(RESULT.read_text())) == PAGE.read_text()
        print(
            "conversion/README.md is that of parity.json" if same else "conversion/README.md differs: render it anew"
        )
        return 0 if same else 1
    logging.disable_progress_bar()
    result = measure()
    with atomic_file(RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    with atomic_file(PAGE) as temporary:
        temporary.write_text(render(PAGE.read_text(), result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
