"""What a finished run was: recipe, corpus, time and hardware, for the model card.

python -m training.summary RUN --config RECIPE.yaml --output benchmarks/results/NAME.json [--note TEXT] [key=value ...]
"""

import argparse
import dataclasses
import hashlib
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lgq_hf.files import atomic_file
from training.train_tokenizer import Recipe, read_recipe


def corpus_summary(corpus: Path) -> dict[str, Any]:
    """Files and source pictures of the train split, files by package, and the manifest's hash."""
    manifest = (corpus / "manifest.jsonl").read_bytes()
    rows = [row for row in map(json.loads, manifest.splitlines()) if row["split"] == "train"]
    packages = Counter(row["package"] for row in rows)
    return {
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "files": len(rows),
        "source_pictures": len({row["source_sha256"] for row in rows}),
        "packages": dict(sorted(packages.items())),
    }


def hardware() -> str:
    """The GPU's name, or the CPU's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def summary(run: Path, recipe: Recipe, note: str) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        ValueError: where the log ends before the recipe does.
    """
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    if not rows or rows[-1]["step"] != recipe.max_steps:
        raise ValueError(f"{run} is not finished: step {rows[-1]['step'] if rows else 0} of {recipe.max_steps}")
    fields = dataclasses.asdict(recipe)
    del fields["corpus"], fields["output_dir"]  # where they lie on one machine
    fields["start_from"] = Path(recipe.start_from).parent.name  # the run's name
    return {
        "recipe": fields,
        "steps": recipe.max_steps,
        "hours": round(rows[-1]["seconds"] / 3600, 2),
        "hardware": hardware(),
        "corpus": corpus_summary(Path(recipe.corpus)),
        "last": rows[-1],
        "validation_psnr": {row["step"]: row["validation_psnr"] for row in rows if "validation_psnr" in row},
        "note": note,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--note", default="")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    result = summary(arguments.run, read_recipe(arguments.config, arguments.overrides), arguments.note)
    with atomic_file(arguments.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
