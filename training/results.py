"""What a tokenizer's run is worth at its end: the published folder with weights, recipe, results and card.

The folder loads with `LGQTokenizer.from_pretrained`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from safetensors.torch import save_file
from torch import nn

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.files import atomic_folder, file_sha256
from training.presets import NONE
from training.published import portable, run_facts, write_records
from training.recipe import Recipe

CARD = Path(__file__).parent / "card.template.md"
WITHOUT_CODES = (
    "**This is no tokenizer yet.** It was trained without quantization, its figures are of pictures decoded from "
    "latents, and its tokens mean nothing before another run (`start_from`) has placed the codes.\n\n"
)


def corpus_summary(corpus: Path, repeat: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Files and source pictures of the train split, files by package, and the manifest's hash.

    Packages that `data.repeat` leaves out are not counted; files that it repeats count once, and `repeat` says so.
    """
    manifest = (corpus / "manifest.jsonl").read_bytes()
    rows = [row for row in map(json.loads, manifest.splitlines()) if row["split"] == "train"]
    rows = [row for row in rows if (repeat or {}).get(row["package"], 1)]
    packages = Counter(row["package"] for row in rows)
    summary = {
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "files": len(rows),
        "source_pictures": len({row["source_sha256"] for row in rows}),
        "packages": dict(sorted(packages.items())),
    }
    return summary | ({"repeat": dict(repeat)} if repeat else {})


def portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe in full, without the places of one machine: local paths keep their last name."""
    places = (("data", "path"), ("data", "validation_path"), ("loss", "vgg_weights"), ("loss", "lpips_heads"))
    values = portable(recipe, places)
    if recipe.start_from:
        values["start_from"] = "/".join(Path(recipe.start_from).resolve().parts[-2:])
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
    repo_id: str | None = None,
) -> None:
    """The published folder, as a whole: model, processor, discriminator, recipe, results, logs and card.

    Args:
        repo_id: of the repository that it will be pushed to, for the card; `None` for a card of the folder itself.
    """
    with atomic_folder(folder) as temporary:
        model.eval().save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if discriminator is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in discriminator.state_dict().items()}
            save_file(tensors, temporary / "discriminator.safetensors", metadata={"format": "pt"})
        weights = file_sha256(temporary / "model.safetensors")
        results = write_records(
            temporary, {"preset": NONE, **portable_recipe(recipe)}, {**results, "weights_sha256": weights}, logs
        )
        text = card(results, recipe, has_discriminator=discriminator is not None, repo_id=repo_id)
        (temporary / "README.md").write_text(text)


def _measured(row: dict[str, Any], recipe: Recipe) -> dict[str, tuple[str, str]]:
    """What a row of validation says, by its names: title and value with its unit."""
    features = f"Fréchet distance of {recipe.validation.frechet} features, {row.get('pictures', 0):.0f} pictures"
    titles = {
        "psnr": ("PSNR", "{:.2f} dB"),
        "ssim": ("SSIM", "{:.4f}"),
        "perceptual": (f"perceptual distance ({recipe.validation.perceptual})", "{:.4f}"),
        "frechet": (f"{features}; no FID, which has the features of Inception", "{:.2f}"),
        "codebook_usage": (f"codes used at least once by {row.get('tokens', 0):,.0f} tokens", "{:.1%}"),
        "perplexity": ("perplexity of the tokens", "{:,.1f} codes"),
    }
    return {
        name: (title, "not finite" if row[name] is None else form.format(row[name]))
        for name, (title, form) in titles.items()
        if name in row
    }


def _best(results: dict[str, Any], recipe: Recipe) -> str:
    best = results["best"]
    if best["value"] is None:
        return ""
    title, value = _measured({best["metric"]: best["value"]}, recipe)[best["metric"]]
    title = title.partition(" of ")[0]
    where = "this is it" if best["step"] == results["steps"] else "the run's folder `best` has that model"
    return f"The best {title} of the run was {value}, at step {best['step']:,}: {where}."


def _data(data: dict[str, Any]) -> str:
    """What a model was trained on, in words."""
    if data["kind"] == "corpus":
        repeat = {name: times for name, times in data.get("repeat", {}).items() if times > 1}
        packages = ", ".join(
            f"{name} ({count:,}{f', each {repeat[name]} times' if name in repeat else ''})"
            for name, count in data["packages"].items()
        )
        return (
            f"Pictures: {data['files']:,} files made of {data['source_pictures']:,} source pictures, by package: "
            f"{packages}. The manifest's sha256 begins with `{data['manifest_sha256'][:12]}`."
        )
    path = data["path"]
    kinds = {"folder": "the folder", "dataset": "the dataset", "parquet": "the parquet files"}
    place = f"[{path}](https://huggingface.co/datasets/{path})" if _is_on_hub(data) else f"`{path}`"
    titles = {"name": "configuration", "revision": "revision", "split": "split"}
    details = ", ".join(f"{title} `{data[name]}`" for name, title in titles.items() if data[name])
    return f"Pictures: {kinds[data['kind']]} {place}, {details}."


def _is_on_hub(data: dict[str, Any]) -> bool:
    return data["kind"] == "dataset" and data["path"].count("/") == 1  # local paths are their last name here


def card(results: dict[str, Any], recipe: Recipe, *, has_discriminator: bool, repo_id: str | None = None) -> str:
    """A model card that says what the run knows of its model."""
    last = results["validation"][-1] if results["validation"] else {}
    rows = [f"| {title} | {value} |" for title, value in _measured(last, recipe).values()]
    config, data = results["model"], results["data"]
    start = portable_recipe(recipe)["start_from"]
    alone = {
        None: "",
        "decoder": f"The decoder alone was trained, and tokens are those of `{start}`. ",
        "autoencoder": "Encoder and decoder were trained without quantization. ",
    }
    discriminator = " `discriminator.safetensors` holds the discriminator, to go on training."
    return Template(CARD.read_text()).substitute(
        name=repo_id or Path(recipe.output_dir).resolve().name,
        source=repo_id or ".",
        datasets=f"datasets:\n- {data['path']}\n" if _is_on_hub(data) else "",
        codebook_size=f"{config['codebook_size']:,}",
        factor=config["downsampling_factor"],
        parameters=f"{config['parameters']:,}",
        table="\n".join(rows) or "| nothing was measured | |",
        best=_best(results, recipe),
        pictures=f"{last.get('pictures', 0):,.0f}",
        image_size=recipe.image_size,
        alone=alone[recipe.train_only],
        warning=WITHOUT_CODES if recipe.train_only == "autoencoder" else "",
        data=_data(data),
        discriminator=discriminator if has_discriminator else "",
        **run_facts(results, recipe),
    )
