"""Validation figures against their definitions, and shared by processes."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgq_hf import LGQModel
from lgq_hf.metrics.frechet import FeatureStatistics, frechet_distance
from lgq_hf.metrics.reconstruction import psnr, ssim
from tests.training import steps, validate
from training.validation import HIGHER_IS_BETTER, Validator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _alone() -> None:
    steps.forget_processes()


@pytest.fixture(scope="module")
def model() -> LGQModel:
    return validate.a_model()


@pytest.fixture(scope="module")
def once(corpus: Path, model: LGQModel) -> tuple[Validator, dict[str, float], Image.Image]:
    """Five pictures in batches of two."""
    validator = validate.a_validator(corpus, 5)
    values, sheet = validator(model)
    assert sheet is not None
    return validator, values, sheet


def _one_by_one(validator: Validator, model: LGQModel) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Pictures and reconstructions (1,3,H,W) in [0, 1], and all tokens, one picture at a time."""
    originals, decoded, tokens = [], [], []
    mean, std = (torch.tensor(getattr(validator.processor, n)).view(3, 1, 1) for n in ("image_mean", "image_std"))
    model.eval()
    for batch in validator.batches():
        for pixels in batch.pixel_values.split(1):
            with torch.no_grad():
                found = model.encode(pixels).image_tokens
                output = model.decode(found).decoded_pixel_values
            tokens.append(found.flatten())
            originals.append((pixels * std + mean).clamp(0, 1))
            decoded.append((output * std + mean).clamp(0, 1))
    model.train()
    return originals, decoded, torch.cat(tokens)


def test_figures_are_those_of_each_picture(once: Any, model: LGQModel) -> None:
    validator, values, _ = once
    originals, decoded, tokens = _one_by_one(validator, model)
    assert len(originals) == values["pictures"] == 5
    for name, metric in (("psnr", psnr), ("ssim", ssim), ("perceptual", validator.perceptual)):
        with torch.no_grad():
            each = [float(metric(a, b)) for a, b in zip(originals, decoded, strict=True)]
        assert values[name] == pytest.approx(np.mean(each), rel=1e-4) and np.std(each) > 0, name
    statistics = [FeatureStatistics(1280) for _ in range(2)]
    for part, pictures in zip(statistics, (originals, decoded), strict=True):
        part.update(validator.extractor.pooled(torch.cat(pictures)))
    assert values["frechet"] == pytest.approx(frechet_distance(*statistics), rel=1e-4) and values["frechet"] > 1
    counts = np.bincount(tokens.numpy(), minlength=32)
    p = counts[counts > 0] / counts.sum()
    assert values["tokens"] == counts.sum() == 5 * 32 * 32
    assert values["dead_codes"] == (counts == 0).sum() and values["codebook_usage"] == (counts > 0).mean()
    assert values["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_a_model_that_got_better(once: Any, corpus: Path, model: LGQModel) -> None:
    """The second validation has the first one's reference features, and says the same of the same model."""
    validator, values, _ = once
    calls = []
    hook = validator.extractor.network._conv_stem.register_forward_hook(lambda *_: calls.append(1))
    again, _ = validator(model)
    hook.remove()
    assert again == values and len(calls) == 3  # reconstructions alone
    assert set(values) >= set(HIGHER_IS_BETTER)


def test_batches_change_nothing(once: Any, corpus: Path, model: LGQModel) -> None:
    values, _ = validate.a_validator(corpus, 5, batch_size=3)(model)
    assert values == pytest.approx(once[1], rel=1e-5)


def test_fewer_pictures_than_wanted(corpus: Path, model: LGQModel) -> None:
    values, sheet = validate.a_validator(corpus, 100, split="validation", sheet=8)(model)
    assert values["pictures"] == 2 and isinstance(values["pictures"], int)
    assert sheet is not None and 2 * validate.SIZE < sheet.height < 4 * validate.SIZE


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_as_before(once: Any, model: LGQModel, training: bool) -> None:
    modes = []
    hook = model.decoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    model.train(training)
    once[0](model)
    hook.remove()
    assert modes == [False] * 3 and all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.train()


def test_the_sheet_shows_the_first_pictures(once: Any, corpus: Path, model: LGQModel, tmp_path: Path) -> None:
    validator, _, sheet = once
    originals, decoded, _ = _one_by_one(validator, model)
    sheet.save(tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))

    def places(picture: torch.Tensor) -> list[tuple[int, int]]:
        wanted = (picture[0] * 255).round().byte().permute(1, 2, 0).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(pixels[:, :, 0], wanted.shape[:2])
        near = np.abs(windows[:, :, ::9, ::9].astype(int) - wanted[::9, ::9, 0]).max((2, 3)) <= 1
        found = [(int(y), int(x)) for y, x in zip(*near.nonzero(), strict=True)]
        size = wanted.shape[0]
        return [
            (y, x)
            for y, x in found
            if np.abs(pixels[y : y + size, x : x + size].astype(int) - wanted.astype(int)).max() <= 1
        ]

    left, right = ([places(picture) for picture in pictures] for pictures in (originals, decoded))
    assert [len(found) for found in left] == [len(found) for found in right] == [1, 1, 1, 0, 0]
    for (a,), (b,) in zip(left[:3], right[:3], strict=True):
        assert a[0] == b[0] and a[1] < b[1]
    assert [found[0][0] for found in left[:3]] == sorted(found[0][0] for found in left[:3])


def test_without_networks(corpus: Path, model: LGQModel) -> None:
    validator = validate.a_validator(corpus, 2)
    validator.perceptual = validator.extractor = None
    values, _ = validator(model)
    assert set(values) == {"psnr", "ssim", "codebook_usage", "perplexity", "dead_codes", "tokens", "pictures"}
    assert validator.protocol()["frechet"] is None and validator.protocol()["perceptual"] is None


def test_the_protocol_names_its_networks(once: Any) -> None:
    protocol = once[0].protocol()
    assert protocol["frechet"] == {
        "network": "efficientnet-lite0",
        "weights_sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    }
    assert protocol["perceptual"]["weights_sha256"] == protocol["frechet"]["weights_sha256"]
    assert json.loads(json.dumps(protocol)) == protocol


def test_pictures_that_cannot_be_read_are_named(
    corpus: Path, model: LGQModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    (tmp_path / "images").mkdir()
    for row in rows:
        (tmp_path / row["file"]).write_bytes((corpus / row["file"]).read_bytes())
    (tmp_path / "manifest.jsonl").write_text((corpus / "manifest.jsonl").read_text())
    rows = [row for row in rows if row["split"] == "train"]
    broken = rows[np.random.default_rng(0).permutation(len(rows))[0]]["file"]  # the first that validation meets
    (tmp_path / broken).write_bytes(b"no picture")
    validator = validate.a_validator(tmp_path, 3)
    validator.perceptual = validator.extractor = None
    with caplog.at_level(logging.WARNING, "training.validation"):
        values, _ = validator(model)
        validator(model)
    assert values["pictures"] == 2
    (record,) = caplog.records
    assert f"{broken} cannot be read and is left out: " in record.getMessage()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(once: Any, corpus: Path, model: LGQModel, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(Path(validate.__file__)), str(corpus), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["values"] == ranks[1]["values"] and [rank["sheet"] for rank in ranks] == [True, False]
    five, single = ranks[0]["values"]
    assert five == pytest.approx(once[1], rel=1e-5)
    one = validate.a_validator(corpus, 1)
    one.extractor = None
    assert single == pytest.approx(one(model)[0], rel=1e-5) and single["pictures"] == 1
