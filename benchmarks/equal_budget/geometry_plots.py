"""Pictures of codes among latents: a row for each tokenizer."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from benchmarks.equal_budget.geometry_measures import Geometry
from lgq_hf.files import atomic_file

# of Okabe and Ito, which people with any colour vision tell apart
BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#D55E00"
_GREYS = ListedColormap(colormaps["Greys"](np.linspace(0.2, 0.95, 128)))  # a single latent is to be seen, too
_OCCUPANCY = LogNorm(0.05, 20)  # in units of even use, N / K
_NEAR, _FAR = 0.01, 10.0  # distances that are told apart, in units of the latents' radius
_SMALL: dict[str, Any] = {"fontsize": 7.5, "labelpad": 1}
_WIDTH, _ROW, _ABOVE, _BELOW = 10.5, 2.4, 1.15, 0.5  # inches


def draw(geometries: Mapping[str, Geometry], path: Path, title: str) -> None:
    """Writes a PNG: codes over latents, occupancy over density, and distances.

    Args:
        geometries: by label, at least one; drawn from top to bottom.
        path: of the PNG.
        title: of the whole.
    """
    rows = len(geometries)
    height = rows * _ROW + _ABOVE + _BELOW - 0.6
    figure = Figure(figsize=(_WIDTH, height), dpi=100)
    grid: Any = figure.subplots(rows, 3, squeeze=False, width_ratios=(1.05, 1, 1))
    figure.subplots_adjust(
        left=0.045, right=0.985, bottom=_BELOW / height, top=1 - _ABOVE / height, wspace=0.23, hspace=0.5
    )
    for row, (label, geometry) in zip(grid, geometries.items(), strict=True):
        _codes_over_latents(row[0], geometry, label)
        _occupancy_over_density(row[1], geometry)
        _distances(row[2], geometry)
    _share_limits(list(grid[:, 1]))
    figure.suptitle(title, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    _legend(figure, height)
    with atomic_file(path) as temporary:
        temporary.write_bytes(_png(figure))


def _png(figure: Figure) -> bytes:
    """A PNG with a palette: a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(small, "png", optimize=True)
    return small.getvalue()


def _legend(figure: Figure, height: float) -> None:
    """What stands for what, and the scale of the colours, under the title."""
    of_codes = [
        Line2D([], [], marker="h", color="0.6", ls="", ms=7, label="latents (darker: more)"),
        Line2D([], [], marker="x", color=RED, ls="", ms=6, label="code that stands for no latent"),
        Line2D([], [], marker="o", color="#21918c", ls="", ms=5, label="code in use, coloured by its occupancy:"),
    ]
    of_distances = [
        Patch(fc=to_rgba(BLUE, 0.35), ec=BLUE, label="distance of a code to its nearest latent"),
        Patch(fc=to_rgba(ORANGE, 0.35), ec=ORANGE, label="of a latent to its code"),
        Line2D([], [], color="0.3", ls="--", lw=1.2, label="medians"),
    ]
    style: dict[str, Any] = {"ncols": 3, "fontsize": 8, "frameon": False, "columnspacing": 1.4, "handletextpad": 0.4}
    for handles, below in ((of_codes, 0.44), (of_distances, 0.67)):
        figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.0, 1 - below / height), **style)
    bar = figure.add_axes((0.665, 1 - 0.5 / height, 0.2, 0.12 / height))
    scale = figure.colorbar(ScalarMappable(_OCCUPANCY, "viridis"), cax=bar, orientation="horizontal", extend="both")
    scale.set_ticks([0.1, 1, 10], labels=["0.1", "1 = even use", "10"])
    bar.tick_params(labelsize=7.5, pad=1)


def _heading(axes: Axes, first: str, second: str, *, bold: bool = False) -> None:
    axes.set_title(first, fontsize=9 if bold else 8, loc="left", pad=15, fontweight="bold" if bold else "normal")
    axes.text(0, 1.03, second, transform=axes.transAxes, fontsize=8)
    axes.tick_params(labelsize=7)


