"""One result file of all runs of a scale, small enough to keep: benchmarks/results/equal_budget_<scale>.json."""

import json
from pathlib import Path
from typing import Any

from benchmarks.equal_budget.carry_out import finished_result
from benchmarks.equal_budget.crops import fingerprint, read_manifest
from benchmarks.equal_budget.methods import METHODS, describe
from benchmarks.equal_budget.plan import BASE, NotTuned, arms_of, chosen_setting, runs_of, tuning_runs
from benchmarks.equal_budget.runs import ABLATE, STAGES, TRADEOFF, Run, identity
from benchmarks.equal_budget.scales import Scale
from benchmarks.results_file import write_result

COLOURS = "colours.json"  # beside a run's result, of the stage `colours`
_KEPT = (
    *("name", "stage", "method", "setting", "codes", "seed", "arm", "overrides", "metrics", "seconds"),
    *("pictures_per_second", "peak_mib", "peak_of", "parameters", "commit", "failed", "colours"),
)


def collect(scale: Scale, place: Path, results: Path | None = None) -> Path:
    """Writes the result file from the runs that there are; returns its path.

    Raises:
        ValueError: no run has a result, or one has that of another recipe.
    """
    runs = finished_runs(scale, place)
    if not runs:
        raise ValueError(f"no run in {place} has a result: run the stage 'tune' first")
    full = {run.name: finished_result(run, place) or {} for run in runs}
    manifest = read_manifest(place / "crops")
    evaluated = [result for result in full.values() if "protocol" in result]
    content = {
        "scale": described(scale),
        "crops": {**manifest["settings"], "corpus": manifest["corpus"], "sha256": fingerprint(manifest)},
        "protocol": {
            result["evaluated_on"]: result["protocol"] for result in sorted(evaluated, key=lambda one: one["stage"])
        },
        "shared_recipe": _shared(scale, place, runs[0]),
        "methods": {name: _method(scale, name, place) for name in METHODS},
        "arms": _arms(scale, place),
        "runs": [compact(_with_colours(result, place)) for result in full.values()],
    }
    return write_result(f"equal_budget_{scale.name}", content, results)


def _with_colours(result: dict[str, Any], place: Path) -> dict[str, Any]:
    """A result with what was measured of the error's colours, if it was."""
    file = place / result["name"] / COLOURS
    if not file.is_file():
        return result
    measured = json.loads(file.read_text())
    return {**result, "colours": {name: measured[name] for name in ("psnr_matched", "shares")}}


def finished_runs(scale: Scale, place: Path) -> list[Run]:
    """The runs of all stages that have a result; of methods that are not tuned yet, those of the tuning."""
    found: list[Run] = []
    for stage in STAGES:
        for method in METHODS:
            if stage in (ABLATE, TRADEOFF) and method != BASE:
                continue
            try:
                runs = runs_of(scale, stage, [method], lambda run: finished_result(run, place))
            except NotTuned:
                continue
            found += [run for run in runs if finished_result(run, place) is not None]
    return found


def described(scale: Scale) -> dict[str, Any]:
    """The scale in plain values."""
    return {
        "name": scale.name,
        "image_size": scale.image_size,
        "downsampling": 2 ** (len(scale.recipe["model"]["channel_multiplier"]) - 1),
        "codes": scale.codes,
        "trend": list(scale.trend),
        "steps": scale.steps,
        "tuning_steps": scale.tuning_steps,
        "batch_size": scale.recipe["batch_size"],
        "crops": scale.crops,
    }


def _shared(scale: Scale, place: Path, run: Run) -> dict[str, Any]:
    """The recipe that all runs share, with nothing of a quantizer."""
    whole = identity(run.recipe(place))
    whole["model"] = dict(scale.recipe["model"])
    for name in ("seed", "start_from"):
        del whole[name]
    whole["max_steps"] = scale.steps
    whole["quantizer"] = dict(scale.recipe["quantizer"])
    return whole


def _method(scale: Scale, name: str, place: Path) -> dict[str, Any]:
    method = METHODS[name]
    try:
        chosen = chosen_setting(scale, name, lambda run: finished_result(run, place))
    except NotTuned:
        chosen = None
    return {
        "label": method.label,
        "source": method.source,
        "settings": [describe(setting) for setting in method.settings(scale.codes)],
        "fixed": describe(method.fields(scale.codes)),
        "chosen": chosen,
        "tuning": [run.name for run in tuning_runs(scale, name)],
    }


def _arms(scale: Scale, place: Path) -> list[dict[str, str]]:
    """Each arm with the name of its run, which for those that change nothing is the base arm's."""
    try:
        setting = chosen_setting(scale, BASE, lambda run: finished_result(run, place))
    except NotTuned:
        return []
    if setting is None:
        return []
    return [
        {"stage": stage, "group": arm.group, "name": arm.name, "label": arm.label, "run": run.name}
        for stage in (ABLATE, TRADEOFF)
        for arm, run in arms_of(scale, stage, setting)
    ]


def compact(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run's result: without its recipe, numbers of six digits, lists as one text each."""
    kept = {name: _short(result[name]) for name in _KEPT if name in result}
    if "codebook_counts" in result:
        kept["codebook_counts"] = " ".join(map(str, result["codebook_counts"]))
    if "curve" in result:
        kept["curve"] = {
            name: " ".join(f"{value:.5g}" for value in values) for name, values in result["curve"].items()
        }
        rows = result["validation"]
        kept["validation"] = {
            name: " ".join(f"{row[name]:.6g}" for row in rows) for name in ("step", "psnr", "ssim") if rows
        }
    return kept


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(entry) for name, entry in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
