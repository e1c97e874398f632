"""What a run is worth at its end: the published folder with weights, recipe, results and card, and its way to the Hub.

The folder loads with `LGQTokenizer.from_pretrained`.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import nn

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.files import atomic_folder
from training.recipe import Recipe

CARD = Path(__file__).parent / "card.template.md"


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


def portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe in full, without the places of one machine: local paths keep their last name."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    values["output_dir"] = Path(values["output_dir"]).name
    if recipe.start_from:
        values["start_from"] = "/".join(Path(recipe.start_from).parts[-2:])
    for section, name in (
        ("data", "path"),
        ("data", "validation_path"),
        ("loss", "vgg_weights"),
        ("loss", "lpips_heads"),
    ):
        value = values[section][name]
        if value and (Path(value).is_absolute() or Path(value).exists()):
            values[section][name] = Path(value).name
    return values


def write_final(
    folder: Path,
    *,
    model: LGQModel,
    processor: LGQImageProcessor,
    discriminator: nn.Module | None,
    recipe: Recipe,
    results: dict[str, Any],
    logs: list[Path],
) -> None:
    """The published folder, as a whole: model, processor, discriminator, recipe, results, logs and card."""
    with atomic_folder(folder) as temporary:
        model.eval().save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if discriminator is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in discriminator.state_dict().items()}
            save_file(tensors, temporary / "discriminator.safetensors", metadata={"format": "pt"})
        (temporary / "recipe.yaml").write_text(yaml.safe_dump(portable_recipe(recipe), sort_keys=False))
        weights = hashlib.sha256((temporary / "model.safetensors").read_bytes()).hexdigest()
        results = {**results, "weights_sha256": weights}
        (temporary / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        for log in logs:
            if log.exists():
                shutil.copyfile(log, temporary / log.name)
        (temporary / "README.md").write_text(card(results, recipe, has_discriminator=discriminator is not None))


def card(results: dict[str, Any], recipe: Recipe, *, has_discriminator: bool) -> str:
    """A model card that says what the run knows of its model."""
    last = results["validation"][-1] if results["validation"] else {}
    names = {
        "psnr": "PSNR (dB)",
        "ssim": "SSIM",
        "perceptual": f"perceptual distance ({recipe.validation.perceptual})",
        "frechet": f"Fréchet distance ({recipe.validation.frechet}, {last.get('pictures', 0):.0f} pictures; no rFID)",
        "codebook_usage": f"share of codes used by {last.get('tokens', 0):.0f} tokens",
        "perplexity": "perplexity (codes)",
    }
    table = "\n".join(f"| {title} | {last[name]:.4g} |" for name, title in names.items() if name in last)
    config = results["model"]
    return Template(CARD.read_text()).substitute(
        name=Path(recipe.output_dir).name,
        codebook_size=config["codebook_size"],
        factor=config["downsampling_factor"],
        parameters=f"{config['parameters']:,}",
        table=table or "| not measured | |",
        pictures=f"{last.get('pictures', 0):.0f}",
        steps=results["steps"],
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        hours=f"{results['hours']:.2f}",
        processes=results["processes"],
        hardware=results["hardware"]["gpu"] or results["hardware"]["cpu"],
        commit=results["commit"] or "unknown",
        data=json.dumps(results["data"]),
        weights="averaged over training" if recipe.optimizer.ema_decay else "those of the last step",
        discriminator="`discriminator.safetensors` holds the discriminator, to go on training.\n"
        if has_discriminator
        else "",
    )


def prepare_push(repo_id: str, api: HfApi | None = None) -> None:
    """Creates the repository, so that a missing token or permission shows before the training and not after it."""
    (api or HfApi()).create_repo(repo_id, repo_type="model", exist_ok=True)


def push(folder: Path, repo_id: str, api: HfApi | None = None) -> str:
    """Uploads all of the published folder in one commit; returns its address."""
    info = (api or HfApi()).upload_folder(
        folder_path=folder, repo_id=repo_id, repo_type="model", commit_message=f"Upload {folder.parent.name}"
    )
    return str(info.commit_url)
