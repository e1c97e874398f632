"""What a generator is judged by."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.evaluation.likelihood import code_logits, held_out_bits
from lgq_hf.generation import LGQAutoregressivePipeline, LGQMaskedPipeline
from lgq_hf.images.sheet import draw_grid
from lgq_hf.tokens import AutoregressiveCollator
from tests.training.generators import CODES, KINDS, PIXELS, a_model, a_recipe
from tests.training.steps import forget_processes
from training.generator_recipe import GeneratorRecipe
from training.token_data import TokenSets
from training.train_generator import GeneratorValidator


@pytest.fixture(autouse=True)
def _alone() -> None:
    forget_processes()


def a_recipe_on(tokens: Path, kind: str, **validation: Any) -> GeneratorRecipe:
    places = {"path": "train", "validation_path": "validation", "tokenizer": "tokenizer"}
    data = {name: str(tokens / place) for name, place in places.items()}
    return a_recipe(kind, data=data, validation=validation)


def a_validator(recipe: GeneratorRecipe) -> GeneratorValidator:
    sets = TokenSets(recipe.data)
    tokenizer = load_checkpoint(recipe.data.tokenizer, "cpu")

    def pipeline(model: Any) -> Any:
        cls = LGQMaskedPipeline if recipe.kind == "masked" else LGQAutoregressivePipeline
        return cls(tokenizer.model, tokenizer.processor, model, *sets.grid, dict(enumerate(sets.classes)) or None)

    return GeneratorValidator(Accelerator(cpu=True), recipe, sets, pipeline)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_and_pictures_in_any_batches(kind: str, tokens: Path) -> None:
    model: Any = a_model(a_recipe(kind))
    validator = a_validator(a_recipe_on(tokens, kind, rows=5, batch_size=2, samples=5))
    values, grid = validator(model)
    assert (
        model.training and values["rows"] == 5 and values["perplexity"] == pytest.approx(2 ** values["bits_per_token"])
    )
    assert values["bits_per_pixel"] == pytest.approx(values["bits_per_token"] * 16 / PIXELS**2)
    again, same = validator(model)
    assert again == values and grid is not None and same is not None and grid.tobytes() == same.tobytes()
    other, others = a_validator(a_recipe_on(tokens, kind, rows=5, batch_size=4, samples=4))(model.eval())
    assert other == pytest.approx(values) and others is not None and grid.size[0] > others.size[0]
    assert not model.training


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_that_evaluation_measures(kind: str, tokens: Path) -> None:
    model: Any = a_model(a_recipe(kind)).eval()
    validator = a_validator(a_recipe_on(tokens, kind, rows=100, samples=0))
    values, _ = validator(model)
    found, protocol = held_out_bits(validator.pipeline(model), tokens / "validation")
    assert protocol["held_out_rows"] == values["rows"] == 6
    for name in ("bits_per_token", "bits_per_pixel", "perplexity"):
        assert values[name] == pytest.approx(found[name], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_of_other_noise_each_and_as_the_recipe_says(kind: str, tokens: Path) -> None:
    model: Any = a_model(a_recipe(kind)).eval()
    with torch.no_grad():  # so that class and guidance matter
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    steps = {"num_inference_steps": 3} if kind == "masked" else {}
    options: dict[str, Any] = {"samples": 7, "guidance_scale": 3.0, **steps}
    grids = [
        np.asarray(a_validator(a_recipe_on(tokens, kind, rows=1, batch_size=size, **options))(model)[1])
        for size in (2, 7)
    ]
    assert np.abs(grids[0].astype(int) - grids[1]).max() <= 1
    validator = a_validator(a_recipe_on(tokens, kind, samples=1))
    pipe = validator.pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(number) for number in range(7)]
    wanted = pipe([0, 1, 2, 0, 1, 2, 0], generator=noise, guidance_scale=3.0, **steps).images
    captions = [validator.tokens.classes[number % 3] for number in range(7)]
    assert np.abs(np.asarray(draw_grid(wanted, captions)).astype(int) - grids[0]).max() <= 1
    assert not np.array_equal(np.asarray(wanted[0]), np.asarray(wanted[6]))  # of one class


def test_rows_are_measured_with_their_true_labels(tokens: Path) -> None:
    model: Any = a_model(a_recipe("autoregressive"))
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))  # so that the class matters
    validator = a_validator(a_recipe_on(tokens, "autoregressive", rows=100, samples=0))
    values, grid = validator(model)
    rows = [validator.tokens.validation[0, number] for number in range(6)]
    bits = []
    for row in rows:
        batch = AutoregressiveCollator(CODES, 3, shift=True)([row])
        logits = code_logits(model.eval(), batch, CODES).double()[0]
        bits.append(-logits.log_softmax(-1).gather(1, batch["labels"][0][:, None]).mean() / torch.tensor(2.0).log())
    assert grid is None and values["rows"] == 6
    assert values["bits_per_token"] == pytest.approx(torch.stack(bits).mean().item(), rel=1e-5)


class Halves:
    """Stands in for the first of two processes; `reduce` adds what the other one sent."""

    process_index, num_processes, is_main_process, device = 0, 2, True, torch.device("cpu")

    def reduce(self, sums: torch.Tensor, reduction: str) -> torch.Tensor:
        self.sent = sums
        return sums


def test_processes_share_the_rows(tokens: Path) -> None:
    model: Any = a_model(a_recipe("masked"))
    validator = a_validator(a_recipe_on(tokens, "masked", rows=5, samples=0))
    whole, _ = validator(model)
    sent = []
    for rank in range(2):
        half: Any = Halves()
        half.process_index = rank
        validator.accelerator = half
        validator(model)
        sent.append(half.sent)
    nats, rows = (sent[0] + sent[1]).tolist()
    assert (nats / rows, rows) == (pytest.approx(whole["loss"]), 5) and [int(one[1]) for one in sent] == [3, 2]


def test_captions_and_protocol(tokens: Path) -> None:
    validator = a_validator(a_recipe_on(tokens, "masked", samples=4, num_inference_steps=3))
    assert [validator._caption(label) for label in (0, 2, None)] == ["camera", "coffee", ""]
    protocol = validator.protocol()
    assert protocol["bits_per_token"].startswith("upper bound") and "2110.02037" in protocol["bits_per_token"]
    assert protocol["samples"]["num_inference_steps"] == 3 and json.loads(json.dumps(protocol)) == protocol
    exact = a_validator(a_recipe_on(tokens, "autoregressive", samples=0)).protocol()
    assert exact["bits_per_token"].startswith("exact") and exact["samples"] is None
