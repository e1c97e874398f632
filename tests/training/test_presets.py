"""What a recipe begins with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lgq_hf import LGQConfig
from training.recipe import PRESETS, Quantizer, read_recipe, with_preset

LEAST: dict[str, Any] = {"output_dir": "run", "max_steps": 10, "batch_size": 12, "image_size": 32}


def read(tmp_path: Path, values: dict[str, Any], *overrides: str) -> Any:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **values}))
    return read_recipe(file, list(overrides))


def fields(recipe: Any) -> dict[str, dict[str, Any]]:
    """What the recipe says of the fields that presets set."""
    return {
        "model": {name: recipe.model[name] for name in PRESETS["best"]["model"]},
        "quantizer": {name: getattr(recipe.quantizer, name) for name in PRESETS["best"]["quantizer"]},
    }


def test_both_presets_say_the_same_fields_and_are_models() -> None:
    best, paper = PRESETS["best"], PRESETS["paper"]
    for section in ("model", "quantizer"):
        assert best[section].keys() == paper[section].keys()
    for preset in PRESETS.values():
        LGQConfig(**preset["model"])
        Quantizer(**preset["quantizer"])
    assert best != paper


def test_the_published_preset_is_what_the_model_is_by_default() -> None:
    config = LGQConfig()
    assert {name: getattr(config, name) for name in PRESETS["paper"]["model"]} == PRESETS["paper"]["model"]


def test_a_recipe_begins_with_the_best_and_may_begin_with_the_published(tmp_path: Path) -> None:
    assert fields(read(tmp_path, {})) == PRESETS["best"]
    assert fields(read(tmp_path, {"preset": "paper"})) == PRESETS["paper"]
    assert fields(read(tmp_path, {}, "preset=paper")) == PRESETS["paper"]


def test_what_a_recipe_says_itself_stands(tmp_path: Path) -> None:
    recipe = read(tmp_path, {"model": {"lambda_usage": 0.7}, "quantizer": {"learning_rate_scale": 3}})
    assert recipe.model["lambda_usage"] == 0.7 and recipe.quantizer.learning_rate_scale == 3
    assert recipe.model["lambda_peak"] == PRESETS["best"]["model"]["lambda_peak"]
    assert read(tmp_path, {"model": None}).model == PRESETS["best"]["model"]


def test_the_soft_estimator_brings_its_commitment(tmp_path: Path) -> None:
    recipe = read(tmp_path, {"model": {"straight_through": "soft"}})
    assert recipe.model["commitment_weight"] == 1.0
    recipe.config()


def test_the_other_backbone_has_no_norm_to_leave_out(tmp_path: Path) -> None:
    recipe = read(tmp_path, {"model": {"backbone": "vqgan"}})
    assert "latent_group_norm" not in recipe.model and recipe.model["code_dim"] == 8
    recipe.config()


@pytest.mark.parametrize(
    "model",
    [
        {"quantizer": "vq"},
        {"quantizer": "fsq", "levels": [4, 4], "codebook_size": 16, "code_dim": 2},
        {"codebook_mode": "product", "levels": [4, 4], "codebook_size": 16, "code_dim": 2},
    ],
)
def test_presets_are_of_the_vector_form_alone(model: dict[str, Any], tmp_path: Path) -> None:
    recipe = read(tmp_path, {"model": model})
    assert recipe.model == model and recipe.quantizer == Quantizer()
    recipe.config()


def test_without_a_preset_the_fields_have_their_own_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, {"preset": "none"})
    assert recipe.model == {} and recipe.quantizer == Quantizer()


def test_the_values_that_were_given_stay_as_they_are() -> None:
    values = {**LEAST, "preset": "paper", "model": {"code_dim": 4}}
    with_preset(values, "the recipe")
    assert values == {**LEAST, "preset": "paper", "model": {"code_dim": 4}}


@pytest.mark.parametrize("model", [{"quantizer": "vq"}, {"codebook_mode": "per_channel"}])
def test_a_preset_that_is_asked_for_is_not_dropped(model: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset 'paper' of .* is of .*, got '.*': leave the preset out"):
        read(tmp_path, {"preset": "paper", "model": model})


def test_the_published_schedule() -> None:
    assert PRESETS["paper"]["quantizer"] == {
        "init_method": "random", "learning_rate_scale": 1.0, "temperature_start": 1.0, "temperature_end": 0.1,
        "temperature_schedule": "linear",
    }  # fmt: skip


@pytest.mark.parametrize("preset", ["worst", ["best"], None])
def test_an_unknown_preset_is_refused(preset: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset of .*recipe.yaml must be one of \['best', 'none', 'paper'\], got "):
        read(tmp_path, {"preset": preset})
