"""Means over seeds, paired differences, and what is asked of LGQ, from a result file."""

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.equal_budget.runs import ABLATE, COMPARE, TRADEOFF, TREND

Result = dict[str, Any]
HIGHER = {"psnr": True, "ssim": True, "perceptual": False, "frechet_distance": False, "top1_agreement": True}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (divided by n - 1; `None` of a single value) of n values."""

    mean: float
    std: float | None
    count: int


def spread(values: list[float]) -> Spread | None:
    """Of the values; `None` without any."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def runs_of(result: Result, stage: str, method: str, codes: int | None = None) -> list[dict[str, Any]]:
    """Runs that did not fail, by seed; `codes` is K, that of the comparison if not given."""
    codes = result["scale"]["codes"] if codes is None else codes
    found = [
        run
        for run in result["runs"]
        if (run["stage"], run["method"], run["codes"]) == (stage, method, codes) and "failed" not in run
    ]
    return sorted(found, key=lambda run: run["seed"])


def compared_methods(result: Result) -> list[str]:
    """Methods with at least one run of the comparison, in their order."""
    return [name for name in result["methods"] if runs_of(result, COMPARE, name)]


def over_seeds(result: Result, method: str, metric: str) -> Spread | None:
    """A metric of the comparison's runs of a method."""
    return spread([run["metrics"][metric] for run in runs_of(result, COMPARE, method)])


def paired(result: Result, method: str, other: str, metric: str, *, relative: bool = False) -> Spread | None:
    """`method` less `other`, seed by seed over the seeds that both have.

    Args:
        relative: in per cent of `other`.
    """
    ours, theirs = (
        {run["seed"]: run["metrics"][metric] for run in runs_of(result, COMPARE, name)} for name in (method, other)
    )
    differences = []
    for seed in sorted(set(ours) & set(theirs)):
        difference = ours[seed] - theirs[seed]
        differences.append(100 * difference / theirs[seed] if relative else difference)
    return spread(differences)


def clearly_best(result: Result, metric: str) -> str | None:
    """The method with the best mean, where it is that clearly.

    Against every other method its paired difference must exceed the standard deviation of that difference. Against a
    method of which one seed alone is there, that deviation is unknown, and the largest of the known ones is taken;
    such a method is never clearly the best itself.
    """
    sign = 1 if HIGHER[metric] else -1
    means = {name: over_seeds(result, name, metric) for name in compared_methods(result)}
    ranked = sorted(((sign * one.mean, name) for name, one in means.items() if one is not None), reverse=True)
    if len(ranked) < 2:
        return None
    best = ranked[0][1]
    gaps = [paired(result, best, name, metric) for _, name in ranked[1:]]
    if any(gap is None for gap in gaps):
        return None
    known = [gap.std for gap in gaps if gap is not None and gap.std is not None]
    if not known:
        return None
    clear = all(gap is not None and sign * gap.mean > (max(known) if gap.std is None else gap.std) for gap in gaps)
    return best if clear else None


@dataclass(frozen=True)
class Target:
    """What one setting of LGQ should reach against another method.

    Attributes:
        words: of the table's head.
        other: that method.
        metric: compared.
        kind: "percent": the difference in per cent of the other's. "share": ours in per cent of the other's. "plain":
            the difference.
        limit: at most so much, or at least.
        at_most: which of the two.
    """

    words: str
    other: str
    metric: str
    kind: str
    limit: float
    at_most: bool

    def value(self, ours: float, theirs: float) -> float:
        """What is compared with the limit."""
        if self.kind == "plain":
            return ours - theirs
        return 100 * (ours / theirs - (self.kind == "percent"))

    def shortfall(self, value: float) -> float:
        """How much is missing, in the unit of the limit; 0 where it is met."""
        return max(0.0, value - self.limit if self.at_most else self.limit - value)


# The first two and the codes are what arXiv 2602.16086 claims of ImageNet at 128 px.
TARGETS = (
    Target("Fréchet distance against FSQ, %", "fsq", "frechet_distance", "percent", -11.88, True),
    Target("Fréchet distance against SimVQ, %", "simvq", "frechet_distance", "percent", -6.06, True),
    Target("codes used, % of FSQ's", "fsq", "codes_used", "share", 50.0, True),
    Target("PSNR against FSQ, dB", "fsq", "psnr", "plain", 0.0, False),
    Target("PSNR against SimVQ, dB", "simvq", "psnr", "plain", 0.0, False),
)


# What arXiv 2602.16086 states of LGQ with K = 16384, ImageNet at 128 px: less than the other's, in per cent of it. Its
# "effective representation rate" is the number of active codes.
CLAIMS = (
    ("Fréchet distance (the paper: rFID)", "fsq", "frechet_distance", -11.88),
    ("active codes", "fsq", "codes_used", -49.96),
    ("Fréchet distance (the paper: rFID)", "simvq", "frechet_distance", -6.06),
    ("active codes", "simvq", "codes_used", -49.45),
)


@dataclass(frozen=True)
class Judged:
    """A setting of LGQ against all targets: value of each, and the sum of what is missing."""

    label: str
    runs: int
    values: tuple[float, ...]

    @property
    def shortfalls(self) -> tuple[float, ...]:
        """What each target lacks."""
        return tuple(target.shortfall(value) for target, value in zip(TARGETS, self.values, strict=True))

    @property
    def met(self) -> int:
        """How many are met."""
        return sum(not missing for missing in self.shortfalls)


def judge(result: Result) -> list[Judged]:
    """Every setting of LGQ against FSQ and SimVQ of the comparison, of the same seeds; those met most first.

    Of those that meet equally many, the one that lacks least comes first: percentage points and tenths of a decibel,
    summed.
    """
    judged = []
    for label, runs in _settings_of_lgq(result):
        values = []
        for target in TARGETS:
            theirs = {run["seed"]: run["metrics"] for run in runs_of(result, COMPARE, target.other)}
            pairs = [(run["metrics"], theirs[run["seed"]]) for run in runs if run["seed"] in theirs]
            if not pairs:
                break
            values.append(
                statistics.fmean(target.value(ours[target.metric], other[target.metric]) for ours, other in pairs)
            )
        if len(values) == len(TARGETS):
            judged.append(Judged(label, len(runs), tuple(values)))
    return sorted(judged, key=lambda one: (-one.met, _missing(one)))


def _missing(one: Judged) -> float:
    return sum(
        missing * (10 if target.kind == "plain" else 1)
        for target, missing in zip(TARGETS, one.shortfalls, strict=True)
    )


def _settings_of_lgq(result: Result) -> list[tuple[str, list[dict[str, Any]]]]:
    """Labels and runs: the tuned settings, other K, and all arms of the same budget that are not the base arm's."""
    found = []
    for method in ("lgq", "lgq_paper", "lgq_bare", "lgq_quarter"):
        label = result["methods"][method]["label"]
        if runs := runs_of(result, COMPARE, method):
            found.append((f"{label}, tuned", runs))
        for codes in result["scale"]["trend"]:
            if runs := runs_of(result, TREND, method, codes):
                found.append((f"{label}, tuned, K = {codes}", runs))
    by_name = {run["name"]: run for run in result["runs"] if "failed" not in run}
    for arm in result["arms"]:
        run = by_name.get(arm["run"])
        if run is None or run["stage"] not in (ABLATE, TRADEOFF):
            continue
        if "batch_size" not in run["overrides"]:  # which changes the number of steps
            found.append((f"{arm['group']}: {arm['label']}", [run]))
    return found
