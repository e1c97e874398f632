"""Where it is known whether weights are a moving average."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.evaluation.described import ema_of
from lgq_hf.metrics.frozen import sha256_of


@pytest.mark.parametrize(
    ("decay", "expected"), [(0.999, "yes"), (0, "no"), (None, "unknown"), ("stale", "unknown"), ("damaged", "unknown")]
)
def test_by_results_of_these_weights(
    decay: Any, expected: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    weights = "0" * 64 if decay == "stale" else sha256_of(folder / "model.safetensors")
    optimizer = {} if decay is None else {"ema_decay": 0.9 if decay == "stale" else decay}
    content = json.dumps({"weights_sha256": weights, "recipe": {"optimizer": optimizer}})
    (folder / "results.json").write_text(content[:9] if decay == "damaged" else content)
    assert ema_of(load_checkpoint(str(folder), "cpu")) == expected


@pytest.mark.parametrize(("weights", "expected"), [("ema", "yes"), ("raw", "unknown")])
def test_by_the_source_of_a_converted_one(
    weights: str, expected: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", converted_from={"weights": weights})
    assert ema_of(load_checkpoint(str(folder), "cpu")) == expected


def test_unknown_where_nothing_stands_beside_it() -> None:
    assert ema_of(load_checkpoint(None, "cpu")) == "unknown"
