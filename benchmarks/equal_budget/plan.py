"""Which runs a stage has; and the setting that each method was given by its tuning."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.equal_budget.ablations import ARMS, TRADEOFF, Arm
from benchmarks.equal_budget.methods import METHODS, SETTINGS
from benchmarks.equal_budget.runs import ABLATE, COMPARE, TREND, TUNE, Run, effect, identity
from benchmarks.equal_budget.runs import TRADEOFF as TRADE
from benchmarks.equal_budget.scales import TUNING_SEED, Scale

Found = Callable[[Run], dict[str, Any] | None]  # the result of a run, if it has one
BASE = "lgq"  # what is varied


class NotTuned(ValueError):
    """A method has not all the results that its setting is chosen by."""


def tuning_runs(scale: Scale, method: str) -> list[Run]:
    """One for each setting."""
    return [Run(scale, TUNE, method, setting, scale.codes, TUNING_SEED) for setting in range(SETTINGS)]


def chosen_setting(scale: Scale, method: str, found: Found) -> int | None:
    """The setting with the highest PSNR on the validation crops; `None` where all failed.

    Raises:
        NotTuned: not all settings of this method were tried.
    """
    runs = tuning_runs(scale, method)
    results = [found(run) for run in runs]
    if missing := [run.name for run, result in zip(runs, results, strict=True) if result is None]:
        raise NotTuned(f"{method} is not tuned yet, {', '.join(missing)} have no result: run the stage 'tune' first")
    scores = {
        run.setting: result["metrics"]["psnr"]
        for run, result in zip(runs, results, strict=True)
        if result is not None and "failed" not in result
    }
    return max(scores, key=lambda setting: (scores[setting], -setting)) if scores else None


def base_run(scale: Scale, setting: int) -> Run:
    """The run that arms are compared with."""
    return Run(scale, COMPARE, BASE, setting, scale.codes, 0)


def runs_of(scale: Scale, stage: str, methods: Sequence[str], found: Found) -> list[Run]:
    """The runs of a stage, for some methods; those of the ablations and of the trade-off are LGQ's.

    A method all of whose settings failed has none beyond its tuning.

    Raises:
        NotTuned: a stage that needs a tuning that was not done.
    """
    if stage == TUNE:
        return [run for method in methods for run in tuning_runs(scale, method)]
    if stage in (ABLATE, TRADE):
        setting = chosen_setting(scale, BASE, found)
        return [] if setting is None else arm_runs(scale, stage, setting)
    runs = []
    for method in methods:
        if stage == TREND and not METHODS[method].trend:
            continue
        setting = chosen_setting(scale, method, found)
        if setting is None:
            continue
        seeds = range(min(METHODS[method].seeds, scale.most_seeds)) if stage == COMPARE else range(1)
        sizes = (scale.codes,) if stage == COMPARE else scale.trend
        runs += [Run(scale, stage, method, setting, codes, seed) for codes in sizes for seed in seeds]
    return runs


def arm_runs(scale: Scale, stage: str, setting: int) -> list[Run]:
    """The arms that differ from the base arm."""
    return [run for arm, run in arms_of(scale, stage, setting) if run.stage == stage]


def arms_of(scale: Scale, stage: str, setting: int) -> list[tuple[Arm, Run]]:
    """All arms of a stage with their runs; an arm that changes nothing has the base arm's."""
    base, place = base_run(scale, setting), Path()
    same = effect(identity(base.recipe(place)))
    pairs = []
    for arm in ARMS if stage == ABLATE else TRADEOFF:
        run = Run(scale, stage, BASE, setting, scale.codes, 0, arm)
        pairs.append((arm, base if effect(identity(run.recipe(place))) == same else run))
    return pairs


def setting_overrides(method: str, codes: int, setting: int) -> dict[str, Any]:
    """What a setting sets, alone."""
    return METHODS[method].settings(codes)[setting]


def named(only: Sequence[str], runs: Sequence[Run]) -> list[Run]:
    """The runs of a stage that are named by method, arm or whole name; all without names.

    Raises:
        ValueError: a name of nothing.
    """
    if not only:
        return list(runs)
    known = {*METHODS, *(arm.name for arm in (*ARMS, *TRADEOFF)), *(run.name for run in runs)}
    if unknown := sorted(set(only) - known):
        raise ValueError(f"--only {' '.join(unknown)}: expected methods, arms or runs, of {', '.join(sorted(known))}")
    return [run for run in runs if {run.name, run.method, *([run.arm.name] if run.arm else [])} & set(only)]
