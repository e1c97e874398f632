"""What is varied of LGQ at its tuned setting, one thing at a time, and the grid of the trade-off.

An arm changes a nested recipe of the base arm; see `benchmarks.equal_budget.runs`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.equal_budget.methods import Overrides

USAGES = (0.0, 0.001, 0.005, 0.05, 0.2, 0.5)
PEAKS = (0.0, 0.05)  # besides the base arm's
_PEAK_USAGES = (0.0, 0.05, 0.5)  # for which these are tried


@dataclass(frozen=True)
class Arm:
    """One variation.

    Attributes:
        name: of the run.
        group: what it is a variation of, for the table.
        label: what is set, for the table.
        overrides: of the base arm's recipe, made from its values.
    """

    name: str
    group: str
    label: str
    overrides: Callable[[dict[str, Any]], Overrides]


def _arm(name: str, group: str, label: str, **fields: Any) -> Arm:
    """An arm that sets the fields `section__name`."""
    overrides = {key.replace("__", "."): value for key, value in fields.items()}
    return Arm(name, group, label, lambda values: overrides)


def _temperature(name: str, label: str, start: float, end: float, schedule: str = "linear") -> Arm:
    return _arm(
        f"temperature_{name}",
        "temperature",
        label,
        quantizer__temperature_start=start,
        quantizer__temperature_end=end,
        quantizer__temperature_schedule=schedule,
    )


def _batch(size: int) -> Arm:
    """Another batch size with as many pictures; all that counts steps is scaled with them."""

    def overrides(values: dict[str, Any]) -> Overrides:
        factor = values["batch_size"] / size
        places = [("max_steps",), ("optimizer", "warmup_steps"), ("validation", "every")]
        places += [("report", "log_every"), ("report", "checkpoint_every")]
        changed: Overrides = {"batch_size": size}
        for *section, name in places:
            steps = values[section[0]][name] if section else values[name]
            changed[".".join([*section, name])] = max(1, round(steps * factor))
        return changed

    return Arm(f"batch_{size}", "batch size, as many pictures", str(size), overrides)


ARMS: tuple[Arm, ...] = (
    _arm("soft", "straight-through", "soft", model__straight_through="soft", model__commitment_weight=1.0),
    _arm(
        "identity",
        "straight-through",
        "identity, commitment 0.25",
        model__straight_through="identity",
        model__commitment_weight=0.25,
    ),
    _temperature("end_0.1", "1 to 0.1", 1.0, 0.1),
    _temperature("end_0.5", "1 to 0.5", 1.0, 0.5),
    _temperature("end_1", "1 throughout", 1.0, 1.0),
    _temperature("start_4", "4 to 0.1", 4.0, 0.1),
    _temperature("start_16", "16 to 0.1", 16.0, 0.1),
    _temperature("by_channels", "8 to 0.8 (1 to 0.1, times 8 channels)", 8.0, 0.8),
    _temperature("exponential", "1 to 0.1, exponential", 1.0, 0.1, "exponential"),
    _temperature("cosine", "1 to 0.1, cosine", 1.0, 0.1, "cosine"),
    _arm("temperature_learned", "temperature", "1 to 0.1, times a learned factor", model__learn_temperature=True),
    *(
        _arm(f"init_{method}", "codes begin by", method, quantizer__init_method=method)
        for method in ("random", "kmeans", "gaussian", "uniform")
    ),
    *(_arm(f"code_dim_{dim}", "channels of a code", str(dim), model__code_dim=dim) for dim in (4, 8, 16, 32, 64)),
    *(
        _arm(f"distance_{distance}", "distance", distance, model__distance=distance)
        for distance in ("sq_l2", "l2", "cosine", "dot")
    ),
    _arm("latent_norm_none", "norm behind the encoder", "none", model__latent_group_norm=False),
    _arm("widths", "widths", "learned", model__learn_widths=True),
    _arm("dead_codes", "dead codes", "moved onto latents below 0.1 of even use", model__dead_code_threshold=0.1),
    *(
        _arm(f"rate_{factor}", "learning rate of codes", f"times {factor}", quantizer__learning_rate_scale=factor)
        for factor in (1, 3, 10, 30)
    ),
    _batch(16),
    _batch(32),
    _batch(64),
)


def _trade(usage: float, peak: float | None) -> Arm:
    """One point: weights of the usage and (where one is given) of the peakedness term."""
    name, label = f"usage_{usage:g}", f"lambda_usage {usage:g}"
    fields: dict[str, Any] = {"model__lambda_usage": usage}
    if peak is not None:
        name, label = f"{name}_peak_{peak:g}", f"{label}, lambda_peak {peak:g}"
        fields["model__lambda_peak"] = peak
    return _arm(name, "lambda_peak as tuned" if peak is None else f"lambda_peak {peak:g}", label, **fields)


TRADEOFF: tuple[Arm, ...] = (
    *(_trade(usage, None) for usage in USAGES),
    *(_trade(usage, peak) for peak in PEAKS for usage in _PEAK_USAGES),
    _trade(0.0, 0.02),
)
