"""What recipes of all runs have, and how they are read from YAML and the command line."""

import dataclasses
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from huggingface_hub.dataclasses import strict

from lgq_hf.hub import check_name
from lgq_hf.hub.publishable import LICENSE

Number = float | int
LearningRateSchedule = Literal["cosine", "constant"]
TemperatureSchedule = Literal["constant", "linear", "cosine", "exponential"]


def check_counts(prefix: str, section: Any, names: tuple[str, ...], least: int = 1) -> None:
    """Refuses counts below `least`; `prefix` is that of the names in errors, such as "report."."""
    for name in names:
        if getattr(section, name) < least:
            raise ValueError(f"{prefix}{name} must be at least {least}, got {getattr(section, name)}")


def check_betas(name: str, betas: list[Number]) -> None:
    """Refuses what AdamW cannot take."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{name} must be two values in [0, 1), got {betas}")


@strict
@dataclasses.dataclass
class Optimizer:
    """AdamW: linear warm-up, then `schedule` down to `end_factor` times the rate.

    Attributes:
        learning_rate: for `batch_size` as given; it is not scaled.
        ema_decay: of the moving average of the weights that is validated and published; 0: the weights themselves.
    """

    learning_rate: Number = 1e-4
    betas: list[Number] = dataclasses.field(default_factory=lambda: [0.9, 0.95])
    weight_decay: Number = 0.01
    warmup_steps: int = 1000
    schedule: LearningRateSchedule = "cosine"
    end_factor: Number = 0.0
    max_grad_norm: Number = 1.0
    ema_decay: Number = 0.999

    def validate_ranges(self) -> None:
        """Refuses values out of range."""
        check_betas("optimizer.betas", self.betas)
        for field in ("learning_rate", "max_grad_norm"):
            if not getattr(self, field) > 0:
                raise ValueError(f"optimizer.{field} must be positive, got {getattr(self, field)}")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("optimizer.warmup_steps and optimizer.weight_decay must be 0 or more")
        if self.schedule == "constant" and self.end_factor:
            raise ValueError(f"optimizer.end_factor={self.end_factor} needs a schedule that falls, got constant")
        for field in ("ema_decay", "end_factor"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"optimizer.{field} must lie in [0, 1), got {getattr(self, field)}")


@strict
@dataclasses.dataclass
class Report:
    """What a run writes besides, and where its result goes.

    Attributes:
        tracker: needs its package: the extra `tensorboard` or `trackio`.
        license: of the weights, for the card: an identifier of the Hub's, such as `"mit"`; needed to publish.
        push_to_hub: repository, `"org/name"`, that the final folder is published in; the Hub is asked for it, and for
            the right to write there, before the first step.
        hub_private: whether that repository is private.
    """

    log_every: int = 50
    checkpoint_every: int = 1000
    checkpoints_kept: int = 2
    tracker: Literal["none", "tensorboard", "trackio"] = "none"
    project: str = "lgq"
    license: str | None = None
    push_to_hub: str | None = None
    hub_private: bool = False

    def validate_ranges(self) -> None:
        """Refuses counts below one, and what could not be published at the end."""
        check_counts("report.", self, ("log_every", "checkpoint_every", "checkpoints_kept"))
        if self.license is not None and (self.license == "other" or not LICENSE.fullmatch(self.license)):
            raise ValueError(
                "report.license must be an identifier of the Hub's that names a licence, such as mit (not other), got "
                f"{self.license!r}"
            )
        if self.push_to_hub is None:
            if self.hub_private:
                raise ValueError("report.hub_private=true is for report.push_to_hub, which is not set: leave it out")
            return
        check_name(self.push_to_hub)
        if self.license is None:
            raise ValueError(
                f"report.push_to_hub={self.push_to_hub} needs report.license, the licence of the weights, such as "
                "mit: nothing is published without one"
            )


@strict
@dataclasses.dataclass
class RunEngine:
    """How the work is done. Results differ by rounding alone.

    Attributes:
        micro_batch_size: samples of one pass of one process; 0: as many as it has to do in a step.
        mixed_precision: of what the networks compute; weights, averages and losses stay in fp32.
        compile: `torch.compile` for the networks.
    """

    micro_batch_size: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    gradient_checkpointing: bool = False


class RunRecipe:
    """A base of recipes, which have these fields; `data` has at least num_workers, `validation` has every."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    output_dir: str
    max_steps: int
    batch_size: int
    seed: int
    data: Any
    optimizer: Optimizer
    engine: RunEngine
    validation: Any
    report: Report

    def micro_batches(self, num_processes: int) -> tuple[int, int]:
        """(samples, passes): what one process does in one optimizer step.

        Raises:
            ValueError: where `batch_size` cannot be shared equally.
        """
        share, rest = divmod(self.batch_size, num_processes)
        size = self.engine.micro_batch_size or share
        if rest or size < 1 or share % size:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {num_processes} processes in passes of {size}: it "
                f"must be a multiple of {num_processes} x engine.micro_batch_size"
            )
        return size, share // size


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)


def sections(kind: Any) -> dict[str, Any]:
    """The sections of a kind of recipe: names and dataclasses."""
    return {field.name: field.type for field in dataclasses.fields(kind) if dataclasses.is_dataclass(field.type)}


def check_known(values: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuses names that nobody would look at."""
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown keys {unknown} in {where}; known: {list(known)}")


def _numbers(value: Any) -> Any:
    """1e-4 is a text to YAML 1.1; here it is a number."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _known(kind: Any, values: Any, where: str) -> dict[str, Any]:
    """`values` with the names of a dataclass's fields, and numbers where they are numbers (not in names of places)."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold fields, got {values!r}")
    check_known(values, types, where)
    numeric = (Number, list[Number], dict[str, Any])
    return {name: _numbers(value) if types[name] in numeric else value for name, value in values.items()}


def fill(kind: type[AnyRecipe], values: dict[str, Any], where: str = "the recipe") -> AnyRecipe:
    """A recipe of some kind (a strict dataclass) from nested plain values, as in its YAML file.

    Raises:
        ValueError: for unknown or missing keys.
        StrictDataclassError: for a value of a wrong type or out of range.
    """
    values = _known(kind, values, where)
    required = {
        field.name for field in dataclasses.fields(kind) if field.default is field.default_factory
    }  # both are MISSING
    if missing := sorted(required - set(values)):
        raise ValueError(f"{where} lacks {missing}")
    for name, section in sections(kind).items():
        if name in values:
            given = {} if values[name] is None else values[name]
            values[name] = section(**_known(section, given, f"{name} of {where}"))
    return kind(**values)


def read_values(path: str | Path, overrides: list[str]) -> Any:
    """What a YAML file holds, with `key=value` or `section.key=value` overrides (values are YAML too).

    Raises:
        ValueError: for an override without `=`, or into what holds no fields.
    """
    values = yaml.safe_load(Path(path).read_text()) or {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"expected key=value, got '{override}'")
        *parents, leaf = key.split(".")
        target = values
        for parent in parents:
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
            if not isinstance(target, dict):
                raise ValueError(f"{override}: {parent} holds no fields, but {target!r}")
        target[leaf] = yaml.safe_load(value)
    return values


def flat(recipe: RunRecipe) -> dict[str, Any]:
    """All fields by dotted name, such as `optimizer.learning_rate`; a dictionary, such as `model`, is one field."""
    fields: dict[str, Any] = {}
    parts = sections(recipe)
    for name, value in dataclasses.asdict(recipe).items():
        if name in parts:
            fields |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            fields[name] = value
    return fields


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
