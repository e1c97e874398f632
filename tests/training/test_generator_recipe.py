"""Recipes of generators: what their files may say, and that the published ones can be run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaForCausalLM

from lgq_hf.generation import LGQMaskedTransformer
from tests.training.published import GENERATORS, ROOT
from training.generator_recipe import read_recipe, recipe_from
from training.optimization import decayed_groups
from training.run_recipe import flat

LEAST: dict[str, Any] = {"output_dir": "run", "kind": "masked", "max_steps": 10, "batch_size": 12}
LLAMA = {**LEAST, "kind": "autoregressive"}
MILLIONS = {
    "tiny_masked_cpu": 2.6,
    "tiny_ar_cpu": 3.3,
    "debian_masked": 82,
    "debian_ar": 85,
    "debian_masked_cpu": 6.0,
    "debian_ar_cpu": 6.9,
}


@pytest.fixture(params=GENERATORS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_recipes_of_both_kinds() -> None:
    assert {read_recipe(path, []).kind for path in GENERATORS} == {"masked", "autoregressive"}


def test_published_networks_can_be_built(path: Path) -> None:
    recipe = read_recipe(path, [])
    side = int(re.findall(r"--size (\d+)", path.read_text())[0]) // 8
    config: Any = recipe.config(codebook_size=4096, num_classes=12, grid=(side, side))
    with torch.device("meta"):
        model = LGQMaskedTransformer(config) if recipe.kind == "masked" else LlamaForCausalLM(config)
    grouped = [p for group in decayed_groups(model.parameters(), recipe.optimizer) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    assert model.num_parameters() / 1e6 == pytest.approx(MILLIONS[path.stem], rel=0.05)


def test_published_recipes_measure_and_save_before_they_end(path: Path) -> None:
    recipe = read_recipe(path, [])
    assert max(recipe.validation.every, recipe.report.checkpoint_every, recipe.report.log_every) < recipe.max_steps
    assert recipe.optimizer.warmup_steps < recipe.max_steps / 4
    assert recipe.micro_batches(1)[0] * recipe.micro_batches(1)[1] == recipe.batch_size


def test_the_head_of_a_recipe_says_how_to_run_it(path: Path) -> None:
    recipe, text = read_recipe(path, []), path.read_text()
    head = " ".join(line.lstrip("# ") for line in text[: text.index("output_dir:")].splitlines())
    assert f"-m training.train_generator --config {path.relative_to(ROOT)}" in head
    for split, place in (("train", recipe.data.path), ("validation", recipe.data.validation_path)):
        assert f"lgq tokenize corpus/images/{split} --output {place} --split {split} --size" in head
    assert re.search(r"Hardware: .*(GPU|CPU)", head) and re.search(r"not run|docs/generating.md", head)


def test_the_least_recipe_and_its_defaults() -> None:
    recipe = recipe_from(LEAST)
    assert (recipe.kind, recipe.data.mask_schedule, recipe.data.label_dropout) == ("masked", "cosine", 0.1)
    assert flat(recipe)["validation.num_inference_steps"] == 12 and recipe_from(LLAMA).model == {}


def test_the_model_is_that_of_the_tokens() -> None:
    masked = recipe_from({**LEAST, "model": {"hidden_size": 32}})
    config: Any = masked.config(codebook_size=7, num_classes=3, grid=(2, 5))
    assert (config.codebook_size, config.num_classes, config.grid_height, config.grid_width) == (7, 3, 2, 5)
    llama: Any = recipe_from(LLAMA).config(codebook_size=7, num_classes=3, grid=(2, 5))
    assert llama.vocab_size == 11 and llama.max_position_embeddings == 11


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3}, r"unknown keys \['steps'\] in the recipe; known: \['output_dir', 'kind', "),
        ({"kind": "diffusion"}, r"'kind' expected one of \('masked', 'autoregressive'\), got diffusion"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"model": {"width": 8}}, r"unknown keys \['width'\] in model of the recipe; known: .*'hidden_size'"),
        ({"model": {"num_classes": 8}}, r"unknown keys \['num_classes'\] in model of the recipe"),
        ({"data": {"label_dropout": 1.5}}, r"data\.label_dropout must lie in \[0, 1\], got 1\.5"),
        ({"data": {"num_workers": -1}}, r"data\.num_workers must be at least 0, got -1"),
        ({"data": {"num_classes": 0}}, r"data\.num_classes must be at least 1, got 0"),
        ({"data": {"mask_schedule": "cubic"}}, r"'mask_schedule' expected one of \('cosine', 'linear'"),
        (
            {"data": {"use_labels": False, "label_dropout": 0.2}},
            r"data\.label_dropout=0\.2 needs labels, and data\.use",
        ),
        ({"data": {"use_labels": False, "num_classes": 2}}, r"data\.num_classes=2 needs labels"),
        (
            {"data": {"use_labels": False}, "validation": {"guidance_scale": 2}},
            r"validation\.guidance_scale=2 needs labels, and data\.use_labels is false: leave it out",
        ),
        (
            {"data": {"label_dropout": 0}, "validation": {"guidance_scale": 2}},
            r"guidance_scale=2 compares with pictures of no class, which are learned only where data\.label_dropout",
        ),
        ({"validation": {"every": 0}}, r"validation\.every must be at least 1, got 0"),
        ({"validation": {"rows": 0}}, r"validation\.rows must be at least 1, got 0"),
        ({"validation": {"samples": -1}}, r"validation\.samples must be at least 0, got -1"),
        ({"validation": {"guidance_scale": -1}}, r"validation\.guidance_scale must be 0 or more, got -1"),
        ({"engine": {"channels_last": True}}, r"unknown keys \['channels_last'\] in engine"),
        ({"optimizer": {"learning_rate": 0}}, r"optimizer\.learning_rate must be positive, got 0"),
    ],
    ids=str,
)
def test_what_a_recipe_must_not_say(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        recipe_from({**LEAST, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data": {"mask_schedule": "linear"}},
            r"data\.mask_schedule='linear' is for kind 'masked', got 'autoregressi",
        ),
        ({"validation": {"num_inference_steps": 8}}, r"validation\.num_inference_steps=8 is for kind 'masked'"),
        ({"model": {"dropout": 0.1}}, r"unknown keys \['dropout'\] in model of the recipe; known: "),
        ({"model": {"vocab_size": 8}}, r"unknown keys \['vocab_size'\] in model"),
    ],
    ids=str,
)
def test_what_an_autoregressive_recipe_must_not_say(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        recipe_from({**LLAMA, **values})


def test_what_a_recipe_must_say(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("max_steps: 3\n")
    with pytest.raises(ValueError, match=r"short.yaml lacks \['batch_size', 'kind', 'output_dir'\]"):
        read_recipe(file, [])
    whole = ["batch_size=4", "kind=masked", "output_dir=run", "model.hidden_size=48", "optimizer.learning_rate=1e-5"]
    recipe = read_recipe(file, whole)
    assert recipe.model == {"hidden_size": 48} and recipe.optimizer.learning_rate == 1e-5
