"""What a format's reader hands to the converter: configuration, tensors, and what became of every source key."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lgq_hf import LGQConfig

Weights = Literal["auto", "ema", "raw"]


class CheckpointError(ValueError):
    """A checkpoint that is not converted; the message says what was expected, what came and what to do."""


@dataclass
class Plan:
    """A conversion before anything is written.

    Attributes:
        format: name of the source format.
        config: of the model; widths, depths, K and C are read from the tensors' shapes.
        processor: options of `LGQImageProcessor` that give the pixels which the model was trained on.
        tensors: by our name, as they came (views, any float dtype).
        sources: by our name, the source key of each tensor; several where one was computed from them.
        dropped: source keys that nothing uses, with the reason.
        baked: by our name, what was computed instead of copied.
        weights: which of several sets of weights was taken: `"ema"`, or `"raw"` for those that were optimised.
        notes: what a user should know, a sentence each.
    """

    format: str
    config: LGQConfig
    processor: dict[str, Any]
    tensors: dict[str, Tensor]
    sources: dict[str, str]
    dropped: dict[str, str] = field(default_factory=dict)
    baked: dict[str, str] = field(default_factory=dict)
    weights: Literal["ema", "raw"] = "raw"
    notes: list[str] = field(default_factory=list)


__all__ = ["CheckpointError", "Plan", "Weights"]
