"""What every training step has: one model, its optimizer and average, mixed precision, and a flag on the device.

Nothing here waits for the device but `failure` and `take_values`.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.ema import ExponentialAverage
from training.optimizers import step_unless
from training.run_recipe import RunRecipe
from training.window import Window

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_fp32(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class BaseStep(ABC):
    """The base of training steps: a subclass computes gradients, then calls `judge` and `advance`.

    Args:
        accelerator: places and wraps the model; its own mixed precision must be off.
        model: on the device.
        optimizer: fused AdamW of its parameters, which obeys `found_inf`.
    """

    def __init__(
        self, accelerator: Accelerator, recipe: RunRecipe, model: nn.Module, optimizer: torch.optim.AdamW
    ) -> None:
        self.accelerator, self.device, self._recipe = accelerator, accelerator.device, recipe
        self.wrapped, prepared = accelerator.prepare(model, optimizer)
        self.optimizer: torch.optim.AdamW = prepared.optimizer
        self._trained = model
        decay = float(recipe.optimizer.ema_decay)
        self.average = ExponentialAverage(model, decay) if decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.engine.mixed_precision == "fp16")
        self.failed_step = torch.full((), -1, device=self.device)
        self.schedule: dict[str, float] = {}
        self.values: dict[str, Tensor] = {}
        self.window = Window()

    @abstractmethod
    def __call__(self, micro_batches: list[Any], step: int, *, measure: bool = False) -> None:
        """One optimizer step from equally large passes, on the device.

        Args:
            step: optimizer steps done before.
            measure: a row of the log follows: what costs time may be measured now.
        """

    @property
    def published(self) -> Any:
        """The model that is validated and saved: the average of the weights, or the weights."""
        return self._trained if self.average is None else self.average.average

    def autocast(self) -> Any:
        """Mixed precision as the recipe says."""
        dtype = _AUTOCAST.get(self._recipe.engine.mixed_precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def judge(self, step: int, loss: Tensor, finite: Tensor) -> Tensor:
        """Whether this step and none after it may be taken: a flag (0-dim bool) for `advance`, on the device.

        Args:
            step: optimizer steps done before.
            loss: 0-dim, the same on all processes.
            finite: 0-dim bool, whether all gradients are.
        """
        loss_is_finite = loss.isfinite()
        # a gradient beyond fp16 only lowers the scale
        fails = ~loss_is_finite if self.scaler.is_enabled() else ~(loss_is_finite & finite)
        self.failed_step = torch.where(fails & (self.failed_step < 0), step, self.failed_step)
        return (self.failed_step >= 0) | ~finite

    def advance(self, step: int, skip: Tensor, *more: torch.optim.AdamW) -> None:
        """Takes the step unless `skip`, with `more` optimizers of the same scale; average and window follow."""
        for optimizer in (self.optimizer, *more):
            step_unless(skip, optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self._trained, step, keep=skip)
        self.window.add(self.values)

    def failure(self) -> int | None:
        """The first step that was not taken because its loss or gradient was not finite; waits for the device."""
        step = int(self.failed_step)
        return step if step >= 0 else None

    def take_values(self) -> dict[str, float]:
        """See [`Window.take`]; waits for the device. With the values of the schedules at the last step."""
        return {**self.schedule, **self.window.take(self.accelerator)}

    def state_dict(self) -> dict[str, Any]:
        """Everything but weights and moments, which the accelerator saves, and the window: take it before."""
        return {
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
