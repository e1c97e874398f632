"""What every published folder has: recipe, results and logs without the places of one machine; its way to the Hub."""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from training.run_recipe import RunRecipe


def portable_place(place: str) -> str:
    """A local path's last name; other names, such as repositories, as they are."""
    return Path(place).name if Path(place).is_absolute() or Path(place).exists() else place


def portable(recipe: RunRecipe, places: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The recipe in full; of its output folder, and of the local paths in the fields `places`, the last name stays.

    Args:
        places: (section, field) of paths; those that are `None` stay.
    """
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    values["output_dir"] = Path(values["output_dir"]).resolve().name
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


def sha256(file: Path) -> str:
    """Of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
    hardware = results["hardware"]
    return {
        "steps": f"{results['steps']:,}",
        "batch_size": recipe.batch_size,
        "duration": duration(results["hours"]),
        "processes": results["processes"],
        "hardware": hardware["gpu"] or f"{hardware['cpu']} ({hardware['threads']} threads)",
        "commit": results["commit"] or "unknown",
        "weights": "averaged over training" if recipe.optimizer.ema_decay else "those of the last step",
    }


def prepare_push(repo_id: str, api: HfApi | None = None) -> None:
    """Creates the repository, so that a missing token or permission shows before the training and not after it."""
    (api or HfApi()).create_repo(repo_id, repo_type="model", exist_ok=True)


def push(folder: Path, repo_id: str, api: HfApi | None = None) -> str:
    """Uploads all of the published folder in one commit; returns its address."""
    info = (api or HfApi()).upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        repo_type="model",
        commit_message=f"Upload {folder.resolve().parent.name}",
    )
    return str(info.commit_url)
