"""What every training step has: an optimizer that can be called off on the device, an average, a window."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lgq_hf.metrics.codebook import count_tokens
from training.recipe import Discriminator, Recipe
from training.run_recipe import Optimizer, RunRecipe, learning_rate_factor


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


class ExponentialAverage:
    """A copy of a model whose parameters follow the model's at a distance (Polyak & Juditsky 1992).

    Parameters of floating point that learn are averaged, those that are shared once; buffers and all other parameters
    are copies of the model's last ones. So a codebook that is a moving average itself, and whose dead codes jump, is
    not averaged a second time over where they were. (Of one that learns by gradient, a code that was moved less than
    about 1 / (1 - decay) steps ago lies between its places.)

    Args:
        model: as it is trained, with float32 (or float64) parameters: what an average adds is lost in fewer digits.
            Not a wrapper, so that names and the saved state are the model's.
        decay: share of itself that the average keeps in an update; between 0 and 1.
        warmup: begin with less, min(decay, (1 + step) / (10 + step)), so that the average forgets where the model
            began.

    Attributes:
        average: the copy, in eval mode, without gradients.

    Raises:
        ValueError: for a decay out of range, or parameters in half precision.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.dtype.itemsize < 4:
                raise ValueError(
                    f"averages need parameters in float32, got {name} in {parameter.dtype}: keep the model in float32 "
                    "and let autocast compute in half precision"
                )
        self.decay = decay
        self.warmup = warmup
        learning = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        self._learning = frozenset(learning)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """The decay of the update that follows optimizer step `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, keep: Tensor | None = None) -> None:
        """average += (1 - decay) · (model - average), on the device and without waiting for it.

        Args:
            model: the one given at first, after its optimizer step.
            step: that step's number, counted from 0.
            keep: 0-dim bool or float on the model's device; where it is true, the average stays as it is. For a step
                that was not applied, whose parameters are therefore finite.

        Raises:
            ValueError: for a model with other parameters or buffers, or a `keep` that is not 0-dim.
        """
        if keep is not None and keep.ndim:
            raise ValueError(f"keep must be a 0-dim tensor, got shape {tuple(keep.shape)}")
        averaged, copied = self._split(self.average)
        sources, originals = self._split(model)
        for mine, others in ((averaged, sources), (copied, originals)):
            if mine.keys() != others.keys():
                raise ValueError(
                    f"expected the model that the average was made from, got one that differs in "
                    f"{sorted(mine.keys() ^ others.keys())}"
                )
        share: float | Tensor = 1 - self.decay_at(step)
        if keep is not None:
            stays = keep.bool()
            share = share * (~stays).float()
            originals = {name: torch.where(stays, copied[name], value) for name, value in originals.items()}
        if averaged:
            difference = torch._foreach_sub(list(sources.values()), list(averaged.values()))
            torch._foreach_mul_(difference, share)
            torch._foreach_add_(list(averaged.values()), difference)
        if copied:
            torch._foreach_copy_(list(copied.values()), list(originals.values()))

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state, by the model's own names."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state that `state_dict` gave; `RuntimeError` that names what is missing or too much."""
        self.average.load_state_dict(state, strict=True)

    def _split(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors to average and tensors to copy, by name; shared ones once, under their first name."""
        averaged: dict[str, Tensor] = {}
        copied: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            follows = parameter.is_floating_point() and name in self._learning
            (averaged if follows else copied)[name] = parameter
        return averaged, copied | dict(model.named_buffers())


class Window:
    """Sums over steps, and what was measured at one step alone (`last`)."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.counts: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds one step's 0-dim values; a name may be missing in some steps, and its mean is over the others."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; begins anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()} | self.last
        names = sorted(means)
        values = accelerator.reduce(torch.stack([means[name].float() for name in names]), reduction="mean")
        self._start()
        return dict(zip(names, values.tolist(), strict=True))


class TokenCounts:
    """How often each of `codebook_size` tokens was used in these steps."""

    def __init__(self, codebook_size: int, device: torch.device) -> None:
        self.codebook_size = codebook_size
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def count(self, image_tokens: Tensor) -> None:
        """Counts tokens of any shape."""
        self.counts += count_tokens(image_tokens, self.codebook_size)

    def take(self, accelerator: Accelerator) -> Tensor:
        """The counts (K,) int64 summed over processes; begins anew."""
        counts = accelerator.reduce(self.counts, reduction="sum")
        self.counts = torch.zeros_like(self.counts)
        return counts


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
