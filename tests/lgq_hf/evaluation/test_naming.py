"""A Fréchet distance is rFID by the features of 2015 on 50,000 pictures, and never else."""

from typing import Any

import pytest

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation import results
from lgq_hf.evaluation.naming import frechet_key, frechet_label
from lgq_hf.evaluation.processes import Processes
from lgq_hf.evaluation.settings import Networks
from lgq_hf.evaluation.tokenizers import _measured
from lgq_hf.images.sources import ImageSource
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
    found = results.metrics(totals, pictures)
    assert ("rfid" in found) == (pictures == 50_000 and reference)
    assert ("frechet_distance" in found) != ("rfid" in found)
