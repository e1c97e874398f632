"""Plots of a result file: rate against distortion, how often codes are used, training curves."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.equal_budget.comparison import Result, compared_methods, over_seeds, runs_of
from benchmarks.equal_budget.methods import METHODS
from benchmarks.equal_budget.runs import COMPARE, TRADEOFF, TREND
from lgq_hf.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
# Okabe and Ito's colours, which colour-blind people tell apart; methods that share one differ in their markers
STYLES = {
    "lgq": ("#D55E00", "o"),
    "lgq_paper": ("#E69F00", "o"),
    "vq": ("#000000", "s"),
    "vq_ema": ("#666666", "D"),
    "vq_rotation": ("#999999", "^"),
    "fsq": ("#0072B2", "s"),
    "ifsq": ("#56B4E9", "D"),
    "simvq": ("#009E73", "s"),
    "lfq": ("#CC79A7", "s"),
    "bsq": ("#CC79A7", "D"),
    "ibq": ("#B8A600", "^"),
}
STYLES |= {f"{name}_bare": (STYLES[name][0], "X") for name in METHODS if f"{name}_bare" in METHODS}
STYLES["lgq_quarter"] = (STYLES["lgq"][0], "v")
PLOTS: dict[str, Callable[[Result], "Figure"]] = {}


def _new(columns: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    """A figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _what(result: Result) -> str:
    """Scale, pictures and seeds, for titles."""
    scale = result["scale"]
    pictures = f"{scale['crops']['test']} test crops of {scale['image_size']} px, f{scale['downsampling']}"
    return f"{pictures}; {scale['steps']} steps of {scale['batch_size']}"


def rate(result: Result) -> "Figure":
    """Bits a pixel by entropy against PSNR, and against the Fréchet distance."""
    figure, axes = _new(2, 11, 5.4)
    labels = {"psnr": "PSNR, dB (higher is better)", "frechet_distance": "Fréchet distance (lower is better)"}
    for ax, (metric, label) in zip(axes, labels.items(), strict=True):
        for name in compared_methods(result):
            _rate_of(ax, result, name, metric)
        _tradeoff_line(ax, result, metric)
        ax.set_xlabel("bits a pixel, by the entropy of the tokens")
        ax.set_ylabel(label)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    codes = sorted({result["scale"]["codes"], *result["scale"]["trend"]})
    sizes = ", ".join(map(str, codes))
    figure.suptitle(f"Rate and distortion, K = {sizes} (small to large markers)\n{_what(result)}", fontsize=11)
    return figure


def _rate_of(ax: "Axes", result: Result, name: str, metric: str) -> None:
    """A method's points: the mean over seeds at K of the comparison, one seed at other K, joined by a line."""
    colour, marker = STYLES[name]
    sizes = sorted({result["scale"]["codes"], *result["scale"]["trend"]})
    points = []
    for index, codes in enumerate(sizes):
        runs = runs_of(result, COMPARE if codes == result["scale"]["codes"] else TREND, name, codes)
        if runs:
            x, y = (
                sum(run["metrics"][one] for run in runs) / len(runs) for one in ("bits_per_pixel_by_entropy", metric)
            )
            points.append((x, y, 25 + 45 * index))
    xs, ys, areas = zip(*points, strict=True)
    ax.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.55, zorder=2)
    ax.scatter(
        xs,
        ys,
        s=areas,
        color=colour,
        marker=marker,
        edgecolor="white",
        linewidth=0.6,
        zorder=3,
        label=result["methods"][name]["label"],
    )
    main = over_seeds(result, name, metric)
    if main is not None and main.std is not None:
        rate_here = over_seeds(result, name, "bits_per_pixel_by_entropy")
        if rate_here is not None:
            ax.errorbar(rate_here.mean, main.mean, main.std, color=colour, capsize=3, linewidth=1, zorder=2)


