"""PSNR against its formula, scikit-image and its limits."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from lgq_hf.metrics.reconstruction import psnr


def test_known_values() -> None:
    a = torch.zeros(3, 3, 4, 5)
    b = torch.stack([torch.full((3, 4, 5), value) for value in (1.0, 0.1, 0.01)])
    assert psnr(a, b).tolist() == pytest.approx([0, 20, 40], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_scikit_image(dtype: torch.dtype) -> None:
    noise = np.random.default_rng(0)
    pairs = []
    for picture, sigma in ((data.astronaut(), 5), (data.chelsea(), 40)):
        noisy = np.clip(picture + noise.normal(0, sigma, picture.shape), 0, 255).round().astype(np.uint8)
        pairs.append((picture, noisy))
    tensors = [
        [torch.from_numpy(pair[side].copy()).permute(2, 0, 1).to(dtype) / 255 for pair in pairs] for side in (0, 1)
    ]
    expected = [peak_signal_noise_ratio(one, other, data_range=255) for one, other in pairs]
    assert psnr(*tensors).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(*reversed(tensors)).tolist() == pytest.approx(expected, rel=1e-6)


def test_equal_pictures_are_infinitely_close() -> None:
    a = torch.rand(2, 3, 8, 8)
    b = a.clone()
    b[1, 0, 0, 0] = 1 - b[1, 0, 0, 0]
    result = psnr(a, b)
    assert result[0] == math.inf
    assert result[1] < 100
    assert (result.dtype, result.shape) == (torch.float64, (2,))


def test_each_picture_stands_for_itself() -> None:
    a, b = torch.rand(4, 3, 6, 7), torch.rand(4, 3, 6, 7)
    one_by_one = [psnr(a[i : i + 1], b[i : i + 1])[0] for i in range(4)]
    assert psnr(a, b).tolist() == [float(value) for value in one_by_one]
    assert psnr(list(a), list(b)).tolist() == psnr(a, b).tolist()


def test_half_precision_is_compared_as_it_is() -> None:
    a, b = torch.rand(1, 3, 6, 7).bfloat16(), torch.rand(1, 3, 6, 7).half()
    assert psnr(a, b) == psnr(a.double(), b.double())


GOOD = torch.zeros(2, 3, 4, 5)


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
def test_refuses_what_has_no_psnr(a: Any, b: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        psnr(a, b)


@pytest.mark.parametrize(("a", "kind"), [(GOOD.numpy(), "ndarray"), ([GOOD[0].numpy()], "ndarray"), ("ab", "str")])
def test_refuses_what_is_no_tensor(a: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"a: expected a (tensor|list of tensors) .*{kind}"):
        psnr(a, GOOD)
