"""One optimizer step of a generator: its loss, what shares it, and when it is not taken."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.training import generator_ranks
from tests.training.generator_ranks import batches, cut, run
from tests.training.generators import CODES, KINDS, a_recipe, a_step
from tests.training.steps import forget_processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone() -> None:
    forget_processes()


def mean_over_labels(step: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss by its definition."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = step.model(**inputs).logits[..., :CODES]
    here = batch["labels"] != -100
    return F.cross_entropy(logits[here].double(), batch["labels"][here])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_all_labels_of_the_step(kind: str) -> None:
    step = a_step(a_recipe(kind), dtype=torch.float64)
    (batch,) = batches(kind, steps=1)
    wanted = mean_over_labels(step, batch)
    gradients = torch.autograd.grad(wanted, list(step.model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    passes = cut(batch, 2)
    of_means = torch.stack([mean_over_labels(step, one) for one in passes]).mean()
    step(passes, 0)
    values = step.take_values()
    assert values["loss"] == pytest.approx(wanted.item(), rel=1e-6)
    assert values["grad_norm"] == pytest.approx(float(norm), rel=1e-6)
    if kind == "masked":
        assert abs((of_means - wanted).item()) > 1e-3  # which the test above can tell from the right one
        assert values["masked_share"] == pytest.approx(float((batch["labels"] != -100).double().mean()))


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for a, b in zip(one["rows"], other["rows"], strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(tensor, other["weights"][name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_change_nothing(kind: str) -> None:
    whole = run(kind, 8)
    same(run(kind, 4), whole)
    same(run(kind, 2), whole)


@pytest.mark.slow
def test_two_processes_change_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(Path(generator_ranks.__file__)), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    for found in (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)):
        for (kind, _), one in found.items():
            same(one, run(kind, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_computes_the_loss_in_fp32(kind: str) -> None:
    (batch,) = batches(kind, steps=1)
    step = a_step(a_recipe(kind, engine={"mixed_precision": "bf16"}))
    seen = []
    step.wrapped.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.dtype))
    wanted = mean_over_labels(step, batch).item()
    step([batch], 0)
    assert seen[-1] == torch.bfloat16 and step.take_values()["loss"] == pytest.approx(wanted, rel=2e-3)
    assert all(parameter.dtype == torch.float32 for parameter in step.model.parameters())


def test_a_step_that_is_not_finite_is_not_taken_and_none_after_it() -> None:
    step = a_step(a_recipe("masked"))
    first, second = batches("masked", steps=2)
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    spoilt = step.model.head.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    step([first], 0)
    spoilt.remove()
    step([second], 1)
    assert step.failure() == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.state_dict().items())
    assert step.average is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.average.state_dict().items())


def test_norms_and_biases_are_not_decayed() -> None:
    step = a_step(a_recipe("masked", optimizer={"weight_decay": 0.3}))
    for group in step.optimizer.param_groups:
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
        assert len({parameter.ndim > 1 for parameter in group["params"]}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_model_keeps_the_names_of_its_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    step = a_step(a_recipe(kind, engine={"compile": True}))
    assert compiled == [step.model] and step.published is not step.model
