"""Optimizers whose step can be called off on the device, without asking the host."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.recipe import Discriminator, Recipe
from training.schedules import learning_rate_factor


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups: the quantizer at its own rate, and no weight decay on it, on norms and on biases."""
    quantizer: list[nn.Parameter] = []
    flat: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.startswith("quantizer."):
            quantizer.append(parameter)
        else:
            (flat if parameter.ndim < 2 else rest).append(parameter)
    rate = recipe.optimizer.learning_rate
    return [
        {"params": rest, "base_lr": rate, "weight_decay": recipe.optimizer.weight_decay},
        {"params": flat, "base_lr": rate, "weight_decay": 0.0},
        {"params": quantizer, "base_lr": rate * recipe.quantizer.learning_rate_scale, "weight_decay": 0.0},
    ]


def model_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Fused AdamW for encoder, decoder and quantizer."""
    settings = recipe.optimizer
    groups = [group for group in parameter_groups(model, recipe) if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_pair(settings.betas), fused=True)


def discriminator_optimizer(discriminator: nn.Module, settings: Discriminator) -> torch.optim.AdamW:
    """Fused AdamW for the discriminator."""
    rate = float(settings.learning_rate)
    groups = [{"params": list(discriminator.parameters()), "base_lr": rate, "weight_decay": settings.weight_decay}]
    return torch.optim.AdamW(groups, lr=rate, betas=_pair(settings.betas), fused=True)


def _pair(betas: Iterable[float | int]) -> tuple[float, float]:
    first, second = betas
    return float(first), float(second)


def set_learning_rate(optimizer: Any, recipe: Recipe, step: int) -> float:
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
