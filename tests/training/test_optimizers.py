"""Parameter groups, rates, and a step that can be called off."""

from typing import Any

import pytest
import torch
from torch import nn

from lgq_hf import LGQConfig, LGQModel
from tests.training import steps
from training.optimization import (
    discriminator_optimizer,
    gradients_norm,
    model_optimizer,
    parameter_groups,
    set_learning_rate,
    step_unless,
)
from training.recipe import Recipe

OPTIMIZER = {"learning_rate": 2e-3, "weight_decay": 0.03, "betas": [0.8, 0.9], "warmup_steps": 4, "end_factor": 0.1}


def recipe(**changes: Any) -> Recipe:
    return steps.changed(optimizer=OPTIMIZER, quantizer={"learning_rate_scale": 10}, **changes)


def model(**changes: Any) -> LGQModel:
    return LGQModel(LGQConfig(**{**steps.VALUES["model"], **changes}))


@pytest.mark.parametrize("changes", [{}, {"learn_widths": True, "code_dim": 4}, {"codebook_mode": "per_channel"}])
def test_groups(changes: dict[str, Any]) -> None:
    network = model(**changes)
    rest, flat, quantizer = parameter_groups(network, recipe())
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [[names[id(parameter)] for parameter in group["params"]] for group in (rest, flat, quantizer)]
    assert sorted(found[0] + found[1] + found[2]) == sorted(names.values())
    assert all(name.startswith("quantizer.") for name in found[2])
    assert not any(name.startswith("quantizer.") for name in found[0] + found[1])
    assert "encoder.stem.weight" in found[0] and "encoder.stem.bias" in found[1]
    assert all(p.ndim > 1 for p in rest["params"]) and all(p.ndim < 2 for p in flat["params"])
    assert [group["weight_decay"] for group in (rest, flat, quantizer)] == [0.03, 0, 0]
    assert [group["base_lr"] for group in (rest, flat, quantizer)] == pytest.approx([2e-3, 2e-3, 2e-2])


def test_settings_reach_adamw() -> None:
    optimizer = model_optimizer(model(), recipe())
    assert all(group["betas"] == (0.8, 0.9) and group["fused"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.03, 0, 0]
    settings = recipe(discriminator={"learning_rate": 5e-4, "betas": [0, 0.99], "weight_decay": 0.2}).discriminator
    network = nn.Conv2d(3, 4, 1)
    (group,) = discriminator_optimizer(network, settings).param_groups
    assert (group["betas"], group["weight_decay"], group["base_lr"]) == ((0.0, 0.99), 0.2, 5e-4)
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}


def test_no_group_is_empty() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    (group,) = model_optimizer(network, recipe()).param_groups  # type: ignore[arg-type]
    assert group["params"] == [network[0].weight] and group["weight_decay"] == 0.03


def test_learning_rate_at_steps() -> None:
    optimizer, settings = model_optimizer(model(), recipe()), recipe()
    wanted = {0: 0.25, 3: 1.0, 4: 1.0, 12: 0.55, 20: 0.1}  # half of the way between 4 and 20 is 12
    for step, factor in wanted.items():
        assert set_learning_rate(optimizer, settings, step) == pytest.approx(factor)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([2e-3 * factor, 2e-3 * factor, 2e-2 * factor])


def test_only_what_should_decay_decays() -> None:
    network = model()
    optimizer = model_optimizer(network, recipe())
    set_learning_rate(optimizer, recipe(), 4)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step_unless(torch.tensor(False), optimizer)
    for name, parameter in network.named_parameters():
        decays = parameter.ndim > 1 and not name.startswith("quantizer.")
        factor = 1 - 2e-3 * 0.03 if decays else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=lambda m, n=name: f"{n}: {m}")


def _state(optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    return [value.clone() for state in optimizer.state.values() for value in state.values()]


def test_a_step_called_off_changes_nothing() -> None:
    torch.manual_seed(0)
    networks = [nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [model_optimizer(network, recipe()) for network in networks]  # type: ignore[arg-type]
    gradients = [torch.randn(2, 3) for _ in range(4)]

    def go(index: int, gradient: torch.Tensor, skip: bool) -> None:
        networks[index].weight.grad = gradient.clone()
        networks[index].bias.grad = gradient[:, 0].clone()
        step_unless(torch.tensor(skip), optimizers[index])
        assert networks[index].weight.grad is None and networks[index].bias.grad is None

    go(0, torch.full((2, 3), torch.nan), True)  # before there are any moments
    for number, gradient in enumerate(gradients):
        for index in range(2):
            go(index, gradient, False)
        before = [networks[0].weight.detach().clone(), *_state(optimizers[0])]
        go(0, torch.full((2, 3), torch.inf if number % 2 else torch.nan), True)
        after = [networks[0].weight.detach(), *_state(optimizers[0])]
        assert len(after) == 7 and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for a, b in zip(_state(optimizers[0]), _state(optimizers[1]), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(networks[0].weight, networks[1].weight)
    assert [float(state["step"]) for state in optimizers[0].state.values()] == [4, 4]


def test_gradients_are_clipped_together() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    norm = gradients_norm(parameters, 10.0)
    assert norm.ndim == 0 and norm == 5 and parameters[1].grad == 4
    assert gradients_norm(parameters, 2.5) == 5
    torch.testing.assert_close(parameters[0].grad, torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([2.0]))
    assert parameters[2].grad is None
