"""Distances of latents to their codes, against loops over float64 numbers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lgq_hf.metrics.code_distances import CodeDistances

N, C, K = 300, 4, 12


def quantized(offset: float = 0.0, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, codes and tokens; of the codes the last two are not used."""
    draw = torch.Generator().manual_seed(0)
    latents = (torch.randn(N, C, generator=draw, dtype=torch.float64) + offset).to(dtype)
    centers = (torch.randn(K, C, generator=draw, dtype=torch.float64) + offset).to(dtype)
    tokens = torch.cdist(latents.double() - offset, centers[: K - 2].double() - offset).argmin(1)
    return latents, centers[tokens], tokens


def gathered(latents: Tensor, codes: Tensor, tokens: Tensor, batch: int = 70) -> CodeDistances:
    distances = CodeDistances(K, C)
    for parts in zip(latents.split(batch), codes.split(batch), tokens.split(batch), strict=True):
        distances.update(*parts)
    return distances


def by_loops(latents: Tensor, codes: Tensor, tokens: Tensor) -> dict[str, float]:
    x, c, t = latents.double().numpy(), codes.double().numpy(), tokens.numpy()
    squares = [sum((a - b) ** 2 for a, b in zip(row, code, strict=True)) for row, code in zip(x, c, strict=True)]
    mean = x.mean(0)
    variance = np.mean([((row - mean) ** 2).sum() for row in x])
    gaps = [np.linalg.norm(c[t == code][0] - x[t == code].mean(0)) for code in sorted(set(t.tolist()))]
    return {
        "mean_squared_distance": float(np.mean(squares)),
        "mean_latent_variance": float(variance),
        "relative_quantization_error": float(np.mean(squares) / variance),
        "mean_distance": float(np.mean(np.sqrt(squares))),
        "mean_code_to_centroid_distance": float(np.mean(gaps) / np.sqrt(variance)),
    }


@pytest.mark.parametrize("batch", [1, 70, 300])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_statistics_are_those_of_loops_whatever_the_offset(batch: int, offset: float) -> None:
    data = quantized(offset)
    got, expected = gathered(*data, batch).statistics(), by_loops(*data)
    assert got == pytest.approx(expected, rel=1e-7 if offset == 1e8 else 1e-12)  # at 1e8 the latents have 8 digits
    assert list(got) == list(expected)
    assert all(type(value) is float for value in got.values())


def test_half_precision_is_summed_in_float64() -> None:
    data = quantized(3.0, dtype=torch.bfloat16)
    assert gathered(*data).statistics() == pytest.approx(by_loops(*data), rel=1e-12)


def test_states_of_processes_add_up_to_the_whole() -> None:
    data = quantized(5.0)
    cuts = (slice(0, 50), slice(50, 51), slice(51, None))
    parts = [gathered(data[0][rows], data[1][rows], data[2][rows]) for rows in cuts]
    parts.append(CodeDistances(K, C))  # a process without pictures
    total = torch.stack([part.state for part in parts]).sum(0)
    assert total.shape == (2 + K + 2 * K * C,) and total.dtype == torch.float64
    whole, expected = CodeDistances.from_state(total, K, C), gathered(*data)
    torch.testing.assert_close(whole.state, expected.state, rtol=1e-13, atol=1e-13)
    assert whole.statistics() == pytest.approx(expected.statistics(), rel=1e-12)
    whole.update(*data)  # it goes on, on its own
    assert whole.statistics() == pytest.approx(expected.statistics(), rel=1e-12)
    assert float(total[2 : 2 + K].sum()) == N


def test_a_state_is_a_copy() -> None:
    distances = gathered(*quantized())
    before, statistics = distances.state, distances.statistics()
    distances.state.zero_()
    assert distances.statistics() == statistics
    distances.update(torch.zeros(0, C), torch.zeros(0, C), torch.zeros(0).long())
    assert torch.equal(distances.state, before)


def test_gradients_are_not_kept() -> None:
    latents, codes, tokens = quantized()
    assert not gathered(latents.requires_grad_(), codes.requires_grad_(), tokens).state.requires_grad


def test_a_code_at_the_mean_explains_nothing_and_perfect_codes_all() -> None:
    latents = quantized(2.0)[0]
    one = gathered(latents, latents.mean(0).expand(N, C), torch.zeros(N).int()).statistics()
    assert one["relative_quantization_error"] == pytest.approx(1, abs=1e-12)
    assert one["mean_code_to_centroid_distance"] == pytest.approx(0, abs=1e-12)
    own = CodeDistances(N, C)
    own.update(latents, latents, torch.arange(N))
    assert own.statistics()["relative_quantization_error"] == own.statistics()["mean_distance"] == 0
    assert own.statistics()["mean_latent_variance"] == pytest.approx(one["mean_latent_variance"])


