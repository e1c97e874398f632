"""Values that depend on the optimizer step alone, so that a resumed run continues them exactly."""

import math
from typing import Literal

LearningRateSchedule = Literal["cosine", "constant"]
TemperatureSchedule = Literal["constant", "linear", "cosine", "exponential"]


def learning_rate_factor(
    step: int,
    *,
    warmup_steps: int,
    max_steps: int,
    end_factor: float = 0.0,
    schedule: LearningRateSchedule = "cosine",
) -> float:
    """Factor in (0, 1] on the base rate: linear up to 1 over `warmup_steps`, then by the schedule.

    Args:
        step: optimizer steps done before this one.
        warmup_steps: 0 for none.
        max_steps: where the cosine ends.
        end_factor: the cosine's end, a share of the base rate in [0, 1].
        schedule: "cosine", a half cosine from 1 down to `end_factor` (Loshchilov & Hutter 2017, eq. 5, without
            restarts), or "constant", 1.

    Raises:
        ValueError: for an unknown schedule, an end out of range, or an end for a constant rate.
    """
    if not 0 <= end_factor <= 1:
        raise ValueError(f"end_factor must lie in [0, 1], got {end_factor}")
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"learning rate schedule must be cosine or constant, got '{schedule}'")
    if schedule == "constant" and end_factor:
        raise ValueError(f"a constant learning rate has no end: leave end_factor at 0, got {end_factor}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * progress)) / 2


def temperature_at(step: int, *, start: float, end: float, steps: int, schedule: TemperatureSchedule) -> float:
    """tau at an optimizer step: `start` to `end` over `steps`, then `end` (arXiv 2602.16086; per epoch there).

    "exponential" is start · (end / start)^progress, with both ends positive.

    Raises:
        ValueError: for an unknown schedule, or an exponential one between ends that are not both positive.
    """
    progress = 1.0 if steps <= 1 else min(1.0, step / (steps - 1))
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * progress
    if schedule == "cosine":
        return start + (end - start) * (1 - math.cos(math.pi * progress)) / 2
    if schedule == "exponential":
        if not (start > 0 and end > 0):
            raise ValueError(f"an exponential schedule needs a positive start and end, got {start} and {end}")
        return start ** (1 - progress) * end**progress  # in this form exact at both ends
    raise ValueError(f"temperature schedule must be constant, linear, cosine or exponential, got '{schedule}'")


def ramp(step: int, *, start: int, length: int) -> float:
    """Factor in [0, 1] that lets a loss in: 0 up to and including `start`, then linear to 1 over `length` steps.

    With a length of 0 it is 1 from `start` on.

    Raises:
        ValueError: for a negative length.
    """
    if length < 0:
        raise ValueError(f"a ramp's length must be at least 0, got {length}")
    if length == 0:
        return float(step >= start)
    return min(1.0, max(0.0, (step - start) / length))
