"""When a Fréchet distance is rFID, and where it is known whether weights are a moving average."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.evaluation.results import ema_of, metrics
from lgq_hf.evaluation.settings import Networks, frechet_key, frechet_label
from lgq_hf.evaluation.tokenizers import _measured
from lgq_hf.evaluation.totals import Processes
from lgq_hf.images.sources import ImageSource
from lgq_hf.metrics.frozen import sha256_of
from tests.lgq_hf.evaluation.plain import MeanColours, settings


@pytest.mark.parametrize(
    ("extractor", "pictures", "reference", "key"),
    [
        ("inception-2015", 50_000, True, "rfid"),
        ("inception-2015", 1_281_167, True, "rfid"),
        ("inception-2015", 49_999, True, "frechet_distance"),
        ("inception-2015", 50_000, False, "frechet_distance"),
        ("efficientnet-lite0", 50_000, True, "frechet_distance"),
        ("inception-v3", 50_000, True, "frechet_distance"),
    ],
)
def test_the_rule(extractor: str, pictures: int, reference: bool, key: str) -> None:
    assert frechet_key(extractor, pictures, reference) == key
    label = frechet_label(key, extractor, pictures)
    assert label.startswith("rFID (inception-2015, ") == (key == "rfid")
    assert f"{pictures:,} pictures" in label and extractor in label
    assert (", not rFID" in label.replace(";", ",")) == (key != "rfid")


class Inception(MeanColours):
    name, is_reference = "inception-2015", True


@pytest.mark.parametrize(("pictures", "reference"), [(7, True), (50_000, True), (50_000, False)])
def test_results_go_by_it(pictures: int, reference: bool, tiny: Checkpoint, source: ImageSource) -> None:
    extractor: Any = Inception()
    extractor.is_reference = reference
    totals, _ = _measured(tiny, source, settings(), Networks(extractor), Processes(), None)
    found = metrics(totals, pictures)
    assert ("rfid" in found) == (pictures == 50_000 and reference)
    assert ("frechet_distance" in found) != ("rfid" in found)


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
