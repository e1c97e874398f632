"""The Triton kernels of soft_assign against the definition in float64: on a GPU, or else in Triton's interpreter."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from lgq_hf.kernels import launch
from lgq_hf.kernels.blocks import Limits
from lgq_hf.tokenizer.assignment import SoftAssignment, soft_assign
from tests.lgq_hf.kernels.cases import (
    DEVICE,
    DISTANCES,
    LATENTS,
    Inputs,
    differentiate,
    draw,
    errors,
    evaluate,
    settings_restored,
    truth,
)

pytestmark = pytest.mark.usefixtures("empty_is_nan")


def expanded(inputs: Inputs, distance: str) -> dict[str, float]:
    """Errors of plain PyTorch in the inputs' dtype, with |x|^2 - 2 x c^T + |c|^2: the formula of the kernels."""

    def formula(leaves: Inputs) -> SoftAssignment:
        x, centers = leaves[:2]
        if distance == "cosine":
            similarity = F.normalize(x, dim=1) @ F.normalize(centers, dim=1).T
        elif distance == "dot":
            similarity = x @ centers.T
        else:
            square = x.square().sum(1, keepdim=True) - 2 * x @ centers.T + centers.square().sum(1)
            similarity = -square if distance == "sq_l2" else -square.clamp_min(1e-7).sqrt()
        logits = similarity / leaves.temperature
        p = logits.softmax(1)
        return SoftAssignment(p @ centers, p.square().sum(1), p.mean(0), logits.logsumexp(1), logits.argmax(1))

    return errors(differentiate(formula, inputs, ["x", "centers", "temperature"]), truth(inputs, distance=distance))


