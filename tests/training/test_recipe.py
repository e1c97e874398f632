"""Recipes: what their files may say, and that the published ones can be run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from tests.training.published import ROOT, TOKENIZERS
from training.losses import PatchDiscriminator
from training.optimization import parameter_groups
from training.recipe import Recipe, read_recipe, recipe_from
from training.run_recipe import flat, learning_rate_factor, temperature_at

LEAST: dict[str, Any] = {"output_dir": "run", "max_steps": 10, "batch_size": 12, "image_size": 32}


@pytest.fixture(params=TOKENIZERS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_recipes() -> None:
    assert len(TOKENIZERS) >= 5


def test_published_networks_can_be_built(path: Path) -> None:
    recipe = read_recipe(path, [])
    config = LGQConfig(**recipe.model)
    LGQImageProcessor(**recipe.processor)
    with torch.device("meta"):
        model = LGQModel(config)
        gan = recipe.discriminator
        PatchDiscriminator(gan.base_channels, gan.num_layers, gan.norm)
    grouped = [p for group in parameter_groups(model, recipe) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    assert recipe.image_size % config.spatial_downsample_factor == 0
    assert recipe.image_size // 2**gan.num_layers - 2 >= 4  # logits on each side


def test_published_schedules(path: Path) -> None:
    recipe = read_recipe(path, [])
    optimizer, quantizer, last = recipe.optimizer, recipe.quantizer, recipe.max_steps - 1
    factors = [
        learning_rate_factor(
            step,
            warmup_steps=optimizer.warmup_steps,
            max_steps=recipe.max_steps,
            schedule=optimizer.schedule,
            end_factor=float(optimizer.end_factor),
        )
        for step in (0, last // 2, last)
    ]
    assert all(0 < factor <= 1 for factor in factors)
    if optimizer.schedule == "cosine":
        assert factors[0] < 0.1 and factors[1] > 0.3 and factors[2] == pytest.approx(optimizer.end_factor, abs=1e-4)
    temperatures = [
        temperature_at(
            step,
            start=float(quantizer.temperature_start),
            end=float(quantizer.temperature_end),
            steps=quantizer.temperature_steps or recipe.max_steps,
            schedule=quantizer.temperature_schedule,
        )
        for step in (0, last // 2, last)
    ]
    ends = [quantizer.temperature_start, quantizer.temperature_end]
    assert [temperatures[0], temperatures[2]] == pytest.approx(ends)
    assert temperatures[0] >= temperatures[1] >= temperatures[2]
    assert temperatures[0] > temperatures[2] or quantizer.init_method == "keep"  # codes that are learned may stay hard
    assert optimizer.warmup_steps < recipe.max_steps and quantizer.temperature_steps <= recipe.max_steps


def test_published_discriminators_are_heard(path: Path) -> None:
    recipe = read_recipe(path, [])
    gan = recipe.discriminator
    assert gan.weight == 0 or gan.start + gan.warmup + gan.ramp < recipe.max_steps


def test_published_recipes_measure_and_save_before_they_end(path: Path) -> None:
    recipe = read_recipe(path, [])
    assert max(recipe.validation.every, recipe.report.checkpoint_every, recipe.report.log_every) < recipe.max_steps


def test_the_head_of_a_recipe_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    head = " ".join(line.lstrip("# ") for line in text[: text.index("output_dir:")].splitlines())
    assert f"-m training.train_tokenizer --config {path.relative_to(ROOT)}" in head
    assert re.search(r"Hardware: .*(GPU|CPU)", head)
    assert re.search(r"metric|[Hh]ours|Not run here|Time and metrics", head)
    for line in re.findall(r"^# +\.\.\. ((?:[a-z_.]+=\S+ ?)+)$", text, re.MULTILINE):  # variants of it
        read_recipe(path, line.split()).config()


def test_the_least_recipe_and_its_defaults() -> None:
    recipe = recipe_from(LEAST)
    assert (recipe.max_steps, recipe.seed, recipe.model, recipe.data.kind) == (10, 0, {}, "corpus")
    assert recipe.optimizer.betas is not recipe_from(LEAST).optimizer.betas


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3}, r"unknown keys \['steps'\] in the recipe; known: \['output_dir', 'max_steps', "),
        ({"loss": {"kind": 1, "a": 2}}, r"unknown keys \['a', 'kind'\] in loss of the recipe; known: \['pixel', "),
        ({"data": 3}, "data of the recipe must hold fields, got 3"),
        ({"model": {"codebok_size": 4096}}, r"unknown keys \['codebok_size'\] in model of the recipe; known: "),
        ({"data": []}, r"data of the recipe must hold fields, got \[\]"),
        ({"optimizer": {"schedule": "constant", "end_factor": 0.1}}, "end_factor=0.1 needs a schedule that falls"),
        ({"validation": {"frechet": "efficientnet-lite0", "pictures": 1}}, "needs at least 2 validation.pictures"),
        ({"validation": {"perceptual": "lpips-vgg16"}}, "needs the files loss.vgg_weights and loss.lpips_heads"),
        ({"quantizer": {"init_method": "keep"}}, "quantizer.init_method=keep needs start_from"),
        (
            {"train_only": "decoder", "start_from": "a folder", "quantizer": {"init_method": "random"}},
            "train_only=decoder needs start_from and quantizer.init_method=keep, got init_method=random: its codebook",
        ),
        (
            {"model": {"quantizer": "vq"}, "quantizer": {"temperature_end": 0.5}},
            "quantizer.temperature_end is LGQ's, and model.quantizer is 'vq': leave it out, got 0.5",
        ),
        ({"max_steps": "many"}, "'max_steps' expected int, got str"),
        ({"max_steps": 1.5}, "'max_steps' expected int, got float"),
        ({"seed": True}, "'seed' expected int, got bool"),
        ({"engine": {"compile": 1}}, "'compile' expected bool, got int"),
        (
            {"engine": {"mixed_precision": "fp8"}},
            r"'mixed_precision' expected one of \('no', 'bf16', 'fp16'\), got fp8",
        ),
        ({"data": {"area": [0.5, "all"]}}, "Invalid item at index 1 in list 'area'"),
        ({"model": [1]}, "'model' expected a dict, got list"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"image_size": -8}, "image_size must be at least 1, got -8"),
        ({"data": {"max_scale": 0.5}}, "data.max_scale must be at least 1, got 0.5"),
        ({"data": {"area": [0.5, 1.5]}}, r"data.area must be \[low, high\] with 0 < low <= high <= 1.0, got"),
        ({"data": {"area": [0, 1]}}, r"data.area must be \[low, high\]"),
        ({"data": {"aspect": [2, 1]}}, r"data.aspect must be .* <= inf, got \[2, 1\]"),
        ({"data": {"aspect": [1]}}, r"data.aspect must be .* got \[1\]"),
        ({"data": {"flip": 1.1}}, r"data.flip must lie in \[0, 1\], got 1.1"),
        ({"data": {"max_broken": -0.1}}, r"data.max_broken must lie in \[0, 1\], got -0.1"),
        ({"data": {"num_workers": -1}}, "data.num_workers must be 0 or more"),
        ({"data": {"shuffle_buffer": 0}}, "data.shuffle_buffer at least 1"),
        ({"data": {"repeat": {"a": -1}}}, r"data.repeat is for .* counts 0, 1, ..., got kind 'corpus' and {'a': -1}"),
        ({"data": {"repeat": {"a": 1.5}}}, "'repeat'"),
        ({"data": {"repeat": {"a": 2}, "kind": "folder"}}, "data.repeat is for kind 'corpus' .* got kind 'folder'"),
        ({"data": {"streaming": True}}, "data.streaming is for kind 'dataset' and 'parquet', got 'corpus'"),
        ({"loss": {"pixel_weight": -1}}, "loss.pixel_weight and loss.perceptual_weight must be 0 or more"),
        ({"loss": {"perceptual_weight": -1}}, "loss.pixel_weight and loss.perceptual_weight must be 0 or more"),
        (
            {"loss": {"perceptual": "lpips-vgg16", "vgg_weights": "x"}},
            "needs the files loss.vgg_weights and loss.lpips_heads",
        ),
        *(
            ({"discriminator": {name: -1}}, f"discriminator.{name} must be 0 or more, got -1")
            for name in ("weight", "start", "warmup", "ramp", "lecam", "adaptive_cap", "learning_rate", "weight_decay")
        ),
        (
            {"discriminator": {"betas": [0.5, 1]}},
            r"discriminator.betas must be two values in \[0, 1\), got \[0.5, 1\]",
        ),
        ({"quantizer": {"init_pictures": 0}}, "quantizer.init_pictures must be positive, got 0"),
        ({"quantizer": {"init_vectors": 0}}, "quantizer.init_vectors must be positive, got 0"),
        ({"quantizer": {"temperature_start": 0}}, "quantizer.temperature_start must be positive, got 0"),
        ({"quantizer": {"temperature_end": -1}}, "quantizer.temperature_end must be positive, got -1"),
        ({"quantizer": {"temperature_steps": -1}}, "quantizer.temperature_steps and learning_rate_scale must be 0"),
        ({"quantizer": {"learning_rate_scale": -1}}, "quantizer.temperature_steps and learning_rate_scale must be 0"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer.betas must be two values in \[0, 1\), got \[0.9\]"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate must be positive, got 0"),
        ({"optimizer": {"max_grad_norm": 0}}, "optimizer.max_grad_norm must be positive, got 0"),
        ({"optimizer": {"warmup_steps": -1}}, "optimizer.warmup_steps and optimizer.weight_decay must be 0 or more"),
        ({"optimizer": {"weight_decay": -1}}, "optimizer.warmup_steps and optimizer.weight_decay must be 0 or more"),
        ({"optimizer": {"ema_decay": 1}}, r"optimizer.ema_decay must lie in \[0, 1\), got 1"),
        ({"optimizer": {"end_factor": 1}}, r"optimizer.end_factor must lie in \[0, 1\), got 1"),
        ({"validation": {"every": 0}}, "validation.every must be at least 1, got 0"),
        ({"validation": {"sheet": 0}}, "validation.sheet must be at least 1, got 0"),
        ({"validation": {"best": "frechet"}}, "validation.best=frechet needs validation.frechet to be set"),
        ({"validation": {"best": "perceptual"}}, "validation.best=perceptual needs validation.perceptual to be set"),
        ({"report": {"checkpoints_kept": 0}}, "report.checkpoints_kept must be at least 1, got 0"),
    ],
    ids=str,
)
def test_what_a_recipe_must_not_say(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        recipe_from({**LEAST, **values})


def test_what_a_recipe_must_say(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("image_size: 32\nmax_steps: 3\n")
    with pytest.raises(ValueError, match=r"short.yaml lacks \['batch_size', 'output_dir'\]"):
        read_recipe(file, [])
    file.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"short.yaml must hold fields, got \[1\]"):
        read_recipe(file, [])
    file.write_text("")
    with pytest.raises(ValueError, match=r"lacks \['batch_size', 'image_size', 'max_steps', 'output_dir'\]"):
        read_recipe(file, [])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe whose section `loss` is there and empty."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(LEAST) + "optimizer:\n  learning_rate: 3e-4\n  betas: [0.9, 1e-3]\nloss:\n")
    return path


def test_numbers_as_people_write_them(file: Path) -> None:
    recipe = read_recipe(file, [])
    assert recipe.optimizer.learning_rate == 3e-4 and recipe.optimizer.betas == [0.9, 1e-3]
    assert read_recipe(file, ["optimizer.learning_rate=1e-5"]).optimizer.learning_rate == 1e-5
    assert read_recipe(file, ["optimizer.weight_decay=.5E+1"]).optimizer.weight_decay == 5.0
    assert read_recipe(file, ["model.lambda_floor=1E-2"]).model["lambda_floor"] == 0.01
    assert read_recipe(file, ["output_dir=runs/2e-4_wide"]).output_dir == "runs/2e-4_wide"


def test_places_are_no_numbers(file: Path) -> None:
    recipe = read_recipe(file, ["data.path='1e5'", "data.revision='12e45'", "loss.pixel_weight=1e-2"])
    assert (recipe.data.path, recipe.data.revision, recipe.loss.pixel_weight) == ("1e5", "12e45", 0.01)


def test_overrides_into_a_section_that_is_empty_or_none(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: x\nmax_steps: 1\nbatch_size: 1\nimage_size: 8\nloss:\n")
    assert read_recipe(path, ["loss.pixel=l2"]).loss.pixel == "l2"
    with pytest.raises(ValueError, match="output_dir holds no fields, but 'x'"):
        read_recipe(path, ["output_dir.name=3"])


def test_overrides(file: Path) -> None:
    recipe = read_recipe(
        file, ["seed=7", "model.codebook_size=64", "data.path=a=b", "data.area=[0.25, 0.5]", "report.tracker=trackio"]
    )
    assert (recipe.seed, recipe.model["codebook_size"], recipe.data.path) == (7, 64, "a=b")
    assert recipe.data.area == [0.25, 0.5] and recipe.report.tracker == "trackio"
    assert recipe.optimizer.learning_rate == 3e-4
    assert read_recipe(file, ["start_from=null"]).start_from is None
    with pytest.raises(ValueError, match="expected key=value, got 'seed'"):
        read_recipe(file, ["seed"])
    with pytest.raises(ValueError, match=r"unknown keys \['lr'\] in optimizer of .*recipe.yaml; known: "):
        read_recipe(file, ["optimizer.lr=1"])


@pytest.mark.parametrize(
    ("micro_batch_size", "processes", "wanted"),
    [(0, 1, (12, 1)), (0, 3, (4, 1)), (2, 1, (2, 6)), (2, 3, (2, 2)), (1, 12, (1, 1))],
)
def test_sharing_a_batch(micro_batch_size: int, processes: int, wanted: tuple[int, int]) -> None:
    recipe = recipe_from({**LEAST, "engine": {"micro_batch_size": micro_batch_size}})
    assert recipe.micro_batches(processes) == wanted
    assert wanted[0] * wanted[1] * processes == recipe.batch_size


@pytest.mark.parametrize(("micro_batch_size", "processes"), [(0, 5), (0, 24), (5, 1), (8, 3), (24, 1), (-4, 1)])
def test_batches_that_cannot_be_shared(micro_batch_size: int, processes: int) -> None:
    recipe = recipe_from({**LEAST, "engine": {"micro_batch_size": micro_batch_size}})
    message = (
        f"batch_size=12 cannot be shared by {processes} processes in passes of .* multiple of {processes} x engine"
    )
    with pytest.raises(ValueError, match=message):
        recipe.micro_batches(processes)


def test_flat_names_every_field() -> None:
    recipe: Recipe = recipe_from({**LEAST, "model": {"codebook_size": 8}, "loss": {"pixel": "l2"}})
    fields = flat(recipe)
    assert fields["loss.pixel"] == "l2" and fields["model"] == {"codebook_size": 8} and fields["max_steps"] == 10
    assert "loss" not in fields and "model.codebook_size" not in fields
    sections: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, key = name.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[key] = value
    assert recipe_from(sections) == recipe
