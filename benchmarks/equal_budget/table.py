"""Markdown of a result file: the tables of docs/comparison.md."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.equal_budget.colours import AXES
from benchmarks.equal_budget.comparison import (
    CLAIMS,
    TARGETS,
    Judged,
    Result,
    Spread,
    clearly_best,
    compared_methods,
    judge,
    over_seeds,
    paired,
    runs_of,
    spread,
)
from benchmarks.equal_budget.methods import METHODS
from benchmarks.equal_budget.runs import ABLATE, COMPARE, TRADEOFF, TREND, TUNE
from benchmarks.markdown import cell

_QUALITY = (
    ("psnr", "PSNR, dB", 2),
    ("ssim", "SSIM", 4),
    ("perceptual", "perceptual distance", 4),
    ("frechet_distance", "Fréchet distance", 1),
    ("top1_agreement", "same top class", 3),
)
_CODES = (
    ("codes_used", "codes used", 0),
    ("perplexity", "perplexity", 0),
    ("entropy_bits", "entropy, bits", 2),
    ("bits_per_pixel_by_entropy", "bits a pixel, by entropy", 4),
    ("relative_quantization_error", "relative error", 3),
)
_ARM = (("psnr", "PSNR, dB", 2), ("frechet_distance", "Fréchet distance", 1), ("codes_used", "codes used", 0))


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "--|" * len(titles)]
    return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """With so many decimals."""
    if value is None:
        return "not finite"
    return f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"


def with_spread(one: Spread | None, decimals: int, *, sign: bool = False) -> str:
    """Mean and standard deviation, where there is one."""
    if one is None:
        return ""
    mean = number(one.mean, decimals, sign=sign)
    return mean if one.std is None else f"{mean} ± {number(one.std, decimals)}"


def _setting(result: Result, method: str) -> str:
    about = result["methods"][method]
    return "" if about["chosen"] is None else about["settings"][about["chosen"]]


def _seeds(result: Result, method: str) -> str:
    tried = [run for run in result["runs"] if run["stage"] == COMPARE and run["method"] == method]
    failed = sum("failed" in run for run in tried)
    return f"{len(tried)}" + (f", {failed} failed" if failed else "")


def quality_table(result: Result) -> str:
    """Means over seeds of what is reconstructed."""
    best = {metric: clearly_best(result, metric) for metric, *_ in _QUALITY}
    rows = []
    for name in result["methods"]:
        if not any(run["stage"] == COMPARE and run["method"] == name for run in result["runs"]):
            continue
        row = [result["methods"][name]["label"], _setting(result, name), _seeds(result, name)]
        for metric, _, decimals in _QUALITY:
            text = with_spread(over_seeds(result, name, metric), decimals)
            row.append(f"**{text}**" if best[metric] == name else text)
        rows.append(row)
    return markdown(["method", "setting", "seeds", *(title for _, title, _ in _QUALITY)], rows)


def codes_table(result: Result) -> str:
    """Means over seeds of how codes are used, and what the runs cost."""
    rows = []
    for name in compared_methods(result):
        runs = runs_of(result, COMPARE, name)
        row = [result["methods"][name]["label"]]
        row += [with_spread(over_seeds(result, name, metric), decimals) for metric, _, decimals in _CODES]
        row.append(f"{runs[0]['parameters']['quantizer']:,}")
        for field in ("seconds", "pictures_per_second", "peak_mib"):
            row.append(with_spread(spread([run[field] for run in runs]), 0))
        rows.append(row)
    cost = ["quantizer's parameters", "training, s", "pictures a second", "peak memory, MiB"]
    return markdown(["method", *(title for _, title, _ in _CODES), *cost], rows)


def differences_table(result: Result, method: str = "lgq") -> str:
    """`method` less each other one, seed by seed."""
    rows = []
    for name in compared_methods(result):
        plain = paired(result, method, name, "psnr")
        if name == method or plain is None:
            continue
        relative = [
            paired(result, method, name, metric, relative=True) for metric in ("frechet_distance", "perceptual")
        ]
        codes = paired(result, method, name, "codes_used", relative=True)
        row = [result["methods"][name]["label"], str(plain.count), with_spread(plain, 2, sign=True)]
        rows.append([*row, *(with_spread(one, 1, sign=True) for one in (*relative, codes))])
    label = result["methods"][method]["label"]
    head = [f"{label} less", "seeds", "PSNR, dB", "Fréchet distance, %", "perceptual distance, %", "codes used, %"]
    return markdown(head, rows)


def tuning_table(result: Result) -> str:
    """Every setting that was tried."""
    rows = []
    for name, about in result["methods"].items():
        for run in sorted(
            (run for run in result["runs"] if run["stage"] == TUNE and run["method"] == name),
            key=lambda run: run["setting"],
        ):
            row = [about["label"], about["settings"][run["setting"]]]
            if "failed" in run:
                rows.append([*row, f"failed: {run['failed']}", "", "", ""])
                continue
            metrics, chosen = run["metrics"], about["chosen"] == run["setting"]
            psnr = number(metrics["psnr"], 2)
            row += [f"**{psnr}**" if chosen else psnr, number(metrics["ssim"], 4), str(metrics["codes_used"])]
            rows.append([*row, number(metrics["perplexity"], 0)])
    return markdown(["method", "setting", "PSNR, dB", "SSIM", "codes used", "perplexity"], rows)


def trend_table(result: Result) -> str:
    """Each method that is run at other K too, at each K, one seed."""
    sizes = sorted({result["scale"]["codes"], *result["scale"]["trend"]})
    rows = []
    for name in (name for name in compared_methods(result) if METHODS[name].trend):
        cells = [_at(result, name, codes) for codes in sizes]
        rows.append([result["methods"][name]["label"], *(text for one in cells for text in one)])
    titles = ("PSNR, dB", "Fréchet distance", "codes used")
    return markdown(["method", *(f"K = {codes}: {title}" for codes in sizes for title in titles)], rows)


def _at(result: Result, method: str, codes: int) -> list[str]:
    stage = COMPARE if codes == result["scale"]["codes"] else TREND
    runs = runs_of(result, stage, method, codes)
    if not runs:
        return ["", "", ""]
    metrics = runs[0]["metrics"]  # of seed 0, which all have
    return [number(metrics[metric], decimals) for metric, _, decimals in _ARM]


def arms_table(result: Result, stage: str) -> str:
    """Arms of a stage with their difference from the base arm, which shares their seed."""
    runs = {run["name"]: run for run in result["runs"]}
    arms = [arm for arm in result["arms"] if arm["stage"] == stage]
    base = next((run for run in runs_of(result, COMPARE, "lgq") if run["seed"] == 0), None)
    if base is None:
        return "The base arm has no result yet."
    rows = []
    for arm in arms:
        row, run = [arm["group"], arm["label"]], runs.get(arm["run"])
        if run is None:
            rows.append([*row, "not run yet", *[""] * 7])
        elif "failed" in run:
            rows.append([*row, f"failed: {run['failed']}", *[""] * 7])
        else:
            rows.append([*row, *_against(run, base)])
    head = ["varied", "to", "PSNR, dB", "of the base", "mean colours matched, dB", "of the base"]
    head += ["Fréchet distance", "of the base, %", "codes used", "bits a pixel, by entropy"]
    return markdown(head, rows)


def _against(run: dict[str, Any], base: dict[str, Any]) -> list[str]:
    metrics, others = run["metrics"], base["metrics"]
    frechet = metrics["frechet_distance"]
    relative = number(100 * (frechet / others["frechet_distance"] - 1), 1, sign=True)
    matched, other = (one.get("colours", {}).get("psnr_matched") for one in (run, base))
    pairs = [(number(metrics["psnr"], 2), number(metrics["psnr"] - others["psnr"], 2, sign=True))]
    if matched is None or other is None:
        pairs.append(("", ""))
    else:
        pairs.append((number(matched, 2), number(matched - other, 2, sign=True)))
    pairs.append((number(frechet, 1), relative))
    texts = [text for value, change in pairs for text in (value, "base" if run is base and value else change)]
    return [*texts, str(metrics["codes_used"]), number(metrics["bits_per_pixel_by_entropy"], 4)]


def colours_table(result: Result) -> str:
    """Of each method, what of its error is a wrong mean colour, and the PSNR without that."""
    rows = []
    for name in compared_methods(result):
        runs = [run for run in runs_of(result, COMPARE, name) if "colours" in run]
        if not runs:
            continue
        row = [result["methods"][name]["label"], ", ".join(number(run["metrics"]["psnr"], 2) for run in runs)]
        for axis in AXES:
            row.append(", ".join(f"{run['colours']['shares'][axis]:.0%}" for run in runs))
        rows.append([*row, with_spread(spread([run["colours"]["psnr_matched"] for run in runs]), 2)])
    if not rows:
        return "Not measured yet: the stage `colours`."
    axes = [f"in mean colours: {axis.replace('_', '–')}" for axis in AXES]  # noqa: RUF001
    return markdown(["method", "PSNR of each seed, dB", *axes, "PSNR with mean colours matched, dB"], rows)


def _by_seed(result: Result, method: str) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in runs_of(result, COMPARE, method)}


def claims_table(result: Result) -> str:
    """Each number of the paper's claim, beside LGQ as tuned (all seeds), and with no usage term (one seed)."""
    tuned = ("lgq", "lgq_bare", "lgq_quarter")
    settings = [(f"{result['methods'][name]['label']}, tuned", _by_seed(result, name)) for name in tuned]
    settings = [one for one in settings if one[1]]
    by_name = {run["name"]: run for run in result["runs"] if "failed" not in run}
    for arm in result["arms"]:
        run = by_name.get(arm["run"])
        if arm["stage"] == TRADEOFF and arm["name"].split("_")[:2] == ["usage", "0"] and run is not None:
            peak = "" if arm["group"].endswith("as tuned") else f", {arm['group']}"
            settings.append((f"lambda_usage 0{peak}", {run["seed"]: run}))
    rows = []
    for words, other, metric, claimed in CLAIMS:
        theirs = {seed: run["metrics"][metric] for seed, run in _by_seed(result, other).items()}
        row = [f"{words} against {result['methods'][other]['label']}", f"{number(claimed, 2)} %"]
        for _, ours in settings:
            both = sorted(set(ours) & set(theirs))
            found = spread([100 * (ours[seed]["metrics"][metric] / theirs[seed] - 1) for seed in both])
            row.append(f"{with_spread(found, 1, sign=True)} %" if found else "")
        rows.append(row)
    return markdown(["", "claimed", *(label for label, _ in settings)], rows)


