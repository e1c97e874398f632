"""Medians by bins, and how sizes are told."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.settings import Networks
from lgq_hf.evaluation.totals import Reconstructed, Totals, described_sizes, median_length
from tests.lgq_hf.evaluation.plain import MeanColours


def totals_of(lengths: np.ndarray, checkpoint: Checkpoint) -> Totals:
    """Of latents that lie that far from their codes."""
    totals = Totals(Networks(MeanColours()), checkpoint.config, torch.device("cpu"))
    codes = torch.zeros(len(lengths), 16)
    latents = codes.double().clone()
    latents[:, 3] = torch.from_numpy(lengths)
    pictures = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    tokens = torch.zeros(1, 1, len(lengths), dtype=torch.long)
    totals.add(Reconstructed([0], pictures, pictures, tokens, latents, codes))
    return totals


@pytest.mark.parametrize("count", [1, 2, 999, 1000])
def test_a_median_is_that_of_its_bin(count: int, tiny: Checkpoint) -> None:
    lengths = np.exp(3 * np.random.default_rng(count).standard_normal(count))
    exact = np.sort(lengths)[(count - 1) // 2]
    totals = totals_of(lengths, tiny)
    assert median_length(totals.lengths) == pytest.approx(exact, rel=0.0055)
    assert float(totals.length_sum) == pytest.approx(lengths.sum()) and totals.positions == count


def test_distances_of_all_sizes_have_a_bin(tiny: Checkpoint) -> None:
    some: list[Any] = [([0, 0, 1], 0), ([1e-30, 1e-30, 5], 0), ([1e30, 1e30, 5], np.inf), ([1e-15, 1, 1e15], 1)]
    for lengths, median in some:
        assert median_length(totals_of(np.array(lengths, dtype=float), tiny).lengths) == pytest.approx(
            median, rel=6e-3
        )


def test_sizes_are_told() -> None:
    assert described_sizes(Counter({(32, 48): 3})) == [32, 48]
    several = described_sizes(Counter({(32, 48): 3, (8, 9): 1, (48, 32): 1, (90, 40): 2}))
    assert several == {"sizes": 4, "smallest": [8, 9], "largest": [90, 40]}
