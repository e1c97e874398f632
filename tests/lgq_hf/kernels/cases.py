"""Latents, codes and the truth in float64, for tests of every backend."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lgq_hf.tokenizer.assignment import SoftAssignment, soft_assign

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU the kernels run in Triton's interpreter
DISTANCES = ["sq_l2", "l2", "cosine", "dot"]
LATENTS = ["random", "clustered", "duplicates", "far"]
OUTPUTS = ("soft_codes_NC", "peak_N", "usage_K", "lse_N")
INPUTS = ("x", "centers", "widths", "temperature")


class Inputs(NamedTuple):
    """x (N, C), centers (K, C), widths (K,), temperature ()."""

    x: Tensor
    centers: Tensor
    widths: Tensor
    temperature: Tensor


def draw(kind: str, rows: int, codes: int, channels: int, tau: float = 0.7, seed: int = 0) -> Inputs:
    """fp32 inputs: `random`; `clustered` latents within 0.01 of codes; `duplicates` among codes; both `far` off 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator)
    centers = torch.randn(codes, channels, generator=generator)
    widths = 0.5 + torch.rand(codes, generator=generator)
    if kind == "clustered":
        x = centers[torch.randint(codes, (rows,), generator=generator)] + 0.01 * x
    if kind == "duplicates":
        centers[codes // 2 :] = centers[: codes - codes // 2].clone()
    if kind == "far":
        x, centers = x + 100, centers + 100
    return Inputs(*(t.to(DEVICE) for t in (x, centers, widths, torch.tensor(tau))))


def evaluate(
    inputs: Inputs, *, backend: str, distance: str, widths: bool = False, hold_x: bool = False
) -> tuple[SoftAssignment, dict[str, Tensor]]:
    """Outputs of `soft_assign`, and the gradient of every input as in [`differentiate`]."""

    def function(leaves: Inputs) -> SoftAssignment:
        options = {"distance": distance, "hold_x": hold_x, "backend": backend}
        width = leaves.widths if widths else None
        return soft_assign(leaves.x, leaves.centers, leaves.temperature, widths=width, **options)  # type: ignore[arg-type]

    return differentiate(function, inputs, [name for name in INPUTS if widths or name != "widths"])


def differentiate(
    function: Callable[[Inputs], SoftAssignment], inputs: Inputs, names: list[str]
) -> tuple[SoftAssignment, dict[str, Tensor]]:
    """What a function returns, and the gradients of the named inputs from random cotangents of all outputs."""
    leaves = Inputs(*(t.detach().clone().requires_grad_() for t in inputs))
    assigned = function(leaves)
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64, device=leaves.x.device)
    for output in assigned[:4]:
        cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
        loss = loss + (output.double() * cotangent).sum()
    gradients = torch.autograd.grad(loss, [getattr(leaves, name) for name in names])
    return SoftAssignment(*(t.detach() for t in assigned)), dict(zip(names, gradients, strict=True))


def truth(inputs: Inputs, **options: object) -> tuple[SoftAssignment, dict[str, Tensor]]:
    """The definition in float64."""
    return evaluate(Inputs(*(t.double() for t in inputs)), backend="reference", **options)  # type: ignore[arg-type]


@contextmanager
def settings_restored() -> Iterator[None]:
    """Puts torch's precision of fp32 matrix products back, whichever of its two ways a test has used."""
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


def errors(
    found: tuple[SoftAssignment, dict[str, Tensor]], wanted: tuple[SoftAssignment, dict[str, Tensor]]
) -> dict[str, float]:
    """||found - wanted|| / ||wanted|| of every output and gradient."""
    pairs = {name: (getattr(found[0], name), getattr(wanted[0], name)) for name in OUTPUTS}
    pairs |= {f"d {name}": (found[1][name], wanted[1][name]) for name in wanted[1]}
    return {
        name: float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        for name, (a, b) in pairs.items()
    }