@pytest.mark.parametrize("hold_x", [False, True])
@pytest.mark.parametrize("widths", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
def test_values_and_gradients(distance: str, widths: bool, hold_x: bool) -> None:
    options = {"distance": distance, "widths": widths, "hold_x": hold_x}
    inputs = draw("random", rows=70, codes=150, channels=5)
    wanted = truth(inputs, **options)
    found = evaluate(inputs, backend="triton", **options)  # type: ignore[arg-type]
    assert torch.equal(found[0].index_N, wanted[0].index_N)
    of_reference = errors(evaluate(inputs, backend="reference", **options), wanted)  # type: ignore[arg-type]
    for name, error in errors(found, wanted).items():
        assert error <= 8 * of_reference[name] + 1e-6, name


@pytest.mark.parametrize("tau", [0.1, *(pytest.param(tau, marks=pytest.mark.slow) for tau in (1e-3, 100.0))])
@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("distance", ["sq_l2", "l2"])
def test_error_stays_within_that_of_the_eager_formulas(distance: str, kind: str, tau: float) -> None:
    """8 times pairwise differences in fp32; where latents sit on their codes, twice the expanded formula.

    There ||x - c||^2 is a small difference of large numbers, about C, and a rounding of these is one of the logits,
    larger by 1 / tau: of probabilities too, where the order of a product's sums is not the expanded formula's. The
    log-sum-exp and the gradient of the temperature feel it most, and have a tolerance of their own.
    """
    inputs = draw(kind, rows=70, codes=150, channels=16, tau=tau)
    wanted = truth(inputs, distance=distance)
    of_reference = errors(evaluate(inputs, backend="reference", distance=distance), wanted)
    of_expanded = expanded(inputs, distance)
    for name, error in errors(evaluate(inputs, backend="triton", distance=distance), wanted).items():
        budget = 8 * of_reference[name] + 1e-6
        if kind == "clustered":
            rounding = (4 if distance == "sq_l2" else 16) * torch.finfo(torch.float32).eps * 16 / tau
            own = 3e-3 if name in ("lse_N", "d temperature") else 0
            budget = max(budget, 2 * of_expanded[name], rounding, own)
        assert error <= budget, f"{name}: {error} against {of_reference[name]} and {of_expanded[name]}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("distance", DISTANCES)
def test_low_precision_is_no_worse_than_twice_the_eager_formula(distance: str, dtype: torch.dtype) -> None:
    inputs = Inputs(*(t.to(dtype) for t in draw("random", rows=100, codes=130, channels=16)))
    wanted = truth(inputs, distance=distance)
    found = evaluate(inputs, backend="triton", distance=distance)
    assert found[0].soft_codes_NC.dtype == torch.float32 and found[1]["x"].dtype == dtype
    of_eager = expanded(inputs, distance)
    for name, error in errors(found, wanted).items():
        # gradients are rounded to the dtype of the input
        assert error <= 2 * of_eager[name] + (torch.finfo(dtype).eps if name.startswith("d ") else 1e-5), name


def test_bf16_next_to_fp32_is_computed_in_fp32() -> None:
    inputs = draw("random", rows=20, codes=30, channels=8)
    mixed = inputs._replace(x=inputs.x.bfloat16())
    found = errors(evaluate(mixed, backend="triton", distance="sq_l2"), truth(mixed, distance="sq_l2"))
    assert max(error for name, error in found.items() if name != "d x") < 1e-5
    assert found["d x"] < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(("tf32", "limit"), [(False, 2e-6), (True, 2e-4)])
def test_precision_follows_torch(tf32: bool, limit: float) -> None:
    """Both of torch's ways to allow TF32; after the newer one, torch refuses to tell the older setting."""
    inputs = draw("random", rows=50, codes=70, channels=16)
    wanted = truth(inputs, distance="sq_l2")
    with settings_restored():
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        older = errors(evaluate(inputs, backend="triton", distance="sq_l2"), wanted)
    with settings_restored():
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        newer = errors(evaluate(inputs, backend="triton", distance="sq_l2"), wanted)
    assert older == newer
    assert limit / 1000 < older["soft_codes_NC"] < limit
    assert older["d x"] < 3 * limit


@pytest.mark.parametrize(
    ("rows", "codes", "channels"),
    [(1, 1, 1), (1, 300, 3), (129, 2, 17), (127, 129, 64), (64, 64, 65), (33, 65, 128), (20, 40, 300), (17, 33, 512)],
)
def test_sizes_that_are_no_multiple_of_a_block(rows: int, codes: int, channels: int) -> None:
    inputs = draw("random", rows, codes, channels, tau=float(channels))
    found, wanted = evaluate(inputs, backend="triton", distance="sq_l2"), truth(inputs, distance="sq_l2")
    if codes == 1:  # one code: the soft code is that code, and nothing reaches the latents but through lse
        assert torch.equal(found[0].peak_N, torch.ones_like(found[0].peak_N))
    assert max(errors(found, wanted).values()) < 1e-5
    assert torch.equal(found[0].index_N, wanted[0].index_N)


@pytest.mark.parametrize("processors", [1, 132])
def test_shares_of_a_column_add_up(processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one processor a column is one share; with many it is cut."""
    monkeypatch.setattr(launch, "_limits", lambda device: Limits(227 * 1024, processors, hopper=True))
    inputs = draw("random", rows=300, codes=70, channels=8)
    found = errors(evaluate(inputs, backend="triton", distance="l2"), truth(inputs, distance="l2"))
    assert max(found.values()) < 5e-6


def test_no_rows() -> None:
    x = torch.empty(0, 4, device=DEVICE, requires_grad=True)
    centers = torch.randn(9, 4, device=DEVICE, requires_grad=True)
    assigned = soft_assign(x, centers, 1.0, backend="triton")
    assert assigned.soft_codes_NC.shape == (0, 4) and assigned.index_N.shape == (0,)
    assert torch.equal(assigned.usage_K, torch.zeros_like(assigned.usage_K))
    assigned.soft_codes_NC.sum().backward()
    assert x.grad is not None and torch.equal(centers.grad, torch.zeros_like(centers))  # type: ignore[arg-type]


def test_strided_input() -> None:
    inputs = draw("random", rows=40, codes=30, channels=6)
    strided = inputs._replace(x=inputs.x.repeat_interleave(2, dim=0)[::2], centers=inputs.centers.T.contiguous().T)
    assert not strided.x.is_contiguous() and not strided.centers.is_contiguous()
    plain = soft_assign(*inputs[:2], 0.5, backend="triton")
    for a, b in zip(plain, soft_assign(*strided[:2], 0.5, backend="triton"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("output", range(4))
def test_gradient_of_each_output_alone(output: int) -> None:
    """The other outputs then have no gradient at all, which the operator takes as zeros."""
    inputs = draw("random", rows=20, codes=40, channels=6)
    gradients = []
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        leaves = [t.to(dtype).requires_grad_() for t in inputs[:2]]
        value = soft_assign(*leaves, 0.6, backend=backend)[output]  # type: ignore[arg-type]
        weights = torch.linspace(-1, 1, value.numel(), dtype=dtype, device=DEVICE).reshape(value.shape)
        gradients.append(torch.autograd.grad((value * weights).sum(), leaves))
    for wanted, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=5e-6)


def test_twice_the_same_bits() -> None:
    inputs = draw("random", rows=200, codes=90, channels=16)
    first, second = (evaluate(inputs, backend="triton", distance="sq_l2") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize("backend", ["triton", "chunked"])
@pytest.mark.parametrize("hold_x", [False, True])
def test_autocast_changes_nothing(hold_x: bool, backend: str) -> None:
    """Nor in the backward pass, which runs in whatever its caller has set."""
    inputs = draw("random", rows=20, codes=30, channels=8)
    plain = evaluate(inputs, backend=backend, distance="sq_l2", hold_x=hold_x)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = evaluate(inputs, backend=backend, distance="sq_l2", hold_x=hold_x)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], found[0], strict=True))
    assert all(torch.equal(plain[1][name], found[1][name]) for name in plain[1])


@pytest.mark.parametrize("distance", ["sq_l2", "l2"])
def test_a_stray_code_costs_the_others_nothing(distance: str) -> None:
    inputs = draw("random", rows=50, codes=60, channels=8)
    inputs.centers[7] = 1e4
    found = errors(evaluate(inputs, backend="triton", distance=distance), truth(inputs, distance=distance))
    assert max(error for name, error in found.items() if name != "d temperature") < 1e-5


def test_zero_vectors_have_a_cosine_of_zero() -> None:
    inputs = draw("random", rows=6, codes=5, channels=4)
    inputs.x[2] = 0
    inputs.centers[3] = 0
    found = soft_assign(*inputs[:2], 0.5, distance="cosine", backend="triton")
    direction = F.normalize(inputs.x.double(), dim=1) @ F.normalize(inputs.centers.double(), dim=1).T
    torch.testing.assert_close(found.lse_N.double(), (direction / 0.5).logsumexp(1), rtol=1e-6, atol=1e-6)
