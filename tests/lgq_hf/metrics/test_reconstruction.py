"""PSNR and SSIM against their formulas, scikit-image and their limits."""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lgq_hf.metrics.reconstruction import psnr, ssim

Metric = Callable[[Any, Any], torch.Tensor]
both = pytest.mark.parametrize("metric", [psnr, ssim])


def test_known_values() -> None:
    a = torch.zeros(3, 3, 4, 5)
    b = torch.stack([torch.full((3, 4, 5), value) for value in (1.0, 0.1, 0.01)])
    assert psnr(a, b).tolist() == pytest.approx([0, 20, 40], abs=1e-6)


def noisy_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    noise = np.random.default_rng(0)
    pairs = []
    for picture, sigma in ((data.astronaut(), 5), (data.chelsea(), 40)):
        noisy = np.clip(picture + noise.normal(0, sigma, picture.shape), 0, 255).round().astype(np.uint8)
        pairs.append((picture, noisy))
    return pairs


def tensors(pairs: list[tuple[np.ndarray, np.ndarray]], side: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.from_numpy(pair[side].copy()).permute(2, 0, 1).to(dtype) / 255 for pair in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_psnr_agrees_with_scikit_image(dtype: torch.dtype) -> None:
    pairs = noisy_pairs()
    expected = [peak_signal_noise_ratio(one, other, data_range=255) for one, other in pairs]
    a, b = tensors(pairs, 0, dtype), tensors(pairs, 1, dtype)
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(b, a).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_ssim_agrees_with_scikit_image(dtype: torch.dtype, tolerance: float) -> None:
    pairs = [(one[:200, :150], other[:200, :150]) for one, other in noisy_pairs()]
    expected = [
        structural_similarity(
            one / 255,
            other / 255,
            data_range=1,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for one, other in pairs
    ]
    assert min(expected) < 0.5 and max(expected) > 0.8
    a, b = tensors(pairs, 0, dtype), tensors(pairs, 1, dtype)
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=tolerance)
    assert ssim(b, a).tolist() == pytest.approx(expected, abs=tolerance)


def test_ssim_of_equal_pictures_is_one_and_lower_otherwise() -> None:
    a = torch.rand(3, 3, 16, 11)
    b = torch.stack([a[0], 1 - a[1], a[2].roll(1, 0)])
    result = ssim(a, b)
    assert (result.dtype, result.shape) == (torch.float64, (3,))
    assert result[0] == 1 and result[1] < 0 and result[2] < 0.5


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    small = torch.zeros(3, 10, 40)
    with pytest.raises(ValueError, match="pair 1: expected sides of at least 11 pixels, got 10 x 40"):
        ssim([torch.zeros(3, 11, 11), small], [torch.zeros(3, 11, 11), small])


def test_ssim_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    with pytest.raises(ModuleNotFoundError, match=r"ssim needs .* pytorch_msssim, .*pip install '\.\[metrics\]'"):
        ssim(GOOD, GOOD)


@both
def test_each_picture_stands_for_itself(metric: Metric) -> None:
    a, b = torch.rand(4, 3, 12, 13), torch.rand(4, 3, 12, 13)
    one_by_one = [metric(a[i : i + 1], b[i : i + 1])[0] for i in range(4)]
    assert metric(a, b).tolist() == [float(value) for value in one_by_one]
    assert metric(list(a), list(b)).tolist() == metric(a, b).tolist()


GOOD = torch.zeros(2, 3, 4, 5)


@both
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3, 4, 5), GOOD, r"a: expected a batch \(B,3,H,W\), got a tensor of shape \(3, 4, 5\)"),
        (GOOD, GOOD[:1], "expected equally many pictures, got 2 and 1"),
        (GOOD, torch.zeros(2, 3, 5, 4), r"pair 0: expected two pictures of one size, got 4 x 5 .* and 5 x 4"),
        (GOOD[:0], GOOD[:0], "expected at least one pair of pictures, got none"),
        ([], [], "expected at least one pair of pictures, got none"),
        (GOOD, torch.zeros(2, 1, 4, 5), r"b: expected pictures with 3 channels \(3,h,w\), got shape \(1, 4, 5\)"),
        (GOOD, torch.zeros(2, 3, 0, 5), r"b: expected pictures with 3 channels \(3,h,w\), got shape \(3, 0, 5\)"),
        (GOOD.to(torch.uint8), GOOD, "a: expected floats in .* got torch.uint8; divide 8-bit values by 255"),
        (GOOD + 255, GOOD, r"a: expected values in \[0, 1\], got 255 to 255"),
        (GOOD, GOOD - 0.1, r"b: expected values in \[0, 1\], got -0.1 to -0.1"),
        (GOOD, GOOD + math.nan, r"b: expected values in \[0, 1\], got nan to nan"),
    ],
)
def test_refuses_what_cannot_be_compared(a: Any, b: Any, message: str, metric: Metric) -> None:
    with pytest.raises(ValueError, match=message):
        metric(a, b)


@both
@pytest.mark.parametrize(("a", "kind"), [(GOOD.numpy(), "ndarray"), ([GOOD[0].numpy()], "ndarray"), ("ab", "str")])
def test_refuses_what_is_no_tensor(a: Any, kind: str, metric: Metric) -> None:
    with pytest.raises(TypeError, match=f"a: expected a (tensor|list of tensors) .*{kind}"):
        metric(a, GOOD)
