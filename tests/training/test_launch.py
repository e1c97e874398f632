"""Runs that are refused before they begin."""

from pathlib import Path

import pytest

from tests.training.steps import forget_processes
from training.train_tokenizer import main


@pytest.fixture(autouse=True)
def _alone() -> None:
    forget_processes()


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "engine.mixed_precision"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "engine.compile"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "engine.micro_batch_size"),
    ],
)
def test_what_the_launcher_is_told_must_be_in_the_recipe(
    variable: str, value: str, field: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable}={value.lower()}: say so in the recipe, by {field}"):
        main(["--config", str(recipe)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["image_size=34"], "image_size=34 is no multiple of 4, the model's downsampling"),
        (["image_size=8", "discriminator.weight=0"], "image_size=8 is too small for SSIM: 11 at least"),
        (["discriminator.num_layers=4"], "image_size=32 is too small for a discriminator of 4 layers: 48 at least"),
        (["batch_size=3"], "batch_size=3 cannot be shared by 1 processes in passes of 2"),
        (["start_from=/nowhere"], "start_from: no folder /nowhere"),
        (["data.path=/nowhere"], "no manifest.jsonl in /nowhere"),
    ],
)
def test_what_would_fail_later_fails_at_once(overrides: list[str], message: str, recipe: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["--config", str(recipe), *overrides])


def test_processes_that_do_not_know_of_each_other_are_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="launched in 2 processes, of which accelerate makes 1: on CPUs set ACC"):
        main(["--config", str(recipe)])
