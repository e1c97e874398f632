"""Histograms of tokens and what they say, against numbers worked out by hand."""

import math

import pytest
import torch

from lgq_hf.metrics.codebook import codebook_statistics, count_tokens


def test_counts_are_those_of_bincount_for_any_shape_and_dtype() -> None:
    tokens = torch.randint(0, 7, (3, 4, 5))
    counts = count_tokens(tokens, 9)
    assert counts.dtype == torch.int64
    assert counts.tolist() == torch.bincount(tokens.flatten(), minlength=9).tolist()
    assert count_tokens(tokens.to(torch.int32), 9).tolist() == counts.tolist()
    assert count_tokens(tokens.permute(2, 0, 1), 9).tolist() == counts.tolist()


@pytest.mark.parametrize(
    ("tokens", "size", "message"),
    [
        (torch.tensor([0, 4]), 4, r"image_tokens: expected tokens in \[0, 4\), got 0 to 4"),
        (torch.tensor([-1, 2]), 4, r"image_tokens: expected tokens in \[0, 4\), got -1 to 2"),
        (torch.tensor([0.0]), 4, "image_tokens: expected integers, got torch.float32"),
        (torch.tensor([True]), 4, "image_tokens: expected integers, got torch.bool"),
        (torch.tensor([0]), 0, "codebook_size: expected at least 1, got 0"),
    ],
)
def test_refuses_what_are_no_tokens(tokens: torch.Tensor, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_tokens(tokens, size)


def test_known_statistics() -> None:
    # N = 80 and K = 8: a tenth of even use is one token, and three codes have that
    assert codebook_statistics(torch.tensor([40, 20, 20, 0, 0, 0, 0, 0])) == {
        "tokens": 80,
        "codebook_size": 8,
        "codes_used": 3,
        "share_used": 3 / 8,
        "codes_used_tenth": 3,
        "share_used_tenth": 3 / 8,
        "dead_codes": 5,
        "entropy_bits": 1.5,
        "perplexity": 2**1.5,
    }


@pytest.mark.parametrize(("tokens", "expected"), [(300, 3), (301, 1)])
def test_the_tenth_is_exact(tokens: int, expected: int) -> None:
    counts = torch.tensor([tokens - 20, 10, 10])  # of 300 tokens, 10 are a tenth of even use; of 301 they are not
    assert codebook_statistics(counts)["codes_used_tenth"] == expected


def test_limits_of_the_entropy() -> None:
    one = codebook_statistics(torch.tensor([0, 12, 0]))
    assert math.copysign(1, one["entropy_bits"]) == 1
    assert (one["entropy_bits"], one["perplexity"], one["codes_used"]) == (0, 1, 1)
    even = codebook_statistics(torch.full((16384,), 5))
    assert even["entropy_bits"] == pytest.approx(14, abs=1e-12)
    assert even["perplexity"] == pytest.approx(16384, rel=1e-12)
    assert even["share_used"] == even["share_used_tenth"] == 1


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.tensor([3, -1]), "counts: expected none below 0, got -1"),
        (torch.tensor([0, 0]), "counts: expected at least one token, got 2 codes that all have a count of 0"),
        (torch.tensor([], dtype=torch.int64), r"counts: expected one count for each code \(K,\), got shape \(0,\)"),
        (torch.tensor([[1, 2]]), r"counts: expected one count for each code \(K,\), got shape \(1, 2\)"),
        (torch.tensor([0.5, 0.5]), "counts: expected integers, got torch.float32"),
    ],
)
def test_refuses_what_is_no_histogram(counts: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codebook_statistics(counts)