def targets_table(result: Result) -> str:
    """Every setting of LGQ against the targets, and whether one meets them all."""
    judged = judge(result)
    if not judged:
        return "LGQ, FSQ and SimVQ have no runs of one seed yet."
    limits = [f"{target.words}: {'≤' if target.at_most else '≥'} {number(target.limit, 2)}" for target in TARGETS]
    table = markdown(["LGQ's setting", "seeds", *limits, "met"], [_judged_row(one) for one in judged])
    return f"{verdict(judged[0])}\n\n{table}"


def _judged_row(one: Judged) -> list[str]:
    texts = []
    for target, value, missing in zip(TARGETS, one.values, one.shortfalls, strict=True):
        text = number(value, 2, sign=target.kind != "share")
        texts.append(f"{text} (misses by {number(missing, 2)})" if missing else f"**{text}**")
    return [one.label, str(one.runs), *texts, f"{one.met} of {len(TARGETS)}"]


def verdict(best: Judged) -> str:
    """A sentence on the setting that comes nearest."""
    if best.met == len(TARGETS):
        return f"All targets are met by one setting: {best.label}."
    return (
        f"No setting meets all targets. The nearest is {best.label}: it meets {best.met} of {len(TARGETS)}. Nearest "
        "is what meets most of them, and of that what lacks least (percentage points and tenths of a decibel, summed)."
    )


TABLES: dict[str, Callable[[Result], str]] = {
    "quality": quality_table,
    "codes": codes_table,
    "colours": colours_table,
    "differences": differences_table,
    "differences_bare": lambda result: differences_table(result, "lgq_bare"),
    "tuning": tuning_table,
    "targets": targets_table,
    "claims": claims_table,
    "trend": trend_table,
    "tradeoff": lambda result: arms_table(result, TRADEOFF),
    "ablation": lambda result: arms_table(result, ABLATE),
}