def _codes_over_latents(axes: Axes, geometry: Geometry, label: str) -> None:
    sample = geometry.sample
    plane = geometry.axes_CC[:, : min(2, len(geometry.mean_C))]
    x_N2, c_K2 = (_flat((points - geometry.mean_C) @ plane) for points in (sample.latents_NC, sample.codes_KC))
    used = (geometry.counts_K > 0).numpy()
    limits = [_limits(x_N2[:, i], c_K2[:, i]) for i in (0, 1)]
    x_N, y_N = x_N2.T
    extent = (*limits[0], *limits[1])
    axes.hexbin(x_N, y_N, gridsize=(44, 19), bins="log", cmap=_GREYS, mincnt=1, linewidths=0.1, extent=extent)
    size = float(np.clip(6000 / len(c_K2), 2, 14))
    crosses = float(np.clip(6000 / max(1, (~used).sum()), 5, 30))
    x_K, y_K = c_K2.T
    axes.scatter(x_K[~used], y_K[~used], s=crosses, marker="x", color=RED, linewidths=0.7)
    relative = geometry.counts_K.numpy() * len(c_K2) / len(x_N2)
    order = np.flatnonzero(used)[np.argsort(relative[used])]  # the most used on top
    style: dict[str, Any] = {"s": size, "cmap": "viridis", "norm": _OCCUPANCY, "linewidths": 0}
    axes.scatter(x_K[order], y_K[order], c=relative[order], **style)
    axes.set(xlim=limits[0], ylim=limits[1])
    inside = np.all([(c >= low) & (c <= high) for c, (low, high) in zip(c_K2.T, limits, strict=True)], axis=0)
    outside = int((~inside).sum())
    if outside:
        axes.text(0.98, 0.03, f"{outside} codes outside", transform=axes.transAxes, ha="right", fontsize=7, color=RED)
    explained = float(geometry.spectrum_C[:2].sum() / geometry.spectrum_C.sum())
    _heading(axes, label, f"{used.sum():,} of {len(used):,} codes in use, {len(geometry.mean_C)} channels", bold=True)
    axes.set_xlabel(f"first two principal axes of the latents: {explained:.0%} of the variance", **_SMALL)


def _occupancy_over_density(axes: Axes, geometry: Geometry) -> None:
    counts, density = geometry.counts_K.double().numpy(), geometry.density_K.numpy()
    used, finite = counts > 0, np.isfinite(density)
    density = np.minimum(density, 2 * density[finite].max(initial=0.5))  # infinite: to the right of all others
    even = counts.sum() / len(counts)
    floor = 0.4 / even  # where 0 is drawn
    axes.scatter(density[used], counts[used] / even, s=4, alpha=0.4, color=BLUE, linewidths=0)
    orphans = density[~used]
    axes.scatter(orphans, np.full(len(orphans), floor), s=9, marker="x", color=RED, linewidths=0.7)
    axes.set(xscale="log", yscale="log")
    axes.axhline(1, color="0.6", lw=0.7, zorder=0)
    if len(orphans):
        style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7, "color": RED}
        axes.text(0.99, floor, "0", transform=axes.get_yaxis_transform(), **style)
    _heading(
        axes,
        f"Spearman {_number(geometry.spearman())}",
        f"of codes in use {_number(geometry.spearman_used())}; across halves {_number(geometry.spearman_halves())}",
    )
    axes.set_xlabel("density of latents at the code", **_SMALL)
    axes.set_ylabel("occupancy / even use", **_SMALL)


def _distances(axes: Axes, geometry: Geometry) -> None:
    series = ((geometry.code_to_latent_K.numpy(), BLUE), (geometry.latent_to_code_N.numpy(), ORANGE))
    bins = np.geomspace(_NEAR, _FAR, 100)
    for distances, colour in series:
        shown = np.clip(distances, _NEAR, _FAR)
        weights = np.full(len(shown), 1 / len(shown))
        axes.hist(shown, bins.tolist(), weights=weights, histtype="stepfilled", alpha=0.35, color=colour)
        axes.hist(shown, bins.tolist(), weights=weights, histtype="step", color=colour, lw=1)
        axes.axvline(float(np.median(shown)), color=colour, lw=1.2, ls="--")
    axes.set(xscale="log", xlim=(_NEAR, _FAR))
    _heading(
        axes,
        f"relative error {geometry.relative_error():.3g}, WCSS/TSS {geometry.within_cell_variance():.3g}",
        f"effective dimension of the latents {geometry.dimension:.1f}",
    )
    axes.set_xlabel("distance / rms radius of the latents", **_SMALL)
    axes.set_ylabel("share", **_SMALL)


def _flat(points: Tensor) -> np.ndarray:
    """(n,2) of points with 1 or 2 coordinates."""
    return torch.nn.functional.pad(points, (0, 2 - points.shape[1])).numpy()


def _limits(latents: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """Of an axis: all latents but a thousandth on either side, and codes up to as far again."""
    low, high = np.quantile(latents, [0.001, 0.999])
    room = high - low or 1.0
    inside = codes[(codes > low - room) & (codes < high + room)]
    low, high = min(low, *inside, low), max(high, *inside, high)
    margin = 0.04 * (high - low or 1.0)
    return float(low - margin), float(high + margin)


def _share_limits(several: list[Axes]) -> None:
    """One range of either axis for all, so that rows can be compared."""
    for get, put in ((Axes.get_xlim, Axes.set_xlim), (Axes.get_ylim, Axes.set_ylim)):
        limits = [get(axes) for axes in several]
        for axes in several:
            put(axes, min(low for low, _ in limits), max(high for _, high in limits))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
