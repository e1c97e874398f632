"""The Triton kernels of nearest_code: the token of real arithmetic, whatever the filter's rounding."""

import pytest
import torch

pytest.importorskip("triton")

from lgq_hf.kernels import launch
from lgq_hf.kernels.blocks import Limits
from lgq_hf.tokenizer.assignment import nearest_code
from tests.lgq_hf.kernels.cases import DEVICE, DISTANCES, LATENTS, draw, settings_restored


def exact(x: torch.Tensor, centers: torch.Tensor, widths: torch.Tensor | None, distance: str) -> torch.Tensor:
    return nearest_code(x.cpu(), centers.cpu(), widths=None if widths is None else widths.cpu(), distance=distance,
                        backend="reference").to(DEVICE)  # fmt: skip


@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(d, marks=pytest.mark.slow) for d in (torch.bfloat16, torch.half))]
)
@pytest.mark.parametrize("with_widths", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_to_float64(distance: str, with_widths: bool, dtype: torch.dtype) -> None:
    for kind in LATENTS:
        x, centers, widths, _ = draw(kind, rows=70, codes=150, channels=5)
        x, centers = x.to(dtype), centers.to(dtype)
        chosen = widths if with_widths else None
        found = nearest_code(x, centers, widths=chosen, distance=distance, backend="triton")
        assert torch.equal(found, exact(x, centers, chosen, distance)), kind


def nearly_tied(rows: int, codes: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents half way between the last two codes, but for a few units in the last place."""
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(codes, channels, generator=generator) * 3 + 10
    x = (centers[-1] + centers[-2]) / 2 + 1e-6 * torch.randn(rows, channels, generator=generator)
    return x.to(DEVICE), centers.to(DEVICE)


def test_what_the_filter_cannot_tell_is_decided_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x, centers = nearly_tied(rows=90, codes=60, channels=8)
    wanted = exact(x, centers, None, "sq_l2")
    assert set(wanted.tolist()) == {58, 59}
    assert torch.equal(nearest_code(x, centers, backend="triton"), wanted)
    monkeypatch.setattr(launch, "_error_bound", lambda norm, *_: -torch.ones_like(norm))
    assert not torch.equal(nearest_code(x, centers, backend="triton"), wanted)  # the filter alone is wrong


@pytest.mark.parametrize("distance", DISTANCES)
def test_of_equal_codes_the_lowest_index_wins(distance: str) -> None:
    x, centers, _, _ = draw("random", rows=50, codes=40, channels=3)
    repeated = centers.repeat(4, 1)
    found = nearest_code(x, repeated, distance=distance, backend="triton")
    assert torch.equal(found, exact(x, centers, None, distance))


@pytest.mark.parametrize("processors", [1, 132])
def test_shares_of_the_codes_are_merged(processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_limits", lambda device: Limits(227 * 1024, processors, hopper=True))
    x, centers, _, _ = draw("clustered", rows=40, codes=300, channels=4)
    assert torch.equal(nearest_code(x, centers, backend="triton"), exact(x, centers, None, "sq_l2"))


def test_tokens_do_not_depend_on_matmul_precision() -> None:
    x, centers = nearly_tied(rows=30, codes=40, channels=16)
    with settings_restored():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with torch.autocast(DEVICE, torch.bfloat16):
            found = nearest_code(x, centers, backend="triton")
    assert torch.equal(found, exact(x, centers, None, "sq_l2"))


def test_row_by_row() -> None:
    x, centers = nearly_tied(rows=12, codes=20, channels=8)
    single = torch.cat([nearest_code(row[None], centers, backend="triton") for row in x])
    assert torch.equal(single, nearest_code(x, centers, backend="triton"))


@pytest.mark.parametrize(
    ("of_x", "of_codes"), [(1e-30, 1e-30), (1e-20, 1e-20), (1, 1e-24), (1e-24, 1), (1e18, 1e18), (1e30, 1e30)]
)
@pytest.mark.parametrize("distance", DISTANCES)
def test_numbers_of_any_size(distance: str, of_x: float, of_codes: float) -> None:
    """Squares that leave the range of fp32 are seen by float64."""
    x, centers, _, _ = draw("random", rows=40, codes=30, channels=4)
    centers = 1 + 1e-6 * centers  # a filter without a margin would get these wrong
    x, centers = x * of_x, centers * of_codes
    assert torch.equal(
        nearest_code(x, centers, distance=distance, backend="triton"), exact(x, centers, None, distance)
    )


@pytest.mark.parametrize(("rows", "codes", "channels"), [(0, 3, 2), (1, 1, 1), (130, 129, 1), (9, 70, 512)])
def test_sizes(rows: int, codes: int, channels: int) -> None:
    x, centers, _, _ = draw("random", rows, codes, channels)
    found = nearest_code(x, centers, backend="triton")
    assert found.shape == (rows,) and found.dtype == torch.int64
    assert torch.equal(found, exact(x, centers, None, "sq_l2"))


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter's argmax refuses rows that are not numbers")
def test_not_a_number_still_gives_a_code() -> None:
    x, centers, _, _ = draw("random", rows=3, codes=30, channels=4)
    x[1] = float("nan")
    found = nearest_code(x, centers, backend="triton")
    assert (found >= 0).all() and (found < 30).all()
