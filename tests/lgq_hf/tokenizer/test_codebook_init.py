"""The four initialisations: parity with the recorded ones where the published ones are sane, and sanity beyond."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lgq_hf.tokenizer.codebook_init import INIT_METHODS, initial_centers

RECORDED = load_file(Path(__file__).parents[2] / "fixtures" / "lgq_official" / "init" / "expected.safetensors")
LATENTS = RECORDED["x_btc"].flatten(0, 1)  # (256, 8)


@pytest.mark.parametrize(("method", "codes"), [("random", 64), ("kmeans", 64), ("gaussian", 64), ("gaussian", 512)])
def test_parity_with_the_official_code(method: str, codes: int) -> None:
    torch.manual_seed(42)
    found = initial_centers(LATENTS, codes, method)
    torch.testing.assert_close(found, RECORDED[f"flat.{method}.k{codes}"], rtol=1e-5, atol=1e-6)


def test_parity_of_scalar_bins() -> None:
    for channel, wanted in enumerate(RECORDED["perchannel.k64"]):
        found = initial_centers(LATENTS[:, channel : channel + 1], 64, "uniform")[:, 0]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", INIT_METHODS)
@pytest.mark.parametrize("rows", [1, 2, 100, 256])
@pytest.mark.parametrize("codes", [1, 7, 1000])
def test_no_two_codes_coincide_however_many_there_are(method: str, rows: int, codes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = initial_centers(LATENTS[:rows], codes, method, generator)
    assert centers.shape == (codes, 8) and torch.isfinite(centers).all()
    if codes > 1:
        nearest = torch.cdist(centers, centers).fill_diagonal_(torch.inf).amin(1)
        typical = LATENTS.std()
        assert nearest.min() > 1e-4 * typical
    low, high = LATENTS[:rows].amin(), LATENTS[:rows].amax()
    if method in ("random", "kmeans"):
        assert centers.min() > low - 1 and centers.max() < high + 1


def test_random_with_more_codes_than_latents_has_no_twins() -> None:
    """The published code tiles the latents: every code then has a twin at a distance of 0.01."""
    centers = initial_centers(LATENTS, 1024, "random", torch.Generator().manual_seed(0))
    between_latents = torch.cdist(LATENTS, LATENTS).fill_diagonal_(torch.inf).amin(1).median()
    between_codes = torch.cdist(centers, centers).fill_diagonal_(torch.inf).amin(1).median()
    assert between_codes > 0.4 * between_latents
    assert torch.equal(centers[:256].sort(0).values, LATENTS.sort(0).values)  # every latent is among them


def test_uniform_fills_the_box_rather_than_a_line() -> None:
    centers = initial_centers(LATENTS, 512, "uniform", torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_rank(centers - centers.mean(0)) == 8
    low, high = LATENTS.amin(0), LATENTS.amax(0)
    assert (centers >= low).all() and (centers <= high).all()
    middle = (low + high) / 2
    torch.testing.assert_close(centers.mean(0), middle, rtol=0, atol=float(0.05 * (high - low).max()))


def test_kmeans_lowers_the_error() -> None:
    errors = {
        method: torch.cdist(LATENTS, initial_centers(LATENTS, 32, method, torch.Generator().manual_seed(0)))
        .amin(1)
        .square()
        .mean()
        for method in ("random", "kmeans")
    }
    assert errors["kmeans"] < 0.8 * errors["random"]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"latents \(N, C\) with N >= 1, got shape \(0, 3\)"):
        initial_centers(torch.zeros(0, 3), 4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        initial_centers(torch.tensor([[torch.nan]]), 4)
    with pytest.raises(ValueError, match="init method must be one of .* got 'pca'"):
        initial_centers(torch.zeros(2, 3), 4, "pca")
