"""Fréchet distances against closed forms, scipy and other implementations, and streaming moments against numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from lgq_hf.metrics.frechet import FeatureStatistics, frechet_distance, gaussian_frechet_distance

RECORDED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "metrics" / "frechet.json").read_text()
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, rank: int, seed: int) -> Tensor:
    factor = random(size, rank, seed=seed)
    return factor @ factor.T / rank


def gathered(features: Tensor, batch: int = 7, origin: Tensor | None = None) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1], origin=origin)
    for part in features.split(batch):
        statistics.update(part)
    return statistics


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_moments_agree_with_numpy_whatever_the_offset(batch: int, offset: float) -> None:
    features = random(100, 5) * torch.tensor([1, 1e-3, 10, 1, 1]) + offset
    statistics = gathered(features, batch)
    assert statistics.count == 100
    np.testing.assert_allclose(statistics.mean, features.numpy().mean(0), rtol=1e-14, atol=1e-14)
    centred = features.numpy() - features.numpy().mean(0)
    expected = centred.T @ centred / 99
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    # the two-pass covariance is off by the square of its mean's rounding: at 1e8, of 1e-5 standard deviations
    assert np.abs((statistics.covariance.numpy() - expected) / scale).max() < (1e-9 if offset == 1e8 else 1e-12)


def test_half_precision_features_are_summed_in_float64() -> None:
    features = random(50, 3).bfloat16()
    statistics = gathered(features)
    assert statistics.covariance.dtype == statistics.mean.dtype == statistics.state.dtype == torch.float64
    np.testing.assert_allclose(statistics.covariance, np.cov(features.double().numpy().T), rtol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_states_of_processes_add_up_to_the_whole(offset: float) -> None:
    features = random(90, 6) + offset
    origin = features[0] if offset else None
    parts = [gathered(part, origin=origin) for part in (features[:20], features[20:21], features[21:])]
    parts.append(FeatureStatistics(6, origin=origin))  # a process without pictures
    total = torch.stack([part.state for part in parts]).sum(0)
    assert total.shape == (1 + 6 + 36,)
    whole, expected = FeatureStatistics.from_state(total, origin=origin), gathered(features)
    assert whole.count == 90
    torch.testing.assert_close(whole.mean, expected.mean, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(whole.covariance, expected.covariance, rtol=1e-11, atol=1e-11)
    assert frechet_distance(whole, expected) < 1e-16
    whole.update(features)  # it goes on
    assert whole.count == 180
    torch.testing.assert_close(whole.covariance * 179, expected.covariance * 178, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_distance_agrees_with_scipy(seed: int) -> None:
    a, b, means = covariance(20, 60, seed), covariance(20, 60, seed + 50), random(2, 20, seed=seed)
    root = scipy.linalg.sqrtm(a.numpy() @ b.numpy()).real
    expected = float((means[0] - means[1]).square().sum() + a.trace() + b.trace()) - 2 * np.trace(root)
    assert gaussian_frechet_distance(means[0], a, means[1], b) == pytest.approx(expected, rel=1e-10)
    assert gaussian_frechet_distance(means[1], b, means[0], a) == pytest.approx(expected, rel=1e-10)


def recorded_features(case: dict[str, Any], which: int) -> Tensor:
    """Uniform numbers, mixed by other uniform numbers."""
    draws = [torch.Generator().manual_seed(seed) for seed in (which + 1, case["mixing"][which])]
    shapes = [(case["pictures"][which], case["features"]), (case["features"], case["features"])]
    drawn, mixing = (
        torch.rand(shape, generator=draw, dtype=torch.float64) for shape, draw in zip(shapes, draws, strict=True)
    )
    return drawn @ mixing + case["shift"] * which


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_distance_agrees_with_other_implementations(case: dict[str, Any]) -> None:
    distance = frechet_distance(*(gathered(recorded_features(case, which), batch=70) for which in (0, 1)))
    assert set(case["distance"]) == {"torchmetrics", "torch-fidelity", "pytorch-fid"}
    # theirs take roots of eigenvalues that are 0 but for rounding where pictures are fewer than features
    singular = min(case["pictures"]) <= case["features"]
    for expected in case["distance"].values():
        assert distance == pytest.approx(expected, rel=1e-6 if singular else 1e-9)


def test_distance_of_singular_covariances_is_the_limit_of_regular_ones() -> None:
    a, b, zero = covariance(12, 3, 0), covariance(12, 5, 1), torch.zeros(12)
    ridge = 1e-10 * torch.eye(12, dtype=torch.float64)
    distance = gaussian_frechet_distance(zero, a, zero, b)
    assert distance == pytest.approx(gaussian_frechet_distance(zero, a + ridge, zero, b + ridge), rel=1e-4)
    # the singular values of R_a^T R_b, with factors that are known here
    factors = [random(12, 3, seed=0) / 3**0.5, random(12, 5, seed=1) / 5**0.5]
    nuclear = torch.linalg.svdvals(factors[0].T @ factors[1]).sum()
    assert distance == pytest.approx(float(a.trace() + b.trace() - 2 * nuclear), rel=1e-10)


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_a_set_is_at_no_distance_from_itself(rank: int) -> None:
    a = 1e4 * covariance(30, rank, 0)
    mean = random(30)
    assert 0 <= gaussian_frechet_distance(mean, a, mean, a) < 1e-18
    few = gathered(random(rank + 1, 30))
    assert 0 <= frechet_distance(few, gathered(random(rank + 1, 30), batch=2)) < 1e-18


def test_small_distances_are_not_lost() -> None:
    a = covariance(30, 40, 0)
    zero = torch.zeros(30)
    expected = float(a.trace()) * (1 - (1 + 1e-9) ** 0.5) ** 2  # 1e-18 of the traces that it is the difference of
    assert gaussian_frechet_distance(zero, a, zero, a * (1 + 1e-9)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(4, 5), r"features: expected floats \(N,3\), got shape \(4, 5\)"),
        (torch.zeros(3), r"features: expected floats \(N,3\), got shape \(3,\)"),
        (torch.zeros(4, 3).int(), r"features: expected floats \(N,3\), got shape \(4, 3\), torch.int32"),
    ],
)
def test_refuses_other_features(features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureStatistics(3).update(features)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(8).double(), r"state: expected a shape \(1 \+ D \+ D\*D,\), got \(8,\)"),
        (torch.zeros(0).double(), r"state: expected a shape .* got \(0,\)"),
        (torch.zeros(1, 7).double(), r"state: expected a shape .* got \(1, 7\)"),
        (torch.zeros(7), "state: expected torch.float64, got torch.float32"),
        (torch.full((7,), 0.5).double(), "state: expected a whole number of feature vectors first, got 0.5"),
        (torch.full((7,), torch.nan).double(), "state: expected a whole number of feature vectors first, got nan"),
    ],
)
def test_refuses_other_states(state: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.from_state(state)


ONE = torch.eye(2)


@pytest.mark.parametrize(
    ("mean", "spread", "message"),
    [
        (torch.zeros(3), torch.eye(3), r"b: expected a mean \(D,\) and a covariance .* got \(3,\) and \(3, 3\)"),
        (torch.zeros(2), torch.eye(3), r"b: expected a mean \(D,\) and a covariance .* got \(2,\) and \(3, 3\)"),
        (torch.tensor([0, torch.nan]), ONE, "b: expected finite moments, got NaN or infinities: look at the features"),
        (torch.zeros(2), torch.tensor([[1, 0.5], [0, 1]]), "b: expected a symmetric covariance"),
        (torch.zeros(2), torch.tensor([[1, 2.0], [2, 1]]), "b: expected a positive semidefinite .* eigenvalue -1"),
    ],
)
def test_refuses_other_moments(mean: Tensor, spread: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian_frechet_distance(torch.zeros(2), ONE, mean, spread)


def test_features_with_nan_are_found_out() -> None:
    features = random(9, 3)
    features[4, 1] = torch.nan
    with pytest.raises(ValueError, match="a: expected finite moments, got NaN"):
        frechet_distance(gathered(features), gathered(random(9, 3)))
