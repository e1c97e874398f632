"""The methods: what each sets of a recipe, and the four settings among which each is tuned.

Overrides are named as in a recipe, `model.code_dim` or `quantizer.init_method`; nothing else differs between methods.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Overrides = dict[str, Any]
SETTINGS = 4  # of each method, no more and no fewer

# K as levels of FSQ: mostly fours, eights, sixteens, and fours with twos
FSQ_LEVELS: dict[int, tuple[list[int], ...]] = {
    16: ([4, 4], [8, 2], [16], [2, 2, 2, 2]),
    64: ([4, 4, 4], [8, 8], [16, 4], [4, 2, 2, 2, 2]),
    256: ([4, 4, 4, 4], [8, 8, 4], [16, 16], [4, 4, 2, 2, 2, 2]),
    1024: ([4, 4, 4, 4, 4], [8, 8, 4, 4], [16, 8, 8], [4, 4, 4, 2, 2, 2, 2]),
    4096: ([4, 4, 4, 4, 4, 4], [8, 8, 8, 8], [16, 16, 16], [4, 4, 4, 4, 2, 2, 2, 2]),
    16384: ([4, 4, 4, 4, 4, 4, 4], [8, 8, 8, 8, 4], [16, 16, 8, 8], [4, 4, 4, 4, 4, 2, 2, 2, 2]),
}


@dataclass(frozen=True)
class Method:
    """One way to quantize.

    Attributes:
        name: in names of runs.
        label: in tables and plots.
        source: paper.
        seeds: runs of the comparison, with seeds 0, 1, ...
        fields: overrides for K codes that all settings share.
        settings: for K codes, the overrides of each of the four settings.
        trend: whether it is run at other K too.
        norm: whether the backbone has the published norm behind its encoder.
    """

    name: str
    label: str
    source: str
    seeds: int
    fields: Callable[[int], Overrides]
    settings: Callable[[int], tuple[Overrides, ...]]
    trend: bool = False
    norm: bool = True

    def overrides(self, codes: int, setting: int) -> Overrides:
        """All that differs from the shared recipe, for K codes and one of the settings."""
        norm: Overrides = {} if self.norm else {"model.latent_group_norm": False}
        return {"model.codebook_size": codes, **norm, **self.fields(codes), **self.settings(codes)[setting]}


def _grid(first: list[Overrides], second: list[Overrides]) -> Callable[[int], tuple[Overrides, ...]]:
    """Every one of `first` with every one of `second`, the same for any K."""
    settings = tuple({**a, **b} for a in first for b in second)
    return lambda codes: settings


def _each(name: str, *values: Any) -> list[Overrides]:
    return [{name: value} for value in values]


def _fixed(**model: Any) -> Callable[[int], Overrides]:
    """Fields of the model that do not depend on K, with a codebook that begins on latents."""
    fields = {"quantizer.init_method": "random", **{f"model.{name}": value for name, value in model.items()}}
    return lambda codes: fields


def _bits(**model: Any) -> Callable[[int], Overrides]:
    """As `_fixed`, with log2 K channels."""
    return lambda codes: {**_fixed(**model)(codes), "model.code_dim": int(math.log2(codes))}


def _levels(codes: int) -> tuple[Overrides, ...]:
    return tuple({"model.levels": levels, "model.code_dim": len(levels)} for levels in FSQ_LEVELS[codes])


_SOFT = {"model.straight_through": "soft"}
_IDENTITY = {"model.straight_through": "identity", "model.commitment_weight": 0.25}
_RATES = _each("quantizer.learning_rate_scale", 1, 10)
_USAGE = _each("model.lambda_usage", 0.005, 0.05)
_EMA = _grid(_each("model.codebook_decay", 0.99, 0.9), _each("model.dead_code_threshold", 0.0, 0.1))
_WIDTHS = _grid(_each("model.code_dim", 8, 32), _RATES)


def _lgq(codes: int) -> Overrides:
    temperature = {"temperature_start": 1.0, "temperature_end": 0.1, "temperature_schedule": "linear"}
    schedule = {f"quantizer.{name}": value for name, value in temperature.items()}
    fields = _fixed(quantizer="lgq", code_dim=8, distance="sq_l2", lambda_peak=0.005)(codes)
    return {**fields, **schedule, "quantizer.learning_rate_scale": 10}


def _lgq_paper(codes: int) -> Overrides:
    """As published: codes in the encoder's latent space, the soft estimator."""
    return {**_lgq(codes), "model.code_dim": None, **_SOFT}


