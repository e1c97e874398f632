"""The rendered parts of docs/comparison.md, and its plots.

A part stands between `<!-- rendered: equal_budget:SCALE:PART -->` and `<!-- end -->`; PART is a table of
`benchmarks.equal_budget.table`, `protocol`, `provenance`, `geometry`, or a plot's name.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.equal_budget.comparison import Result, compared_methods, runs_of
from benchmarks.equal_budget.plots import PLOTS, draw, file_of
from benchmarks.equal_budget.runs import COMPARE
from benchmarks.equal_budget.scales import Scale
from benchmarks.equal_budget.table import TABLES
from benchmarks.markdown import replace_between
from benchmarks.results_file import RESULTS

BEGIN, END = "<!-- rendered: equal_budget:", "<!-- end -->"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
PAGE = IMAGES.parent / "comparison.md"
_PART = re.compile(r"<!-- rendered: equal_budget:(\w+):(\w+) -->")


def protocol(result: Result) -> str:
    """What the runs of a scale share, in numbers."""
    scale, crops, recipe = result["scale"], result["crops"], result["shared_recipe"]
    corpus, optimizer, model = crops["corpus"], recipe["optimizer"], recipe["model"]
    sources = ", ".join(
        f"{split} {count:,} of {corpus['source_pictures'][split]:,} source pictures"
        for split, count in crops["counts"].items()
    )
    loss = recipe["loss"]
    perceptual = f" + {loss['perceptual_weight']:g} {loss['perceptual']}" if loss["perceptual"] != "none" else ""
    rows = [
        ("crops", f"{crops['size']} px ({sources}); a square of 1 to {crops['max_scale']:g} times the side"),
        ("left out", f"crops whose values in [0, 1] have a standard deviation below {crops['min_std']:g}"),
        ("corpus", f"manifest sha256 `{corpus['manifest_sha256'][:12]}`; crops `{crops['sha256'][:12]}`"),
        ("tokens", f"f{scale['downsampling']}, {(scale['image_size'] // scale['downsampling']) ** 2} a crop"),
        (
            "networks",
            f"base {model['base_channels']}, times {model['channel_multiplier']}, "
            f"{model['latent_channels']} latent channels; {_parameters(result)} parameters",
        ),
        ("loss", f"{loss['pixel']}{perceptual}, and the quantizer's own"),
        ("steps", f"{scale['steps']:,} of {scale['batch_size']} crops; in tuning {scale['tuning_steps']:,}"),
        (
            "optimizer",
            f"AdamW, {optimizer['learning_rate']:g}, {optimizer['warmup_steps']} steps of warm-up, "
            f"{optimizer['schedule']}; weights averaged with {optimizer['ema_decay']:g}",
        ),
        *((f"measured ({split})", _measured(one)) for split, one in result["protocol"].items() if "extractor" in one),
    ]
    return "\n".join(["| | |", "|--|--|", *(f"| {name} | {value} |" for name, value in rows)])


def _parameters(result: Result) -> str:
    """Of the whole model, over the methods of the comparison."""
    counts = {runs_of(result, COMPARE, name)[0]["parameters"]["all"] for name in compared_methods(result)}
    if len(counts) < 2:
        return "".join(f"{count:,}" for count in counts) or "not yet counted"
    return f"{min(counts):,} to {max(counts):,}"


def _measured(protocol: dict[str, Any]) -> str:
    return (
        f"{protocol['pictures']:,} crops, 8-bit; Fréchet and perceptual distance and top class with "
        f"{protocol['extractor']} (`{protocol['extractor_sha256'][:12]}`; no FID)"
    )


def provenance(result: Result) -> str:
    """Machines, versions and commits."""
    hardware = result["hardware"]
    commits = sorted({(run["commit"] or "unknown").partition("+")[0][:12] for run in result["runs"]})
    changed = any("+" in (run["commit"] or "") for run in result["runs"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    failed = sum("failed" in run for run in result["runs"])
    memory = sorted({run["peak_of"] for run in result["runs"] if "peak_of" in run})
    return (
        f"{len(result['runs'])} runs ({failed} failed) on {hardware['gpu'] or hardware['cpu']}, at commits "
        f"{', '.join(f'`{commit}`' for commit in commits)}{' with changes' if changed else ''}; {versions}. Several "
        "runs shared the machine: times and pictures a second are indicative. Peak memory is that of the "
        f"{' or the '.join(memory)}."
    )


def plot_link(name: str, scale: str) -> str:
    """The picture, for the page."""
    words = {"rate": "rate and distortion", "usage": "use of the codes", "curves": "training curves"}
    words["geometry"] = "latents, codes, and how they lie to each other"
    return f"![{words[name]}](images/{file_of(name, scale)})"


def part(scale: str, name: str, results: Path) -> str:
    """One rendered part; how to measure it where there is no result.

    Raises:
        ValueError: no such part.
    """
    known = {*TABLES, *PLOTS, "protocol", "provenance", "geometry"}
    if name not in known:
        raise ValueError(f"no part '{name}' of equal_budget, there are {', '.join(sorted(known))}")
    command = "equal_budget.geometry {} " if name == "geometry" else "equal_budget {} all"
    file = results / (f"equal_budget_geometry_{scale}.json" if name == "geometry" else f"equal_budget_{scale}.json")
    if not file.is_file():
        return f"Not measured yet: `python -m benchmarks.{command.format(scale).strip()}`."
    result = json.loads(file.read_text())
    if name == "geometry":
        from benchmarks.equal_budget.geometry import render_geometry

        return f"{render_geometry(result)}\n\n{plot_link(name, scale)}"
    if name in PLOTS:
        return plot_link(name, scale)
    return {**TABLES, "protocol": protocol, "provenance": provenance}[name](result)


def render_equal_budget(text: str, results: Path = RESULTS) -> str:
    """`text` with all its parts made anew; errors as [`benchmarks.markdown.replace_between`] and [`part`]."""
    for match in _PART.finditer(text):
        text = replace_between(text, match[0], END, partial(part, match[1], match[2], results))
    return text


def make_page(scale: Scale, results: Path, images: Path) -> None:
    """Draws the plots of a result file, and renders docs/comparison.md where the result is of this repository.

    Raises:
        FileNotFoundError: no such result file.
    """
    file = results / f"equal_budget_{scale.name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: run the stage 'collect' first")
    for path in draw(json.loads(file.read_text()), images):
        print(path)
    if results == RESULTS:
        PAGE.write_text(render_equal_budget(PAGE.read_text()))