def test_codes_count_once_in_the_distance_to_centroids() -> None:
    latents = torch.tensor([[-1.0], [1], [-1], [1], [10]])
    codes = torch.tensor([[0.0], [0], [0], [0], [13]])
    distances = CodeDistances(3, 1)
    distances.update(latents, codes, torch.tensor([2, 2, 2, 2, 0]))
    statistics = distances.statistics()
    assert statistics["mean_latent_variance"] == pytest.approx(104 / 5 - 4)
    assert statistics["mean_squared_distance"] == (4 + 9) / 5
    assert statistics["mean_distance"] == (4 + 3) / 5
    assert statistics["mean_code_to_centroid_distance"] == pytest.approx((0 + 3) / 2 / (104 / 5 - 4) ** 0.5)


@pytest.mark.parametrize(("code", "expected"), [(0.7, math.inf), (0.1, 0.0)])
def test_latents_that_are_all_equal(code: float, expected: float) -> None:
    statistics = gathered(torch.full((9, C), 0.1), torch.full((9, C), code), torch.ones(9).long(), 2).statistics()
    assert statistics["mean_latent_variance"] == 0
    assert statistics["relative_quantization_error"] == statistics["mean_code_to_centroid_distance"] == expected


VECTORS, TOKENS = torch.zeros(2, C), torch.zeros(2).long()


@pytest.mark.parametrize(
    ("latents", "codes", "tokens", "message"),
    [
        (torch.zeros(2, 3), VECTORS, TOKENS, r"latents: expected floats \(N,4\), got shape \(2, 3\), torch.float32"),
        (VECTORS, torch.zeros(4), TOKENS, r"codes: expected floats \(N,4\), got shape \(4,\)"),
        (VECTORS.int(), VECTORS, TOKENS, r"latents: expected floats \(N,4\), got shape \(2, 4\), torch.int32"),
        (VECTORS, VECTORS, torch.zeros(2), "tokens: expected integers, got torch.float32"),
        (VECTORS, VECTORS, TOKENS.bool(), "tokens: expected integers, got torch.bool"),
        (VECTORS, VECTORS[:1], TOKENS, r"expected a code and a token .* got shapes \(2, 4\), \(1, 4\) and \(2,\)"),
        (VECTORS, VECTORS, TOKENS[:, None], r"a code and a token .* got shapes \(2, 4\), \(2, 4\) and \(2, 1\)"),
        (VECTORS, VECTORS, TOKENS + K, r"tokens: expected tokens in \[0, 12\), got 12 to 12"),
        (VECTORS, VECTORS, TOKENS - 1, r"tokens: expected tokens in \[0, 12\), got -1 to -1"),
    ],
)
def test_refuses_other_batches(latents: Tensor, codes: Tensor, tokens: Tensor, message: str) -> None:
    distances = CodeDistances(K, C)
    with pytest.raises(ValueError, match=message):
        distances.update(latents, codes, tokens)
    assert not distances.state.any()


def changed(place: int, value: float) -> Tensor:
    state = torch.zeros(2 + 3 + 2 * 3 * 2, dtype=torch.float64)
    state[place] = value
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(2, 1)[1:], r"state: expected a shape \(17,\) for 3 codes of 2 channels, got \(16,\)"),
        (changed(2, 1)[None], r"state: expected a shape \(17,\) .* got \(1, 17\)"),
        (changed(2, 1).float(), "state: expected torch.float64, got torch.float32"),
        (changed(4, 0.5), "state: expected whole numbers of latent vectors, got counts up to 0.5"),
        (changed(3, -2), "state: expected whole numbers of latent vectors, got counts up to 0"),
        (changed(3, math.inf), "state: expected whole numbers of latent vectors, got counts up to inf"),
    ],
)
def test_refuses_other_states(state: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeDistances.from_state(state, 3, 2)


def test_refuses_sizes_below_one_nothing_and_nan() -> None:
    with pytest.raises(ValueError, match="codebook_size: expected at least 1, got 0"):
        CodeDistances(0, 3)
    with pytest.raises(ValueError, match="dim: expected at least 1, got -1"):
        CodeDistances.from_state(torch.zeros(3), 3, -1)
    distances = CodeDistances(K, C)
    with pytest.raises(ValueError, match="distances need at least 1 latent vector, got none: call update first"):
        distances.statistics()
    distances.update(VECTORS * math.nan, VECTORS, TOKENS)
    with pytest.raises(ValueError, match="expected finite latents and codes, got NaN or infinities: look at the enc"):
        distances.statistics()
