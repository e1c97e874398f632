"""One interface for the networks that sets of pictures are compared by."""

from pathlib import Path

import pytest
import torch

from lgq_hf.metrics import extractors
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.extractors import Extractor, build_extractor
from lgq_hf.metrics.frechet import FeatureStatistics


def test_one_without_a_file(network: EfficientNetLite0) -> None:
    built = build_extractor("efficientnet-lite0")
    assert type(built) is EfficientNetLite0
    extractor: Extractor = network  # also a question to mypy
    assert (built.name, built.weights_sha256) == (extractor.name, extractor.weights_sha256)


def test_one_with_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        def __init__(self, weights: Path, *, resize: str) -> None:
            self.asked = (weights, resize)

    monkeypatch.setattr(extractors, "InceptionV3Fid", Asked)
    assert build_extractor("inception-2015", Path("a.pth")).asked == (Path("a.pth"), "tensorflow")
    assert build_extractor("inception-2015", "b.pth", resize="torch").asked == ("b.pth", "torch")


def test_its_features_have_the_dimensions_it_says(network: EfficientNetLite0) -> None:
    statistics = FeatureStatistics(network.dimensions)
    statistics.update(network.pooled(torch.rand(3, 3, 16, 16)))
    assert statistics.mean.shape == (network.dimensions,)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="weights: only for inception-2015, got the name efficientnet-lite0: leave o"):
        build_extractor("efficientnet-lite0", "a.pth")
    with pytest.raises(ValueError, match="weights and resize: only for inception-2015, got the name efficientnet-l"):
        build_extractor("efficientnet-lite0", "a.pth", resize="torch")
    with pytest.raises(ValueError, match="inception-2015 needs a file: give weights. Nothing is downloaded; see Inc"):
        build_extractor("inception-2015", resize="torch")
    with pytest.raises(ValueError, match="resize: expected tensorflow or torch, got ''"):
        build_extractor("inception-2015", "a.pth", resize="")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="weights: no file nowhere.pth. Expected the Inception weights of FID"):
        build_extractor("inception-2015", "nowhere.pth")
    with pytest.raises(ValueError, match="extractor: expected efficientnet-lite0 or inception-2015, got 'inception'"):
        build_extractor("inception", "a.pth")  # type: ignore[arg-type]
