"""What the recipe of every run has, whatever it trains: optimizer, report, and how a step is shared."""

import dataclasses
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from lgq_hf.hub import check_name
from lgq_hf.hub.publishable import LICENSE
from training.schedules import LearningRateSchedule

Number = float | int


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
        tracker: needs its package: `lgq_hf[tensorboard]`, `lgq_hf[trackio]`.
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
