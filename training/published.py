"""What every published folder has: recipe, results and logs without the places of one machine; its way to the Hub."""

import dataclasses
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lgq_hf.hub import check_publishable, push
from lgq_hf.hub.publishable import STATE_BOTH, STATE_PICTURES
from training.run_recipe import Report, RunRecipe


def portable_place(place: str) -> str:
    """A local path's last name; other names, such as repositories, as they are."""
    return Path(place).name if Path(place).is_absolute() or Path(place).exists() else place


def portable(recipe: RunRecipe, places: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The recipe in full; of its output folder, and of the local paths in the fields `places`, the last name stays.

    Where it was published is left out: who does it again does not publish in the same place.

    Args:
        places: (section, field) of paths; those that are `None` stay.
    """
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    values["output_dir"] = Path(values["output_dir"]).resolve().name
    values["report"] |= {"push_to_hub": None, "hub_private": False}
    for section, name in places:
        if value := values[section][name]:
            values[section][name] = portable_place(value)
    return values


def finite_json(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_records(folder: Path, recipe: dict[str, Any], results: dict[str, Any], logs: list[Path]) -> dict[str, Any]:
    """Writes recipe.yaml, results.json and the logs that there are; returns the results as written."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    results = finite_json(results)
    (folder / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    for log in logs:
        if log.exists():
            shutil.copyfile(log, folder / log.name)
    return results


def duration(hours: float) -> str:
    """In words."""
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def run_facts(results: dict[str, Any], recipe: RunRecipe) -> dict[str, Any]:
    """What every card says of its run, by the names of its template."""
    hardware, license_ = results["hardware"], recipe.report.license
    return {
        "license": f"license: {license_}\n" if license_ else "",
        "licence": f"These weights: {license_}. {STATE_PICTURES}" if license_ else STATE_BOTH,
        "steps": f"{results['steps']:,}",
        "batch_size": recipe.batch_size,
        "duration": duration(results["hours"]),
        "processes": results["processes"],
        "hardware": hardware["gpu"] or f"{hardware['cpu']} ({hardware['threads']} threads)",
        "commit": results["commit"] or "unknown",
        "weights": "averaged over training" if recipe.optimizer.ema_decay else "those of the last step",
    }


def push_final(folder: Path, report: Report) -> None:
    """Publishes a run's final folder as its recipe says, and prints the address of the commit.

    The card is as it was generated: what it does not state yet is a warning here, after a long run, and no failure.

    Raises:
        SystemExit: with status 1 where that fails; the folder stands, and how to go on is printed.
    """
    assert report.push_to_hub is not None
    name = folder.resolve().parent.name
    try:
        publication = check_publishable(folder, as_generated=True)
        for note in publication.notes:
            print(f"warning: {note}", file=sys.stderr)
        pushed = push(publication, report.push_to_hub, private=report.hub_private, message=f"Upload {name}")
    except Exception as error:  # whatever it is, training is done and must not seem to have failed
        command = ["lgq", "push", str(folder), report.push_to_hub, *(["--private"] if report.hub_private else [])]
        print(
            f"the run is finished and stands in {folder}, but it was not published: {error}\n"
            f"To publish it: {shlex.join(command)}",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
    print(pushed.url)
