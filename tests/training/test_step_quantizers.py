"""Quantizers other than LGQ's in the trainer's step."""

import math
from typing import Any

import pytest
import torch

from tests.training import steps
from training.step import TrainingStep

PLAIN = {"lambda_usage": 0.005, "lambda_peak": 0.005, "lambda_floor": 0.0, "min_perplexity": 0.0}
DEAD = {"dead_code_threshold": 0.3, "codebook_decay": 0.5}
OTHERS: dict[str, dict[str, Any]] = {
    "lgq_dead": {**DEAD, "lambda_usage": 0.5},
    "vq_ema": {**DEAD, "quantizer": "vq", "codebook_update": "ema"},
    "vq_dead": {**DEAD, "quantizer": "vq"},
    "vq_cosine_dead": {**DEAD, "quantizer": "vq", "distance": "cosine"},
    "simvq": {"quantizer": "simvq", "learn_projection": True},
    "fsq": {"quantizer": "fsq", "levels": [4] * 4, "code_dim": 4, "codebook_size": 256},
    "ibq": {"quantizer": "ibq", "distance": "dot", "entropy_weight": 0.5, "entropy_temperature": 0.5},
    "lfq": {
        "quantizer": "lfq", "codebook_size": 16, "entropy_weight": 0.5, "entropy_temperature": 1.0, "entropy_bits": 2,
    },
    "bsq": {"quantizer": "bsq", "codebook_size": 16, "entropy_weight": 0.5, "entropy_temperature": 1.0},
}  # fmt: skip


def make(name: str) -> TrainingStep:
    steps.forget_processes()
    step = steps.make(steps.changed(model={**PLAIN, **OTHERS[name]}, discriminator={"weight": 0}), dtype=torch.float64)
    with torch.no_grad():
        latents = step.model.latents(steps.pictures(torch.float64)[0])
        step.model.quantizer.init_from(latents, "random", torch.Generator().manual_seed(0))
    return step


@pytest.mark.parametrize("name", OTHERS)
def test_passes_are_one_step(name: str) -> None:
    results = []
    for size in (8, 2):
        step = make(name)
        rows = steps.run(step, steps.pictures(torch.float64, 3), size)
        results.append((rows, steps.weights(step)))
    for left, right in zip(results[0][0], results[1][0], strict=True):
        assert left == pytest.approx(right, rel=1e-6, abs=1e-6)
    for key, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][key], rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["lgq_dead", "vq_ema", "vq_dead", "vq_cosine_dead"])
def test_the_codebook_is_looked_after_once_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(name)
    quantizer, upkeep = step.model.quantizer, step.model.quantizer.upkeep
    tokens: list[torch.Tensor] = []
    quantizer.register_forward_hook(lambda module, inputs, output: tokens.append(output.image_tokens.flatten()))
    step(list(steps.pictures(torch.float64)[0].split(4)), 0, measure=True)
    seen = torch.cat(tokens[:2])  # the third pass only measures the estimator's gain
    counts = torch.bincount(seen, minlength=32).double() / len(seen)
    shares = 0.5 / 32 + 0.5 * counts
    wanted = torch.where(shares < 0.3 / 32, 1 / 32, shares)
    torch.testing.assert_close(upkeep.shares_K, wanted)
    assert int(upkeep.steps) == 1 and not upkeep._seen
    table = quantizer.centers if name == "lgq_dead" else quantizer.codebook
    if not table.requires_grad:  # the average has what this step made of it
        assert torch.equal(step.average.average.quantizer.codebook, table)
    before = {key: value.clone() for key, value in quantizer.state_dict().items() if key != "temperature"}
    monkeypatch.setattr(step.model, "_check_pixels", lambda pixels: None)
    step([torch.full((8, 3, 16, 16), math.nan, dtype=torch.float64)], 1)
    assert step.failure() == 1
    for key, value in before.items():
        assert torch.equal(value, quantizer.state_dict()[key]), key