def _tradeoff_line(ax: "Axes", result: Result, metric: str) -> None:
    """LGQ at several weights of the usage term, in their order."""
    runs = {run["name"]: run for run in result["runs"] if "failed" not in run}
    arms = [arm for arm in result["arms"] if arm["stage"] == TRADEOFF and arm["group"] == "lambda_peak as tuned"]
    points = [runs[arm["run"]]["metrics"] for arm in arms if arm["run"] in runs]
    if len(points) < 2:
        return
    xs, ys = ([point[name] for point in points] for name in ("bits_per_pixel_by_entropy", metric))
    ax.plot(
        xs,
        ys,
        color=STYLES["lgq"][0],
        linestyle="--",
        marker="x",
        markersize=6,
        linewidth=1.2,
        zorder=4,
        label=f"LGQ, lambda_usage varied (K = {result['scale']['codes']})",
    )


def _with_norm(result: Result) -> list[str]:
    """The methods of the comparison whose backbone is the published one."""
    return [name for name in compared_methods(result) if METHODS[name].norm]


def usage(result: Result) -> "Figure":
    """How often each code is used, from the most frequent on."""
    figure, (ax,) = _new(1, 8.5, 5.6)
    codes = result["scale"]["codes"]
    tokens = 0
    for name in _with_norm(result):
        run = runs_of(result, COMPARE, name)[0]
        counts = list(map(int, run["codebook_counts"].split()))
        tokens = sum(counts)
        colour, _ = STYLES[name]
        dashed = name in ("lgq_paper", "ifsq", "bsq", "vq_rotation")
        label = f"{result['methods'][name]['label']} ({len(counts)})"
        ax.plot(
            range(1, len(counts) + 1),
            [count / tokens for count in counts],
            color=colour,
            linestyle="--" if dashed else "-",
            linewidth=1.4,
            label=label,
        )
    ax.axhline(1 / codes, color="black", linewidth=0.7, linestyle=":")
    ax.annotate("even use", (codes, 1 / codes), xytext=(0, 3), textcoords="offset points", fontsize=8, ha="right")
    ax.set_yscale("log")
    ax.set_xlim(0, codes * 1.01)
    ax.set_xlabel("codes, from the most to the least used")
    ax.set_ylabel("share of the tokens")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False, title="method (codes used)")
    ax.set_title(f"Use of the codes: K = {codes}, seed 0, {tokens:,} tokens of\n{_what(result)}", fontsize=11)
    return figure


def curves(result: Result) -> "Figure":
    """PSNR on the validation crops, and the loss, on the way."""
    figure, (left, right) = _new(2, 11, 5)
    for name in _with_norm(result):
        run = runs_of(result, COMPARE, name)[0]
        colour, marker = STYLES[name]
        label = result["methods"][name]["label"]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.3, "label": label}
        left.plot(
            _numbers(run["validation"]["step"]),
            _numbers(run["validation"]["psnr"]),
            marker=marker,
            markersize=5,
            **style,
        )
        right.plot(_numbers(run["curve"]["step"]), _numbers(run["curve"]["loss"]), **style)
    left.set_ylabel("PSNR on validation crops, dB")
    right.set_ylabel("training loss (differs by the quantizer's own terms)")
    right.set_yscale("log")
    for ax in (left, right):
        ax.set_xlabel("optimizer steps")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    crops = result["scale"]["crops"]["validation"]
    figure.suptitle(
        f"Training, K = {result['scale']['codes']}, seed 0; {crops} validation crops of "
        f"{result['scale']['image_size']} px",
        fontsize=11,
    )
    return figure


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


PLOTS |= {"rate": rate, "usage": usage, "curves": curves}


def file_of(plot: str, scale: str) -> str:
    """Name of a plot's file."""
    return f"comparison_{plot}.png" if scale == "cpu" else f"comparison_{plot}_{scale}.png"


def picture_of(figure: "Figure") -> Image.Image:
    """The figure in 128 colours, which are enough for lines and text and need a third of the bytes."""
    figure.set_dpi(DPI)
    figure.canvas.draw()
    pixels: Any = figure.canvas
    return Image.fromarray(np.asarray(pixels.buffer_rgba())).convert("RGB").quantize(128)


def draw(result: Result, images: Path) -> list[Path]:
    """Writes all plots of a result; returns their paths."""
    paths = []
    for name, make in PLOTS.items():
        path = images / file_of(name, result["scale"]["name"])
        with atomic_file(path) as temporary:
            picture_of(make(result)).save(temporary, optimize=True)
        paths.append(path)
    return paths
