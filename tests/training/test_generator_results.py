"""What a published generator says of itself."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from lgq_hf.hub.publishable import HERE, STATE_BOTH, STATE_PICTURES
from lgq_hf.provenance import provenance
from tests.training.generators import a_recipe
from training.generator_recipe import GeneratorRecipe, recipe_from
from training.results import generator_card, portable_recipe


def results(recipe: GeneratorRecipe, **changes: Any) -> dict[str, Any]:
    row = {
        "step": 20.0,
        "loss": 1.0,
        "bits_per_token": 1.44269,
        "perplexity": 2.71828,
        "bits_per_pixel": 0.5,
        "rows": 9,
    }
    source = {"kind": "folder", "name": "train", "split": "train", "sha256": "0"}
    train = {"source": source, "pictures": 1234, "rows": 2468, "size": [32, 48], "manifest_sha256": "0123456789abcdef"}
    model = {
        "kind": recipe.kind,
        "pipeline": "LGQMaskedPipeline" if recipe.kind == "masked" else "LGQAutoregressivePipeline",
        "codebook_size": 4096,
        "grid": [4, 6],
        "num_classes": 2,
        "classes": ["a cat", 'say "b"'],
    }
    return {
        **provenance(strict=False),
        "steps": 20,
        "hours": 0.5,
        "processes": 1,
        "recipe": portable_recipe(recipe),
        "model": {**model, "parameters": 5_000_000, **changes.pop("model", {})},
        "data": {"train": train, "tokenizer": {"name": "org/tokens", "weights_sha256": "fedcba9876543210"}},
        "protocol": {"bits_per_token": "how it was measured"},
        "validation": [row],
        "best": {"metric": "bits_per_token", "value": 1.25, "step": 10},
        **changes,
    }


def test_the_card() -> None:
    masked = a_recipe("masked")
    text = generator_card(results(masked), masked, has_samples=True)
    assert ModelCard(text).data.library_name == "lgq_hf"
    assert f"LGQMaskedPipeline.{HERE}" in text and STATE_BOTH in text
    licensed = a_recipe("masked", report={"license": "mit"})
    assert STATE_PICTURES in generator_card(results(licensed), licensed, has_samples=True)
    assert "A masked generator (after MaskGIT" in text and 'pipe(class_labels="a cat").images[0]' in text
    assert "| bits per token | at most 1.443 |" in text and "| perplexity, in codes | at most 2.718 |" in text
    assert "4 x 6 of them make a picture, of 4,096 codes. 5,000,000 parameters" in text
    assert 'It knows 2 classes: a cat, say "b".' in text and "it is `org/tokens`, weights `fedcba987654`" in text
    assert "2,468 rows of tokens, of 1,234 pictures of 48 x 32 px (folder `train`, split `train`)" in text
    assert (
        "were at most 1.25, at step 10: the run's folder `best` has that generator." in text and "samples.png" in text
    )


def test_the_card_of_a_repository_without_classes() -> None:
    llama = a_recipe("autoregressive")
    nobody = {"num_classes": 0, "classes": []}
    found = results(llama, model=nobody, best={"metric": "bits_per_token", "value": 1.25, "step": 20})
    text = generator_card(found, llama, has_samples=False, repo_id="org/pictures")
    assert "\n# org/pictures\n" in text and 'LGQAutoregressivePipeline.from_pretrained("org/pictures")' in text
    assert "pipe(class_labels=None)" in text and "It was trained without classes." in text
    assert "| bits per token | 1.443 |" in text and "at step 20: this is it." in text and "samples.png" not in text
    numbered = {"num_classes": 1000, "classes": []}
    text = generator_card(results(llama, model=numbered), llama, has_samples=False)
    assert "It knows 1,000 classes, by number." in text and "pipe(class_labels=0)" in text


def test_a_figure_that_is_not_finite() -> None:
    recipe = a_recipe("masked")
    row = {"step": 20.0, "bits_per_token": None, "perplexity": None, "bits_per_pixel": None, "rows": 9.0}
    none = {"metric": "bits_per_token", "value": None, "step": None}
    text = generator_card(results(recipe, validation=[row], best=none), recipe, has_samples=False)
    assert "| bits per token | not finite |" in text and "The best" not in text


def test_a_recipe_without_the_places_of_one_machine(tokens: Path) -> None:
    names = {"path": "train", "validation_path": "validation", "tokenizer": "tokenizer"}
    places = {name: str(tokens / place) for name, place in names.items()}
    values = portable_recipe(a_recipe("masked", data=places))
    assert values["data"]["path"] == "train" and values["data"]["tokenizer"] == "tokenizer"
    assert recipe_from(values).data.validation_path == "validation"
    hub = a_recipe("masked", data={"tokenizer": "org/tokens"})
    assert portable_recipe(hub)["data"]["tokenizer"] == "org/tokens"
