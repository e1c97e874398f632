"""What a run is worth at its end."""

import dataclasses
import hashlib
import json
import math
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import nn

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import SHORT, weights_fingerprint
from lgq_hf.files import atomic_folder, file_sha256
from lgq_hf.hub import check_publishable, push
from lgq_hf.hub.publishable import STATE_BOTH, STATE_PICTURES
from training.generator_recipe import GeneratorRecipe
from training.recipe import NONE, Recipe
from training.run_recipe import Report, RunRecipe


def portable_place(place: str) -> str:
    """A local path's last name; other names, such as repositories, as they are."""
    return Path(place).name if Path(place).is_absolute() or Path(place).exists() else place


_PATHS = {  # fields of a section that may be places of one machine
    "data": ("path", "validation_path", "tokenizer"),
    "loss": ("vgg_weights", "lpips_heads"),
}


def portable_recipe(recipe: RunRecipe) -> dict[str, Any]:
    """The recipe in full, without the places of one machine: of its output folder and of paths the last name stays.

    Where it was published is left out: who does it again does not publish in the same place.
    """
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    values["output_dir"] = Path(values["output_dir"]).resolve().name
    values["report"] |= {"push_to_hub": None, "hub_private": False}
    for section, names in _PATHS.items():
        for name in names:
            if value := values.get(section, {}).get(name):
                values[section][name] = portable_place(value)
    if values.get("start_from"):
        values["start_from"] = "/".join(Path(values["start_from"]).resolve().parts[-2:])
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


TOKENIZER_CARD = Path(__file__).parent / "card.template.md"
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


def write_tokenizer(
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
        text = tokenizer_card(results, recipe, has_discriminator=discriminator is not None, repo_id=repo_id)
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


def tokenizer_card(
    results: dict[str, Any], recipe: Recipe, *, has_discriminator: bool, repo_id: str | None = None
) -> str:
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
    return Template(TOKENIZER_CARD.read_text()).substitute(
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


GENERATOR_CARD = Path(__file__).parent / "generator_card.template.md"
_KINDS = {
    "masked": "A masked generator (after MaskGIT, arXiv 2202.04200)",
    "autoregressive": "An autoregressive generator (a Llama, after LlamaGen, arXiv 2406.06525)",
}
_LISTED = 20  # classes that a card names


def write_generator(
    folder: Path,
    *,
    pipeline: Any,
    recipe: GeneratorRecipe,
    results: dict[str, Any],
    logs: list[Path],
    samples: Path,
    repo_id: str | None = None,
) -> None:
    """The published folder, as a whole.

    Args:
        samples: the last grid of samples; left out where there is no such file.
        repo_id: of the repository that it will be pushed to, for the card; `None` for a card of the folder itself.
    """
    with atomic_folder(folder) as temporary:
        pipeline.save_pretrained(temporary)
        weights = weights_fingerprint(temporary / "transformer")
        results = write_records(temporary, portable_recipe(recipe), {**results, "weights_sha256": weights}, logs)
        if samples.exists():
            shutil.copyfile(samples, temporary / "samples.png")
        text = generator_card(results, recipe, has_samples=samples.exists(), repo_id=repo_id)
        (temporary / "README.md").write_text(text)


def generator_card(
    results: dict[str, Any], recipe: GeneratorRecipe, *, has_samples: bool, repo_id: str | None = None
) -> str:
    """A model card that says what the run knows of its generator."""
    model, data = results["model"], results["data"]
    last, best = results["validation"][-1], results["best"]
    bound = "at most " if recipe.kind == "masked" else ""
    bits, perplexity, pixel_bits = (
        _number(last[name], bound) for name in ("bits_per_token", "perplexity", "bits_per_pixel")
    )
    where = "this is it" if best["step"] == results["steps"] else "the run's folder `best` has that generator"
    picture = "![samples](samples.png)\n\nClasses in turn, not chosen.\n" if has_samples else ""
    return Template(GENERATOR_CARD.read_text()).substitute(
        name=repo_id or Path(recipe.output_dir).resolve().name,
        source=repo_id or ".",
        kind=_KINDS[recipe.kind],
        pipeline=model["pipeline"],
        label=json.dumps(model["classes"][0]) if model["classes"] else "0" if model["num_classes"] else "None",
        parameters=f"{model['parameters']:,}",
        height=model["grid"][0],
        width=model["grid"][1],
        codebook_size=f"{model['codebook_size']:,}",
        classes=_classes(model),
        tokenizer=data["tokenizer"]["name"],
        tokenizer_sha256=data["tokenizer"]["weights_sha256"][:SHORT],
        bits=bits,
        perplexity=perplexity,
        pixel_bits=pixel_bits,
        rows=f"{last['rows']:,.0f}",
        protocol=results["protocol"]["bits_per_token"],
        best=""
        if best["value"] is None
        else f"The best bits per token of the run were {_number(best['value'], bound)}, at step {best['step']:,}: "
        f"{where}.",
        samples=picture,
        data=_tokens(data["train"]),
        **run_facts(results, recipe),
    )


def _number(value: float | None, bound: str = "") -> str:
    return "not finite" if value is None else f"{bound}{value:,.4g}"


def _classes(model: dict[str, Any]) -> str:
    """How many classes there are, and the first names."""
    if not model["num_classes"]:
        return "It was trained without classes."
    names = model["classes"]
    if not names:
        return f"It knows {model['num_classes']:,} classes, by number."
    listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f"It knows {len(names):,} classes: {listed}."


def _tokens(train: dict[str, Any]) -> str:
    height, width = train["size"]
    source = train["source"]
    return (
        f"{train['rows']:,} rows of tokens, of {train['pictures']:,} pictures of {width} x {height} px "
        f"({source['kind']} `{source['name']}`, split `{source['split']}`). The manifest's sha256 begins with "
        f"`{train['manifest_sha256'][:SHORT]}`."
    )