def _vq_ema(*, rotation: bool) -> Callable[[int], Overrides]:
    return _fixed(
        quantizer="vq",
        distance="sq_l2",
        code_dim=8,
        codebook_update="ema",
        rotation_trick=rotation,
        commitment_weight=0.25,
    )


_WITH_NORM = {
    method.name: method
    for method in (
        Method("lgq", "LGQ", "arXiv 2602.16086", 3, _lgq, _grid([_SOFT, _IDENTITY], _USAGE), True),
        Method("lgq_paper", "LGQ as published", "arXiv 2602.16086", 3, _lgq_paper, _grid(_USAGE, _RATES)),
        Method(
            "vq",
            "VQ (cosine)",
            "arXiv 1711.00937, arXiv 2406.06525",
            3,
            _fixed(quantizer="vq", distance="cosine", code_dim=8, commitment_weight=0.25),
            _grid(_RATES, _each("quantizer.init_method", "random", "kmeans")),
            trend=True,
        ),
        Method("vq_ema", "VQ (moving average)", "arXiv 1906.00446", 3, _vq_ema(rotation=False), _EMA),
        Method("vq_rotation", "VQ (rotation trick)", "arXiv 2410.06424", 3, _vq_ema(rotation=True), _EMA),
        Method("fsq", "FSQ", "arXiv 2309.15505", 3, _fixed(quantizer="fsq"), _levels, True),
        Method("ifsq", "iFSQ", "arXiv 2601.17124", 1, _fixed(quantizer="fsq", fsq_bound="sigmoid"), _levels),
        Method(
            "simvq",
            "SimVQ",
            "arXiv 2411.02038",
            3,
            _fixed(quantizer="simvq", learn_projection=True, commitment_weight=0.25),
            _WIDTHS,
            trend=True,
        ),
        Method(
            "lfq",
            "LFQ",
            "arXiv 2310.05737",
            1,
            _bits(quantizer="lfq", entropy_temperature=0.01),
            _grid(_each("model.entropy_weight", 0.02, 0.1), _each("model.commitment_weight", 0.25, 1.0)),
        ),
        Method(
            "bsq",
            "BSQ",
            "arXiv 2406.07548",
            1,
            _bits(quantizer="bsq", commitment_weight=0.0),
            _grid(_each("model.entropy_weight", 0.02, 0.1), _each("model.entropy_temperature", 1.0, 0.1)),
        ),
        Method(
            "ibq",
            "IBQ",
            "arXiv 2412.02692",
            1,
            _fixed(quantizer="ibq", distance="dot", entropy_weight=0.05, entropy_temperature=0.01),
            _grid(_each("model.code_dim", 8, 32), _each("quantizer.init_method", "random", "keep")),
        ),
    )
}
# The main methods without that norm, each tuned anew: it scales latents, and takes something of a mean colour away
_BARE = {
    f"{one.name}_bare": replace(one, name=f"{one.name}_bare", label=f"{one.label}, no norm", trend=False, norm=False)
    for one in _WITH_NORM.values()
    if one.name in ("lgq", "vq", "vq_ema", "vq_rotation", "fsq", "simvq")
}


def _lgq_quarter(codes: int) -> Overrides:
    """A codebook of K / 4 beside the others' K."""
    return {**_lgq(codes), "model.codebook_size": codes // 4}


_QUARTER = replace(_BARE["lgq_bare"], name="lgq_quarter", label="LGQ, no norm, K / 4", fields=_lgq_quarter)
METHODS = {**_WITH_NORM, **_BARE, _QUARTER.name: _QUARTER}


def describe(overrides: Overrides) -> str:
    """Overrides in words: `code_dim 8, learning_rate_scale 10`."""

    def word(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(map(str, value)) + "]"
        return f"{value:g}" if isinstance(value, float) else str(value)

    names = [(name.rpartition(".")[2], value) for name, value in overrides.items()]
    with_levels = any(name == "levels" for name, _ in names)  # whose number is the code_dim
    return ", ".join(f"{name} {word(value)}" for name, value in names if not (with_levels and name == "code_dim"))
