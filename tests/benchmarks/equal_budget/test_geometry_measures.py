"""Planted latents and codes, cases by hand, and every number once more in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from benchmarks.equal_budget import geometry_measures
from benchmarks.equal_budget.geometry_measures import NEIGHBOURS, Geometry, Sample, nearest_distances


def planted(latents: Any, codes: Any) -> Geometry:
    """Latents with their nearest codes, as of pictures with one latent each."""
    x_NC, c_KC = (torch.as_tensor(np.asarray(points), dtype=torch.float64) for points in (latents, codes))
    x_NC, c_KC = (points[:, None] if points.ndim == 1 else points for points in (x_NC, c_KC))
    second_N = torch.arange(len(x_NC)) % 2 == 1
    return Geometry(Sample(x_NC, torch.cdist(x_NC, c_KC).argmin(1), c_KC, second_N, len(x_NC)))


def flat(numbers: dict[str, Any]) -> dict[str, float | None]:
    """All numbers by dotted name."""
    found: dict[str, float | None] = {}
    for name, value in numbers.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": number for inner, number in value.items()}
        else:
            found[name] = value
    return found


def test_case_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry_measures, "NEIGHBOURS", 1)
    # the mean is 5 and R^2 = (36 + 16 + 16 + 36) / 4 = 26; every latent is 1 from its code, which is its cell's mean
    numbers = planted([-1, 1, 9, 11], [0, 10, 30]).numbers()
    root = math.sqrt(26)
    expected = {
        "pictures": 4,
        "latents": 4,
        "codebook_size": 3,
        "channels": 1,
        "neighbours": 1,
        "codes_used": 2,
        "orphan_share": 1 / 3,
        "gini": 1 / 3,  # of 0, 2, 2: (-2 * 0 + 0 * 2 + 2 * 2) / (3 * 4)
        "gini_used": 0,
        "spearman": 1,
        "spearman_used": None,
        "spearman_halves": 1,
        "relative_quantization_error": 1 / 26,
        "within_cell_variance": 1 / 26,
        "effective_dimension": 1,
        "rms_radius": root,
        "orphan_to_latent.median": 19 / root,
    }
    found = flat(numbers)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    geometry = planted([-1, 1, 9, 11], [0, 10, 30])
    assert geometry.counts_K.tolist() == [2, 2, 0]
    assert geometry.density_K.tolist() == pytest.approx([root / 4, root / 4, root / 4 / 19])
    assert geometry.code_to_latent_K.tolist() == pytest.approx([1 / root, 1 / root, 19 / root])


@pytest.mark.parametrize("channels", [1, 3])
def test_every_number_as_numpy_has_it(channels: int) -> None:
    rng = np.random.default_rng(channels)
    x = rng.normal(size=(701, channels)) * rng.uniform(0.2, 3, channels) + 7
    x[rng.random(701) < 0.3] *= 0.1
    codes = rng.normal(size=(40, channels)) * 2 + 5
    geometry = planted(x, codes)
    distances = np.sqrt(((x[:, None] - codes[None]) ** 2).sum(2))
    tokens, N, K = distances.argmin(1), len(x), len(codes)
    counts = np.array([(tokens == k).sum() for k in range(K)])
    tss = ((x - x.mean(0)) ** 2).sum()
    radius = math.sqrt(tss / N)
    centroids = np.array([x[tokens == k].mean(0) if counts[k] else np.zeros(channels) for k in range(K)])
    covariance = np.atleast_2d(np.cov(x.T, bias=True))
    dimension = np.trace(covariance) ** 2 / (covariance**2).sum()  # sum v^2 is the squared Frobenius norm
    kth = np.sort(distances, 0)[NEIGHBOURS - 1]
    odd, used = np.arange(N) % 2 == 1, counts > 0
    assert 3 < used.sum() < K

    def across(counted: np.ndarray) -> float:
        occupancy = np.bincount(tokens[counted], minlength=K)
        return stats.spearmanr(occupancy, -np.sort(distances[~counted], 0)[NEIGHBOURS - 1]).statistic

    def unequal(n: np.ndarray) -> float:  # half the mean absolute difference, over the mean
        return np.abs(n[:, None] - n[None]).mean() / (2 * n.mean())

    def spread(name: str, values: np.ndarray) -> dict[str, float]:
        return {f"{name}.median": np.sort(values)[round(0.5 * (len(values) - 1))]}

    expected = {
        "pictures": N,
        "latents": N,
        "codebook_size": K,
        "channels": channels,
        "neighbours": NEIGHBOURS,
        "codes_used": used.sum(),
        "orphan_share": 1 - used.mean(),
        "gini": unequal(counts),
        "gini_used": unequal(counts[used]),
        "spearman": stats.spearmanr(counts, -kth).statistic,
        "spearman_used": stats.spearmanr(counts[used], -kth[used]).statistic,
        "spearman_halves": (across(odd) + across(~odd)) / 2,
        "relative_quantization_error": ((x - codes[tokens]) ** 2).sum() / tss,
        "within_cell_variance": ((x - centroids[tokens]) ** 2).sum() / tss,
        "effective_dimension": dimension,
        "rms_radius": radius,
        **spread("code_to_latent", distances.min(0) / radius),
        **spread("orphan_to_latent", distances.min(0)[~used] / radius),
        **spread("latent_to_code", distances.min(1) / radius),
    }
    assert flat(geometry.numbers()) == pytest.approx(expected, rel=1e-9)
    values = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(geometry.spectrum_C, values, rtol=1e-9)
    np.testing.assert_allclose(covariance @ geometry.axes_CC.numpy(), geometry.axes_CC.numpy() * values, atol=1e-9)


def test_what_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    x, codes = rng.normal(size=(300, 3)) * [1, 2, 0.5], rng.normal(size=(20, 3))
    before = flat(planted(x, codes).numbers())
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    moved = flat(planted(5 * x @ rotation + 11, 5 * codes[rng.permutation(20)] @ rotation + 11).numbers())
    assert moved.pop("rms_radius") == pytest.approx(5 * before.pop("rms_radius"))
    assert moved == pytest.approx(before)


def test_one_code_has_no_rank_correlation() -> None:
    numbers = planted(np.arange(80), [0.0]).numbers()
    assert numbers["spearman"] is None and numbers["spearman_halves"] is None and numbers["orphan_to_latent"] is None
    assert numbers["gini"] == 0 and numbers["within_cell_variance"] == pytest.approx(1)


def test_nearest_distances_in_blocks_and_exact_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = torch.from_numpy(rng.normal(size=(13, 4)) + 1e6), torch.from_numpy(rng.normal(size=(50, 4)) + 1e6)
    b[7] = a[5]
    expected = np.sort(np.sqrt(((a[:, None] - b[None]).numpy() ** 2).sum(2)), 1)[:, :6]
    np.testing.assert_allclose(nearest_distances(a, b, 6), expected, rtol=1e-12)
    monkeypatch.setattr(geometry_measures, "_BLOCK", 120)
    np.testing.assert_allclose(nearest_distances(a, b, 6), expected, rtol=1e-12)
    assert nearest_distances(a, b, 6)[5, 0] == 0


def _sample(x_NC: Tensor, codes_KC: Tensor, second_N: Tensor) -> Sample:
    return Sample(x_NC, torch.zeros(len(x_NC), dtype=torch.int64), codes_KC, second_N, 2)


def test_samples_that_say_nothing_are_refused() -> None:
    x_NC = torch.randn(2 * NEIGHBOURS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    second_N = torch.arange(2 * NEIGHBOURS) >= NEIGHBOURS
    _sample(x_NC, x_NC[:1], second_N)
    with pytest.raises(ValueError, match=f"at least {NEIGHBOURS} latents in each half of the pictures, got 31"):
        _sample(x_NC[:-1], x_NC[:1], second_N[:-1])
    with pytest.raises(ValueError, match="all latents are equal"):
        _sample(x_NC * 0, x_NC[:1], second_N)
    for latents, codes in ((x_NC * math.nan, x_NC), (x_NC, x_NC * math.inf)):
        with pytest.raises(ValueError, match="expected finite latents and codes"):
            _sample(latents, codes, second_N)
