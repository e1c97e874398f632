"""The assignment op: chunked against the materialised definition in float64, and what must hold for any input."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lgq_hf.tokenizer import assignment_chunked, assignment_nearest
from lgq_hf.tokenizer.assignment import nearest_code, soft_assign
from tests.largest_tensor import LargestTensor

DISTANCES = ["sq_l2", "l2", "cosine", "dot"]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, with an uneven tail."""
    for module in (assignment_chunked, assignment_nearest):
        monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 512)
    monkeypatch.setattr(assignment_chunked, "_MIN_ROWS", 3)
    monkeypatch.setitem(assignment_nearest._ROWS, "cpu", 3)


def draw(
    seed: int, rows: int, codes: int, channels: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator, dtype=dtype)
    centers = torch.randn(codes, channels, generator=generator, dtype=dtype)
    widths = 0.5 + torch.rand(codes, generator=generator, dtype=dtype)
    return x, centers, widths


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("distance", "with_widths", "hold_x"), list(itertools.product(DISTANCES, [False, True], [False, True]))
)
def test_chunked_equals_reference_with_all_gradients(distance: str, with_widths: bool, hold_x: bool) -> None:
    x, centers, widths = draw(0, rows=37, codes=11, channels=5)
    tau = torch.tensor(0.7, dtype=torch.float64)
    inputs = [x, centers, tau] + ([widths] if with_widths else [])
    results = []
    for backend in ("reference", "chunked"):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        assigned = soft_assign(
            *leaves[:3],
            widths=leaves[3] if with_widths else None,
            distance=distance,
            hold_x=hold_x,
            backend=backend,
        )
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in assigned[:4]]
        loss = sum((t * c).sum() for t, c in zip(assigned[:4], cotangents, strict=True))
        results.append((assigned, torch.autograd.grad(loss, leaves)))
    (definition, wanted), (found, gradients) = results
    for a, b in zip(definition, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    for a, b in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("output", [0, 1, 2, 3])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck_of_each_output_alone(distance: str, output: int) -> None:
    x, centers, widths = draw(2, rows=7, codes=20, channels=3)
    tau = torch.tensor(0.9, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, centers, tau, widths)]
    assert torch.autograd.gradcheck(
        lambda x, c, t, w: soft_assign(x, c, t, widths=w, distance=distance, backend="chunked")[output], leaves
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_fp32(distance: str, dtype: torch.dtype) -> None:
    x, centers, _ = draw(4, rows=200, codes=300, channels=8, dtype=torch.float32)
    x, centers = x.to(dtype), centers.to(dtype)
    found = soft_assign(x, centers, 0.5, distance=distance, backend="chunked")
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = soft_assign(x, centers, 0.5, distance=distance, backend="chunked")
        token = nearest_code(x, centers, distance=distance)
    wanted = soft_assign(x.double(), centers.double(), 0.5, distance=distance, backend="reference")
    assert found.soft_codes_NC.dtype == found.usage_K.dtype == torch.float32
    for name in ("soft_codes_NC", "peak_N", "usage_K", "lse_N"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(wanted, name), rtol=1e-4, atol=2e-5)
        assert torch.equal(getattr(found, name), getattr(under_autocast, name))
    assert torch.equal(token, nearest_code(x.double(), centers.double(), distance=distance, backend="reference"))


def test_against_a_hand_computed_case() -> None:
    x, centers = torch.tensor([[0.0]]), torch.tensor([[1.0], [-2.0]])
    assigned = soft_assign(x, centers, 2.0)
    p = torch.softmax(torch.tensor([-1.0, -4.0]) / 2, dim=0)
    torch.testing.assert_close(assigned.soft_codes_NC, (p[0] - 2 * p[1]).reshape(1, 1))
    torch.testing.assert_close(assigned.peak_N, (p * p).sum()[None])
    torch.testing.assert_close(assigned.lse_N, torch.logsumexp(torch.tensor([-0.5, -2.0]), 0)[None])
    assert assigned.index_N.tolist() == [0]


@pytest.mark.parametrize("distance", DISTANCES)
def test_chunked_never_holds_the_matrix(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called below the operators, whose inner calls the watch would not see."""
    monkeypatch.setitem(assignment_chunked._BLOCK_BYTES, "cpu", 4 * 4096)
    x, centers, widths = draw(6, rows=300, codes=128, channels=3, dtype=torch.float32)
    grads = (x, x[:, 0], widths, x[:, 1])
    with LargestTensor() as watch:
        assignment_chunked.chunked_forward(x, centers, widths, distance)
        assignment_chunked.chunked_backward(*grads, x, centers, widths, distance, hold_x=True)
    assert watch.elements == 4096 < 300 * 128
    with LargestTensor() as watch:
        soft_assign(x, centers, 0.5, backend="reference")
    assert watch.elements == 300 * 128  # the watch sees what it should


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("distance", DISTANCES)
def test_tokens_do_not_depend_on_how_many_rows_are_looked_up(distance: str) -> None:
    x, centers, widths = draw(7, rows=60, codes=500, channels=8, dtype=torch.float32)
    for arguments in ({}, {"widths": widths}):
        whole = nearest_code(x, centers, distance=distance, **arguments)
        single = torch.cat([nearest_code(row[None], centers, distance=distance, **arguments) for row in x])
        assert torch.equal(whole, single)
        assert torch.equal(whole, nearest_code(x, centers, distance=distance, backend="reference", **arguments))


sizes = st.integers(1, 9)
temperatures = st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    codes=sizes,
    channels=sizes,
    tau=temperatures,
    distance=st.sampled_from(DISTANCES),
    offset=st.sampled_from([0.0, 1e3, 1e6]),
    hold_x=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_always_finite(
    rows: int, codes: int, channels: int, tau: float, distance: str, offset: float, hold_x: bool, seed: int
) -> None:
    """Odd sizes, K = 1, N = 1 and 0, extreme temperatures, latents far from every code."""
    x, centers, _ = draw(seed, rows, codes, channels, torch.float32)
    x = (x + offset).requires_grad_()
    centers.requires_grad_()
    assigned = soft_assign(x, centers, tau, distance=distance, hold_x=hold_x)
    assert all(torch.isfinite(t).all() for t in assigned)
    assert (assigned.peak_N <= 1 + 1e-5).all() and (assigned.peak_N >= 1 / codes - 1e-5).all()
    if rows:
        assert assigned.usage_K.sum().item() == pytest.approx(1, abs=1e-4)
    total = assigned.soft_codes_NC.sum() + assigned.peak_N.sum() + assigned.usage_K.square().sum()
    for gradient in torch.autograd.grad(total, [x, centers]):
        assert torch.isfinite(gradient).all()
    index = nearest_code(x, centers, distance=distance)
    assert index.shape == (rows,) and (index >= 0).all() and (index < codes).all()


@settings(max_examples=40, deadline=None)
@given(
    codes=st.integers(2, 30), copies=st.integers(2, 5), distance=st.sampled_from(DISTANCES), seed=st.integers(0, 999)
)
def test_of_equal_codes_the_lowest_index_wins(codes: int, copies: int, distance: str, seed: int) -> None:
    x, centers, _ = draw(seed, 20, codes, 4, torch.float32)
    repeated = centers.repeat(copies, 1)
    for index in (
        nearest_code(x, repeated, distance=distance),
        nearest_code(x, repeated, distance=distance, backend="reference"),
    ):
        assert torch.equal(index, nearest_code(x, centers, distance=distance))
    assert (soft_assign(x, repeated.double(), 0.5, distance=distance).index_N < codes).all()


@pytest.mark.parametrize("distance", ["sq_l2", "l2"])
def test_a_common_shift_changes_nothing(distance: str) -> None:
    x, centers, _ = draw(8, rows=200, codes=50, channels=6)
    shift = 1e4
    plain, shifted = (soft_assign(x + s, centers + s, 0.5, distance=distance) for s in (0, shift))
    torch.testing.assert_close(shifted.peak_N, plain.peak_N, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(shifted.soft_codes_NC - shift, plain.soft_codes_NC, rtol=1e-7, atol=1e-7)
    assert torch.equal(shifted.index_N, plain.index_N)


def test_small_temperature_is_hard_assignment() -> None:
    x, centers, _ = draw(9, rows=100, codes=30, channels=4)
    assigned = soft_assign(x, centers, 1e-6)
    torch.testing.assert_close(assigned.soft_codes_NC, centers[nearest_code(x, centers)], rtol=0, atol=1e-9)
    torch.testing.assert_close(assigned.peak_N, torch.ones(100, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_NC": torch.zeros(3, 2, 1)}, ValueError, r"x_NC \(N, C\).*got \(3, 2, 1\)"),
        ({"x_NC": torch.zeros(3, 5)}, ValueError, r"same C, got \(3, 5\) and \(4, 2\)"),
        ({"centers_KC": torch.zeros(0, 2)}, ValueError, "K must be at least 1"),
        ({"x_NC": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "floating point, got torch.int64"),
        ({"widths": torch.ones(3)}, ValueError, r"widths must have shape \(4,\), got \(3,\)"),
        ({"distance": "l1"}, ValueError, "distance must be one of .* got 'l1'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .* got 'cuda'"),
    ],
)
def test_bad_input(changes: dict, error: type[Exception], message: str) -> None:
    arguments = {"x_NC": torch.zeros(3, 2), "centers_KC": torch.zeros(4, 2)} | changes
    with pytest.raises(error, match=message):
        nearest_code(**arguments)
    with pytest.raises(error, match=message):
        soft_assign(temperature=1.0, **arguments)


@pytest.mark.parametrize("temperature", [0.0, float("nan")])
def test_bad_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        soft_assign(torch.zeros(1, 1), torch.zeros(1, 1), temperature)
