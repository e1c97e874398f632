from pathlib import Path

import pytest

from benchmarks.equal_budget.carry_out import make_start
from benchmarks.equal_budget.crops import cut
from benchmarks.equal_budget.scales import SCALES
from benchmarks.equal_budget.worker import evaluate, validated
from lgq_hf import LGQImageProcessor
from tests.benchmarks.equal_budget.made_result import metrics
from tests.benchmarks.equal_budget.test_crops import make_corpus

SCALE = SCALES["quick"]


@pytest.mark.slow
def test_everything_that_tables_show_is_measured(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 1, "validation": 1, "test": 2})
    counts = {"train": 1, "validation": 1, "test": 3}
    cut(corpus, tmp_path / "crops", size=SCALE.image_size, counts=counts, seed=0)
    make_start(SCALE, tmp_path, 0)
    LGQImageProcessor(pad_to_multiple_of=4).save_pretrained(tmp_path / "start-seed0")
    first = evaluate(tmp_path / "start-seed0", tmp_path, "cpu")
    assert set(metrics(1.0, 1.0, 1)) <= set(first["metrics"])
    assert sum(first["codebook_counts"]) == 3 * 64 and first["protocol"]["pictures"] == 3
    assert "source" not in first["protocol"]  # it has this machine's place


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
