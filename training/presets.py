"""Settings of LGQ that a recipe begins with, for what it does not say itself.

`best`, the default, is the best that is known so far (docs/lab_log.md, docs/comparison.md); `paper` is as published
(arXiv 2602.16086).
"""

import copy
from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "best": {
        "model": {
            "latent_group_norm": False,
            "code_dim": 8,
            "distance": "sq_l2",
            "straight_through": "identity",
            "commitment_weight": 0.25,
            "lambda_peak": 0.005,
            "lambda_usage": 0.005,
        },
        "quantizer": {
            "init_method": "random",
            "learning_rate_scale": 10.0,
            "temperature_start": 1.0,
            "temperature_end": 0.1,
            "temperature_schedule": "linear",
        },
    },
    "paper": {
        "model": {
            "latent_group_norm": True,
            "code_dim": None,
            "distance": "sq_l2",
            "straight_through": "soft",
            "commitment_weight": 1.0,
            "lambda_peak": 0.005,
            "lambda_usage": 0.005,
        },
        "quantizer": {
            "init_method": "random",
            "learning_rate_scale": 1.0,
            "temperature_start": 1.0,
            "temperature_end": 0.1,
            "temperature_schedule": "linear",
        },
    },
}
DEFAULT = "best"
NONE = "none"  # the defaults of the recipe's own fields; what the recipe says that a run leaves behind


def with_preset(values: Any, where: str) -> Any:
    """A recipe's values with those of its `preset` (`"best"` where it names none) for what it leaves out.

    Presets are of LGQ's vector form: another quantizer, or scalar bins, begin with the recipe's own defaults. Where a
    recipe sets one of the fields that hang together, the others follow: the soft estimator has a commitment of 1.

    Raises:
        ValueError: an unknown preset.
    """
    if not isinstance(values, dict):
        return values  # refused later, by name
    values = copy.deepcopy(values)
    explicit = "preset" in values
    name = values.pop("preset", DEFAULT)
    if name == NONE:
        return values
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset of {where} must be one of {sorted([*PRESETS, NONE])}, got {name!r}")
    given = values.get("model") or {}
    if not isinstance(given, dict):
        return values
    for field, own in (("quantizer", "lgq"), ("codebook_mode", "vector")):
        if given.get(field, own) != own:
            if explicit:
                got = f"{field}='{own}', got '{given[field]}'"
                raise ValueError(f"preset '{name}' of {where} is of {got}: leave the preset out")
            return values
    preset = copy.deepcopy(PRESETS[name])
    if given.get("backbone", "lgq") != "lgq":
        del preset["model"]["latent_group_norm"]  # the other backbone has none
    if given.get("straight_through") == "soft":
        preset["model"]["commitment_weight"] = 1.0
    for section, fields in preset.items():
        if values.get(section) is None:
            values[section] = {}
        if isinstance(values[section], dict):  # what is not is refused by name, later
            values[section] = {**fields, **values[section]}
    return values
