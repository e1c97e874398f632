"""Optimizers whose step can be called off on the device, without asking the host."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.recipe import Discriminator, Recipe
from training.run_recipe import Optimizer, RunRecipe
from training.schedules import learning_rate_factor


def decayed_groups(parameters: Iterable[nn.Parameter], settings: Optimizer) -> list[dict[str, Any]]:
    """Two AdamW groups: what is decayed, and norms and biases, which are not."""
    flat: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in parameters:
        (flat if parameter.ndim < 2 else rest).append(parameter)
    rate = settings.learning_rate
    return [
        {"params": rest, "base_lr": rate, "weight_decay": settings.weight_decay},
        {"params": flat, "base_lr": rate, "weight_decay": 0.0},
    ]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups: the quantizer at its own rate, and no weight decay on it, on norms and on biases."""
    quantizer: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (quantizer if name.startswith("quantizer.") else others).append(parameter)
    rate = recipe.optimizer.learning_rate * recipe.quantizer.learning_rate_scale
    return [
        *decayed_groups(others, recipe.optimizer),
        {"params": quantizer, "base_lr": rate, "weight_decay": 0.0},
    ]


def adamw(groups: list[dict[str, Any]], settings: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW of the groups that have parameters."""
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=settings.learning_rate, betas=_pair(settings.betas), fused=True)


def model_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Fused AdamW for encoder, decoder and quantizer."""
    return adamw(parameter_groups(model, recipe), recipe.optimizer)


def discriminator_optimizer(discriminator: nn.Module, settings: Discriminator) -> torch.optim.AdamW:
    """Fused AdamW for the discriminator."""
    rate = float(settings.learning_rate)
    groups = [{"params": list(discriminator.parameters()), "base_lr": rate, "weight_decay": settings.weight_decay}]
    return torch.optim.AdamW(groups, lr=rate, betas=_pair(settings.betas), fused=True)


def _pair(betas: Iterable[float | int]) -> tuple[float, float]:
    first, second = betas
    return float(first), float(second)


def set_learning_rate(optimizer: Any, recipe: RunRecipe, step: int) -> float:
    """Sets every group's rate for a step; returns the factor on the base rates."""
    settings = recipe.optimizer
    factor = learning_rate_factor(
        step,
        warmup_steps=settings.warmup_steps,
        max_steps=recipe.max_steps,
        schedule=settings.schedule,
        end_factor=settings.end_factor,
    )
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return factor


def gradients_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Norm of all gradients together before they are scaled down to at most `max_norm`; 0-dim, not waited for."""
    return nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)


def step_unless(skip: Tensor, optimizer: torch.optim.AdamW) -> None:
    """One step, or none where `skip` (0-dim, on the device) is true; gradients are freed.

    Fused AdamW leaves weights, moments and step count alone where its `found_inf` is 1.
    """
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # what torch.amp.GradScaler sets
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
