"""An evaluation against plain loops in float64, whatever the pictures, the tokens and the batches are."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from lgq_hf import LGQModel
from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.images.sources import ImageSource, open_source
from tests.lgq_hf.evaluation.plain import COUNT, MeanColours, Seen, evaluated, settings


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(((a.astype(float) - b.astype(float)) ** 2).mean() / 255**2)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(a / 255, b / 255, data_range=1.0, channel_axis=2, **options))


def entropy(tokens: np.ndarray) -> float:
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(-(shares * np.log2(shares)).sum())


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """By the eigenvalues of the root's square."""
    one, other = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one) + np.trace(other) - 2 * cross)


def colours(pictures: list[np.ndarray]) -> np.ndarray:
    halves = [(x[: len(x) // 2], x[len(x) // 2 :]) for x in pictures]
    return np.array([[*upper.mean((0, 1)), *lower.mean((0, 1))] for upper, lower in halves]) / 255


class Once(MeanColours):
    """An extractor that classifies by its features too."""

    def __init__(self) -> None:
        self.seen = 0

    def pooled(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen += len(pictures)
        return super().pooled(pictures)

    def logits_of(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_a_network_that_extracts_and_classifies_runs_once(tiny: Checkpoint, source: ImageSource) -> None:
    both, alone = Once(), Once()
    results = [
        evaluate_tokenizer(tiny, source, settings(), both, classifier=both),
        evaluate_tokenizer(tiny, source, settings(), alone, classifier=MeanColours()),
    ]
    assert both.seen == alone.seen == 2 * 8  # originals and reconstructions of two batches
    assert results[0]["metrics"] == results[1]["metrics"]


def test_pictures_are_compared_as_they_would_be_saved(tiny: Checkpoint, source: ImageSource) -> None:
    result = evaluated(tiny, source, settings(), lpips=MeanColours())
    metrics, pairs = result["metrics"], Seen(tiny, source, 32, 4).pairs
    decibels, similarities = ([measure(a, b) for a, b in pairs] for measure in (psnr, ssim))
    distances = [np.abs(a.astype(float) - b).mean() / 255 for a, b in pairs]
    columns = {"psnr": decibels, "ssim": similarities, "perceptual": distances, "lpips": distances}
    for name, values in columns.items():
        assert metrics[name] == pytest.approx(np.mean(values), rel=1e-6), name
        assert metrics[f"{name}_std"] == pytest.approx(np.std(values, ddof=1), rel=1e-4), name
    features = [colours([pair[which] for pair in pairs]) for which in (0, 1)]
    assert metrics["frechet_distance"] == pytest.approx(frechet(*features), rel=1e-4)
    agreeing = [a.argmax() == b.argmax() for a, b in zip(*features, strict=True)]
    assert metrics["top1_agreement"] == pytest.approx(np.mean(agreeing)) and "rfid" not in metrics
    assert metrics["identical_pictures"] == 0
    order = np.argsort(decibels, kind="stable")
    assert [view["id"] for view in result["extremes"]["worst"]] == [f"{number}.png" for number in order[:3]]
    assert [view["id"] for view in result["extremes"]["best"]] == [f"{number}.png" for number in order[:-4:-1]]
    assert result["extremes"]["best"][0]["psnr"] == pytest.approx(max(decibels))


CASES = ["sq_l2", "cosine_no_attention", "per_channel", "product", "vqgan_vq_cosine", "wetok", "fsq", "bsq"]


@pytest.mark.parametrize("case", CASES)
def test_codes_of_every_kind(case: str, checkpoint_of: Callable[[str], Checkpoint], source: ImageSource) -> None:
    checkpoint = checkpoint_of(case)
    result = evaluated(checkpoint, source, settings())
    metrics, seen, config = result["metrics"], Seen(checkpoint, source, 32, 4), checkpoint.config
    positions, groups = seen.tokens.shape
    assert groups == config.tokens_per_position == result["model"]["tokens_per_position"]
    assert (metrics["tokens"], metrics["codebook_size"]) == (positions * groups, config.codebook_size)
    assert result["codebook_counts"] == np.bincount(seen.tokens.ravel(), minlength=config.codebook_size).tolist()
    assert metrics["entropy_bits"] == pytest.approx(entropy(seen.tokens.ravel()))
    assert metrics["perplexity"] == pytest.approx(2 ** entropy(seen.tokens.ravel()))
    each = [entropy(column) for column in seen.tokens.T]
    assert metrics.get("entropy_bits_by_group", each) == pytest.approx(each)
    assert ("entropy_bits_by_group" in metrics) == (groups > 1)
    pixels = COUNT * 32 * 32
    assert metrics["bits_per_pixel"] == pytest.approx(config.bits_per_pixel)
    assert metrics["bits_per_pixel_by_entropy"] == pytest.approx(positions * sum(each) / pixels)

    latents, codes = seen.latents, seen.codes
    if config.distance == "cosine" or config.quantizer == "bsq":
        latents, codes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (latents, codes))
    if config.quantizer == "fsq":
        with torch.inference_mode():
            bounded: Any = checkpoint.model.quantizer.bounded(torch.from_numpy(latents))
        latents = bounded.numpy() / (np.array(config.levels) // 2)
    lengths = np.linalg.norm(latents - codes, axis=1)
    variance = ((latents - latents.mean(0)) ** 2).sum(1).mean()
    assert metrics["mean_squared_distance"] == pytest.approx((lengths**2).mean(), rel=1e-5)
    assert metrics["mean_latent_variance"] == pytest.approx(variance, rel=1e-5)
    assert metrics["relative_quantization_error"] == pytest.approx((lengths**2).mean() / variance, rel=1e-5)
    assert metrics["mean_distance"] == pytest.approx(lengths.mean(), rel=1e-5)
    assert metrics["median_distance"] == pytest.approx(np.median(lengths), rel=0.006)
    json.dumps(result, allow_nan=False)


def test_pictures_of_several_sizes_keep_them(tiny: Checkpoint, source: ImageSource) -> None:
    result = evaluated(tiny, source, settings(size=None))
    assert result["protocol"]["picture_size"] == {"sizes": 3, "smallest": [40, 56], "largest": [52, 52]}
    decibels, tokens, pixels = [], 0, 0
    for index in range(COUNT):
        picture = source.read(index)
        values, size = tiny.pixels(picture, None)
        with torch.inference_mode():
            encoded = tiny.model(values)
        decibels.append(psnr(np.asarray(picture), np.asarray(tiny.picture(encoded.decoded_pixel_values, size))))
        tokens += encoded.image_tokens.numel()
        pixels += size[0] * size[1]
    assert result["metrics"]["psnr"] == pytest.approx(np.mean(decibels), rel=1e-4)
    assert result["metrics"]["tokens"] == tokens
    assert result["metrics"]["bits_per_pixel"] == pytest.approx(tokens * 6 / pixels)
    assert "as the image processor is set" in result["protocol"]["resize"] and result["protocol"]["crops"] is None


def test_crops_are_views_of_their_picture(tiny: Checkpoint, source: ImageSource) -> None:
    result = evaluated(tiny, source, settings(crops=5, crop_scale=1.25, batch_size=8))
    protocol = result["protocol"]
    assert (protocol["pictures"], protocol["views"], protocol["crop_scale"]) == (COUNT, 5 * COUNT, 1.25)
    assert protocol["crops"] == ["center", "top_left", "top_right", "bottom_left", "bottom_right"]
    views = [view for part in result["extremes"].values() for view in part]
    assert {view["crop"] for view in views} <= set(protocol["crops"]) and len(views) == 16
    assert all(view["id"] == f"{view['view'] // 5}.png" for view in views)
    alone = evaluated(tiny, source, settings(crops=5, crop_scale=1.25, batch_size=8, limit=2, seed=1))
    assert alone["protocol"]["views"] == 10


def test_a_choice_is_drawn_by_the_seed(tiny: Checkpoint, source: ImageSource) -> None:
    results = [evaluated(tiny, source, settings(limit=4, seed=seed)) for seed in (1, 1, 2)]
    names = [sorted(view["id"] for part in result["extremes"].values() for view in part) for result in results]
    assert names[0] == names[1] != names[2] and len(set(names[0])) == 4
    assert results[0]["metrics"] == results[1]["metrics"]
    digests = [result["protocol"]["source"]["sha256"] for result in results]
    assert digests[0] == digests[1] != digests[2]
    assert results[0]["protocol"]["chosen"] == "4 of 7, drawn by the seed"
    whole = evaluated(tiny, source, settings(limit=COUNT))["protocol"]
    assert (whole["chosen"], whole["source"]["sha256"]) == ("all", source.digest())


def test_broken_pictures_stop_or_are_counted(
    tiny: Checkpoint, source: ImageSource, photographs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(photographs, folder)
    (folder / "00.png").write_text("no picture")
    Image.new("RGB", (9, 90)).save(folder / "zz.png")
    broken = open_source(str(folder), kind="folder")
    message = r"00.png in .*some: not an image that can be read.*; take it out to go on, or .*--on-error skip"
    with pytest.raises(ValueError, match=message):
        evaluated(tiny, broken, settings())
    clean = evaluated(tiny, source, settings())
    skipped = evaluated(tiny, broken, settings(on_error="skip"))
    assert [one["id"] for one in skipped["protocol"]["failed"]] == ["00.png"]
    kept = evaluated(tiny, broken, settings(size=None, on_error="skip"))["protocol"]
    reason = "90 x 9 pixels (height x width), expected sides of at least 32 to measure it"
    assert kept["failed"][1] == {"id": "zz.png", "reason": reason} and kept["pictures"] == COUNT
    (folder / "zz.png").unlink()
    again = evaluated(tiny, open_source(str(folder), kind="folder"), settings(on_error="skip"))
    assert again["protocol"]["pictures"] == COUNT == clean["protocol"]["pictures"]
    for name, value in clean["metrics"].items():  # batches that are filled up have no part in a picture's numbers
        assert again["metrics"][name] == pytest.approx(value, rel=1e-12), name


def test_the_protocol_says_what_the_numbers_depend_on(tiny: Checkpoint, source: ImageSource) -> None:
    steps: list[tuple[int, int]] = []
    result = evaluated(tiny, source, settings(ema="yes", seed=3), watch=lambda *step: steps.append(step))
    protocol, model = result["protocol"], result["model"]
    assert steps == [(4, 7), (7, 7)]
    assert (protocol["extractor"], protocol["extractor_sha256"]) == ("colours", "0" * 64)
    assert protocol["perceptual"] == protocol["classifier"] == {"network": "colours", "weights_sha256": "0" * 64}
    assert protocol["lpips"] is None and protocol["failed"] == []
    assert protocol["source"] == {"kind": "folder", "name": source.name, "sha256": source.digest()}
    assert (protocol["picture_size"], protocol["crops"]) == ([32, 32], ["center"])
    assert protocol["resize"] == "shorter side, lanczos, then crops"
    assert "rounded to 8 bits" in next(iter(protocol["pixels"].values()))
    assert (protocol["dtype"], protocol["ema"], protocol["seed"], protocol["batch_size"]) == ("float32", "yes", 3, 4)
    assert (protocol["processes"], protocol["process_backend"], protocol["device"]) == (1, None, "cpu")
    assert model["fingerprint"] == tiny.fingerprint and (model["codebook_size"], model["downsampling"]) == (64, 8)
    assert model["quantizer_parameters"] == 64 * 16 < model["parameters"]
    assert result["versions"]["torch"] == torch.__version__ and "hardware" in result and "commit" in result
    assert result["cost"]["pictures_per_second"] > 0 and result["cost"]["timed_pictures"] == 4
    assert result["cost"]["peak_memory_of"] == "process" and result["cost"]["processes_together"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, model_folder: Path, source: ImageSource) -> None:
    result = evaluated(load_checkpoint(str(model_folder), "cpu", dtype=dtype), source, settings(limit=2))
    assert result["protocol"]["dtype"] == str(dtype).removeprefix("torch.")
    assert math.isfinite(result["metrics"]["psnr"])


def test_perfect_reconstructions_have_no_decibels(
    tiny: Checkpoint, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    encode = LGQModel.encode

    def remember(self: LGQModel, pixel_values: torch.Tensor) -> Any:
        seen.append(pixel_values)
        return encode(self, pixel_values)

    decode = LGQModel.decode_codes

    def perfect(self: LGQModel, codes: torch.Tensor) -> Any:
        output = decode(self, codes)
        output.decoded_pixel_values = seen[-1]
        return output

    monkeypatch.setattr(LGQModel, "encode", remember)
    monkeypatch.setattr(LGQModel, "decode_codes", perfect)
    result = evaluated(tiny, source, settings())
    metrics = result["metrics"]
    assert (metrics["psnr"], metrics["psnr_std"], metrics["identical_pictures"]) == (None, None, COUNT)
    assert (metrics["ssim"], metrics["perceptual"], metrics["top1_agreement"]) == (1, 0, 1)
    assert metrics["frechet_distance"] == pytest.approx(0, abs=1e-12)
    assert result["extremes"]["best"][0]["psnr"] is None
    json.dumps(result, allow_nan=False)


def test_networks_may_be_left_out(tiny: Checkpoint, source: ImageSource) -> None:
    metrics = evaluate_tokenizer(tiny, source, settings(size=16), MeanColours())["metrics"]
    assert not {"perceptual", "lpips", "top1_agreement"} & metrics.keys() and "ssim" in metrics


def test_latents_that_are_not_finite_are_refused(
    tiny: Checkpoint, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = LGQModel.latents
    monkeypatch.setattr(LGQModel, "latents", lambda self, x: latents(self, x) * torch.inf)
    with pytest.raises(ValueError, match="the encoder made NaN or infinities: use --dtype float32, or bfloat16"):
        evaluated(tiny, source, settings())


def test_refuses(tiny: Checkpoint, source: ImageSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, which the metrics need, got 24"):
        evaluated(tiny, source, settings(size=24))
    with pytest.raises(ValueError, match=r"expected at least 9 pictures, got 7 in .*photographs"):
        evaluated(tiny, source, settings(limit=9))
    for number in range(3):
        (tmp_path / f"{number}.png").write_text("no picture")
    broken = open_source(str(tmp_path), kind="folder")
    with pytest.raises(ValueError, match=r"expected at least 2 pictures that can be used, got 0 in"):
        evaluated(tiny, broken, settings(on_error="skip"))
    (tmp_path / "1.png").unlink(), (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match=r"expected at least 2 pictures, got 1 in"):
        evaluated(tiny, open_source(str(tmp_path), kind="folder"), settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"limit": 1}, "limit: expected at least 2 pictures or None, got 1"),
        ({"seed": -1}, r"seed: expected a number in \[0, 2\^63\), got -1"),
        ({"ema": "maybe"}, r"ema: expected one of \['yes', 'no', 'unknown'\] or None, got 'maybe'"),
        ({"on_error": "go"}, r"on_error: expected one of \['skip', 'stop'\], got 'go'"),
        ({"num_workers": -1}, "num_workers: expected 0 or more, got -1"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)
