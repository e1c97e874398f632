from pathlib import Path

import pytest
import torch

from benchmarks.equal_budget import evaluate as module
from benchmarks.equal_budget.carry_out import make_start
from benchmarks.equal_budget.crops import cut
from benchmarks.equal_budget.evaluate import KnownFeatures, evaluate, validated
from benchmarks.equal_budget.scales import SCALES
from lgq_hf import LGQImageProcessor
from lgq_hf.images.sources import open_source
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from tests.benchmarks.equal_budget.made_result import metrics
from tests.benchmarks.equal_budget.test_crops import make_corpus

SCALE = SCALES["quick"]


def test_everything_that_tables_show_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 1, "validation": 1, "test": 2})
    counts = {"train": 1, "validation": 1, "test": 3}
    cut(corpus, tmp_path / "crops", size=SCALE.image_size, counts=counts, seed=0)
    make_start(SCALE, tmp_path, 0)
    LGQImageProcessor(pad_to_multiple_of=4).save_pretrained(tmp_path / "start-seed0")
    seen: list[int] = []
    pooled = EfficientNetLite0.pooled
    monkeypatch.setattr(
        EfficientNetLite0, "pooled", lambda self, pictures: seen.append(len(pictures)) or pooled(self, pictures)
    )
    first = evaluate(tmp_path / "start-seed0", tmp_path, "cpu")
    assert set(metrics(1.0, 1.0, 1)) <= set(first["metrics"])
    assert sum(first["codebook_counts"]) == 3 * 64 and first["protocol"]["pictures"] == 3
    assert "source" not in first["protocol"]  # it has this machine's place
    assert seen.count(3) == 1  # originals, once and for all runs
    source = open_source(str(tmp_path / "crops"), kind="parquet", split="test", image_column="image", id_column="id")
    assert len(module.features_of_originals(tmp_path, source, None)) == 3  # type: ignore[arg-type]


def test_known_features_are_those_of_the_network() -> None:
    network = KnownFeatures()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = EfficientNetLite0().pooled(pictures)
    assert torch.allclose(network.pooled(pictures), features, atol=1e-4)
    network.known = {module.key_of(picture): torch.full((1280,), 3.0) for picture in pictures[:1]}
    assert torch.allclose(network.pooled(pictures), features, atol=1e-4)  # of one alone: all are computed
    assert (network.pooled(pictures[:1]) == 3).all()


def test_what_the_trainer_measured() -> None:
    row = {"psnr": 20.0, "ssim": 0.5, "perplexity": 3.0, "tokens": 64.0, "pictures": 4.0, "dead_codes": 10.0}
    trained = {
        "validation": [{}, {**row, "codebook_usage": 0.375}],
        "model": {"codebook_size": 16},
        "protocol": {"psnr, ssim": "per picture"},
    }
    found = validated(trained)
    assert found["metrics"]["codes_used"] == 6 and found["metrics"]["psnr"] == 20.0
    assert found["protocol"] == {"psnr, ssim": "per picture"}
