"""Values that depend on the optimizer step alone, so that a resumed run continues them exactly."""

import math
from typing import Literal

TemperatureSchedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Factor in [0, 1] on the base rate: linear up to 1 over `warmup_steps`, then a half cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return (1 + math.cos(math.pi * progress)) / 2


def temperature_at(step: int, *, start: float, end: float, steps: int, schedule: TemperatureSchedule) -> float:
    """tau at an optimizer step: `start` to `end` over `steps`, then `end` (arXiv 2602.16086; per epoch there)."""
    progress = 1.0 if steps <= 1 else min(1.0, step / (steps - 1))
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * progress
    if schedule == "cosine":
        return start + (end - start) * (1 - math.cos(math.pi * progress)) / 2
    raise ValueError(f"temperature schedule must be constant, linear or cosine, got '{schedule}'")
