"""What a generator's run is worth at its end: a pipeline's folder, with recipe, results, logs, samples and card."""

import json
import shutil
from pathlib import Path
from string import Template
from typing import Any

from lgq_hf.checkpoint.loading import SHORT, weights_fingerprint
from lgq_hf.files import atomic_folder
from training.generator_recipe import GeneratorRecipe
from training.published import portable, run_facts, write_records

CARD = Path(__file__).parent / "generator_card.template.md"
_KINDS = {
    "masked": "A masked generator (after MaskGIT, arXiv 2202.04200)",
    "autoregressive": "An autoregressive generator (a Llama, after LlamaGen, arXiv 2406.06525)",
}
_LISTED = 20  # classes that a card names


def portable_recipe(recipe: GeneratorRecipe) -> dict[str, Any]:
    """The recipe in full, without the places of one machine: local paths keep their last name."""
    return portable(recipe, [("data", name) for name in ("path", "validation_path", "tokenizer")])


def write_final(
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
        text = card(results, recipe, has_samples=samples.exists(), repo_id=repo_id)
        (temporary / "README.md").write_text(text)


def card(results: dict[str, Any], recipe: GeneratorRecipe, *, has_samples: bool, repo_id: str | None = None) -> str:
    """A model card that says what the run knows of its generator."""
    model, data = results["model"], results["data"]
    last, best = results["validation"][-1], results["best"]
    bound = "at most " if recipe.kind == "masked" else ""
    bits, perplexity, pixel_bits = (
        _number(last[name], bound) for name in ("bits_per_token", "perplexity", "bits_per_pixel")
    )
    where = "this is it" if best["step"] == results["steps"] else "the run's folder `best` has that generator"
    picture = "![samples](samples.png)\n\nClasses in turn, not chosen.\n" if has_samples else ""
    return Template(CARD.read_text()).substitute(
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
        data=_data(data["train"]),
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


def _data(train: dict[str, Any]) -> str:
    height, width = train["size"]
    source = train["source"]
    return (
        f"{train['rows']:,} rows of tokens, of {train['pictures']:,} pictures of {width} x {height} px "
        f"({source['kind']} `{source['name']}`, split `{source['split']}`). The manifest's sha256 begins with "
        f"`{train['manifest_sha256'][:SHORT]}`."
    )
