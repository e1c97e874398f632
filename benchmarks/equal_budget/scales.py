"""The sizes at which the comparison is run, chosen by one word of the command line."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

TUNING_SEED = 100  # that of no reported run


@dataclass(frozen=True)
class Scale:
    """What all runs of a comparison share; everything that decides a step stands in the recipe `base_<name>.yaml`.

    Attributes:
        name: of the scale.
        codes: K of the comparison, of tuning and of the ablations.
        trend: other K, for the trend.
        tuning_steps: optimizer steps of a tuning run.
        crops: how many are cut of each split. "validation": what tuning chooses by. "test": all that is reported.
        most_seeds: at most so many seeds of each method.
        measured: whether it was run; `False`: its values are a proposal.
    """

    name: str
    codes: int
    trend: tuple[int, ...]
    tuning_steps: int
    crops: dict[str, int]
    most_seeds: int = 3
    measured: bool = True

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The values of the shared recipe; copy before changing."""
        path = Path(__file__).with_name(f"base_{self.name}.yaml")
        values: dict[str, Any] = yaml.safe_load(path.read_text())
        return values

    @property
    def image_size(self) -> int:
        """Side of a crop, in pixels."""
        return int(self.recipe["image_size"])

    @property
    def steps(self) -> int:
        """Optimizer steps of a run that is reported."""
        return int(self.recipe["max_steps"])


SCALES = {
    scale.name: scale
    for scale in (
        Scale("cpu", 1024, (256, 4096), 300, {"train": 40_000, "validation": 512, "test": 2048}),
        Scale("gpu", 16384, (1024,), 4000, {"train": 100_000, "validation": 1024, "test": 4096}, measured=False),
        Scale("quick", 16, (64,), 3, {"train": 24, "validation": 8, "test": 12}, most_seeds=2),
    )
}
