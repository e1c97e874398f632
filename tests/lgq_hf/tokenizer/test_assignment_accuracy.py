"""Rounding errors of the chunked backend in fp32: about those of the definition, which takes differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lgq_hf.tokenizer import assignment_chunked
from lgq_hf.tokenizer.assignment import soft_assign
from lgq_hf.tokenizer.assignment_chunked import chunked_backward, chunked_forward, chunked_soft_assign
from lgq_hf.tokenizer.assignment_reference import reference_soft_assign

pytestmark = pytest.mark.usefixtures("empty_is_nan")

DISTANCES = ["sq_l2", "l2", "cosine", "dot"]
ROWS, CODES = 96, 160


def draw(kind: str, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, codes and widths."""
    generator = torch.Generator().manual_seed(channels)
    x, centers = (torch.randn(rows, channels, generator=generator) for rows in (ROWS, CODES))
    widths = 0.5 + torch.rand(CODES, generator=generator)
    if kind == "duplicates":
        centers = centers[:40].repeat(4, 1)
        x[: ROWS // 2] = centers[: ROWS // 2] + 1e-4 * x[: ROWS // 2]
    elif kind == "clustered":
        x = centers[torch.arange(ROWS) * 7 % CODES] + 1e-4 * x
    return x + {"far": 1e3, "very far": 1e6}.get(kind, 0), centers, widths


def evaluate(
    function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], distance: str, hold_x: bool
) -> dict[str, Tensor]:
    """Differentiable outputs, and gradients of x, centers, widths and temperature for random cotangents."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    x, centers, widths, tau = leaves
    outputs = function(x, centers, widths * tau, distance, hold_x)[:4]
    generator = torch.Generator().manual_seed(5)
    loss = sum((t * torch.randn(t.shape, generator=generator).to(t.dtype)).sum() for t in outputs)
    names = ["soft", "peak", "usage", "lse", "d_x", "d_centers", "d_widths", "d_temperature"]
    return dict(zip(names, [*outputs, *torch.autograd.grad(loss, leaves)], strict=True))


@pytest.mark.parametrize("tau", [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates", "far", "very far"])
def test_error_is_about_that_of_differences(kind: str, distance: str, tau: float) -> None:
    """At most 8 times the error of the definition in fp32, plus 16 eps of the largest element."""
    for channels, hold_x in ((3, True), (8, False), (64, False)):
        inputs = [*draw(kind, channels), torch.tensor([tau])]
        exact = evaluate(reference_soft_assign, [t.double() for t in inputs], distance, hold_x)
        definition = evaluate(reference_soft_assign, inputs, distance, hold_x)
        chunked = evaluate(chunked_soft_assign, inputs, distance, hold_x)
        for name, wanted in exact.items():
            error, allowed = ((found[name].double() - wanted).abs().max() for found in (chunked, definition))
            floor = 16 * torch.finfo(torch.float32).eps * wanted.abs().max() + 1e-15
            assert error <= 8 * allowed + floor, (name, channels, error, allowed)


@pytest.mark.parametrize("distance", DISTANCES)
def test_blocks_change_nothing_but_rounding(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [*(t.double() for t in draw("random", 5)), torch.tensor([0.7], dtype=torch.float64)]
    whole = evaluate(chunked_soft_assign, inputs, distance, False)
    for bytes_, rows in ((1, 1), (1, 2), (20 * 8 * CODES, 1), (2**30, 1)):
        monkeypatch.setitem(assignment_chunked._BLOCK_BYTES, "cpu", bytes_)
        monkeypatch.setattr(assignment_chunked, "_MIN_ROWS", rows)
        for name, found in evaluate(chunked_soft_assign, inputs, distance, False).items():
            torch.testing.assert_close(found, whole[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("missing", ["soft", "peak", "usage", "lse", "all"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_an_absent_gradient_is_one_of_zeros(distance: str, missing: str) -> None:
    torch.manual_seed(0)
    x, centers, widths = draw("random", 4)
    grads = {name: torch.randn_like(t) for name, t in zip(
        ["soft", "peak", "usage", "lse"], chunked_forward(x, centers, widths, distance)[:4], strict=True
    )}  # fmt: skip
    absent = {name: None if missing in (name, "all") else t for name, t in grads.items()}
    zeros = {name: t * 0 if missing in (name, "all") else t for name, t in grads.items()}
    for hold_x in (False, True):
        found, wanted = (chunked_backward(*g.values(), x, centers, widths, distance, hold_x) for g in (absent, zeros))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_subnormal_numbers(distance: str) -> None:
    """They make products on a CPU a hundred times slower: what is far below the rounding of the sums is 0."""
    x, centers, _ = draw("random", 64)
    scale = torch.full((1,), 0.01)
    usage = chunked_forward(x[:1], centers, scale, distance)[2]
    exact = reference_soft_assign(x[:1].double(), centers.double(), scale.double(), distance, False)[2]
    assert ((exact > 0) & (exact < 1e-19)).any()  # the case has some
    assert (usage[exact < 1e-20] == 0).all() and usage[usage > 0].min() > 1e-20


def test_a_million_codes() -> None:
    x, centers, _ = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 2**20, 1))
    soft, peak, usage, _, index = soft_assign(x, centers.requires_grad_(), 1.0)
    (soft.sum() + peak.sum() + usage.square().sum()).backward()
    p = torch.softmax(-(x.double()[:, None] - centers.detach().double()).square().sum(2), dim=1)
    torch.testing.assert_close(soft.double(), p @ centers.detach().double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(index, p.argmax(dim=1)) and centers.grad is not None and centers.grad.isfinite().all()
