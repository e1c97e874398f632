"""One run: what it is, where it lies, and its recipe."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.equal_budget.ablations import Arm
from benchmarks.equal_budget.methods import METHODS, Overrides
from benchmarks.equal_budget.scales import Scale
from training.recipe import recipe_from
from training.results import portable_recipe

TUNE, COMPARE, TREND, ABLATE, TRADEOFF = "tune", "compare", "trend", "ablate", "tradeoff"
STAGES = (TUNE, COMPARE, TREND, TRADEOFF, ABLATE)  # in the order in which they are run


@dataclass(frozen=True)
class Run:
    """One training with its evaluation.

    Attributes:
        scale: that it belongs to.
        stage: one of `STAGES`.
        method: name in `METHODS`.
        setting: number of the method's setting.
        codes: K.
        seed: of weights, order and codebook.
        arm: what it changes of LGQ; `None`: nothing.
    """

    scale: Scale
    stage: str
    method: str
    setting: int
    codes: int
    seed: int
    arm: Arm | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.arm is not None:
            return f"{self.stage}-{self.arm.name}"
        if self.stage == TUNE:
            return f"{self.stage}-{self.method}-{self.setting}"
        return f"{self.stage}-{self.method}-k{self.codes}-seed{self.seed}"

    def overrides(self) -> Overrides:
        """All that differs from the shared recipe, but for seed and places, by dotted name."""
        overrides = METHODS[self.method].overrides(self.codes, self.setting)
        if self.stage == TUNE:
            overrides["max_steps"] = self.scale.tuning_steps
        if self.arm is not None:
            overrides |= self.arm.overrides(changed(self.scale.recipe, overrides))
        return overrides

    def recipe(self, place: Path) -> dict[str, Any]:
        """The values of its recipe, with what lies in the folder `place` of the scale."""
        values = changed(self.scale.recipe, self.overrides())
        values["seed"] = self.seed
        values["output_dir"] = str(place / self.name)
        values["start_from"] = str(start_folder(place, self.seed))
        values["data"]["path"] = str(place / "crops")
        return values


def changed(values: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of nested values with overrides by dotted name."""
    values = copy.deepcopy(values)
    for name, value in overrides.items():
        section, _, leaf = name.rpartition(".")
        (values[section] if section else values)[leaf] = copy.deepcopy(value)
    return values


def start_folder(place: Path, seed: int) -> Path:
    """The encoder and decoder that all runs of one seed begin with."""
    return place / f"start-seed{seed}"


def identity(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe in full, without places: what two runs must share to be the same run.

    Raises:
        ValueError, StrictDataclassError: it is none.
    """
    recipe = recipe_from(values)
    recipe.config()
    whole = portable_recipe(recipe)
    del whole["output_dir"]
    return whole


def effect(whole: dict[str, Any]) -> dict[str, Any]:
    """What an `identity` says, with all fields: what it leaves out equals what is set to its default.

    Raises:
        ValueError, StrictDataclassError: it is of another version, with fields that there are no more.
    """
    values = {**whole, "output_dir": "-"}
    config = recipe_from(values).config().to_dict()
    return {**identity(values), "model": {name: value for name, value in sorted(config.items()) if value is not None}}
