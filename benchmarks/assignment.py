"""The assignment op side by side with what it replaces: cases, providers, the gate before a timing, and the targets.

Shapes: N rows (latent vectors), C channels, K codes. `benchmarks.tables` renders the result.

A provider is a way to compute the op. `soft_assign` is timed forward and backward: soft codes, peak, usage and index,
and the gradients of latents and codes from random gradients of the first three. `nearest_code` is the index alone.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from benchmarks.harness import (
    Isolated,
    Row,
    Timed,
    Timing,
    admit,
    begin,
    gpu_rates,
    line,
    result_name,
    shared_protocol,
    time_in_turns,
)
from benchmarks.results_file import write_result
from lgq_hf.tokenizer.assignment import Backend, nearest_code, soft_assign

Op = Literal["soft_assign", "nearest_code"]
Precision = Literal["fp32", "tf32", "bf16"]
Outputs = dict[str, Tensor]

GATE_ROWS, GATE_CODES = 512, 1024
PRODUCTS = 7  # matrix products of 2NKC FLOP that forward (2) and backward (5) cannot do without
GATE_PROTOCOL = {
    "shape": f"N={GATE_ROWS}, K={GATE_CODES}, C and precision of the case; inputs that are not timed",
    "uninitialised_memory": "filled with NaN",
    "error": "||out - ref|| / ||ref|| of each output and gradient; ref: backend='reference' in float64",
    "fp32": "at most 1e-4, and at most 8 times the error of backend='reference' in fp32 + 1e-6",
    "tf32": "at most 1e-2",
    "bf16": "at most 2 times the error of the eager formula in bf16 + 1e-3",
    "index": "the float64 reference's, or a code whose squared distance d exceeds the smallest by at most "
    "1e-5 d (tf32: 1e-2 d, bf16: 5e-2 d) + 1e-6 ||x||^2",
}


@dataclass(frozen=True)
class Case:
    """An op at a shape and a precision.

    Attributes:
        precision: `"fp32"` with full matrix products, `"tf32"` for fp32 tensors under
            `torch.set_float32_matmul_precision("high")`, `"bf16"` for bf16 tensors.
    """

    name: str
    op: Op
    rows: int
    channels: int
    codes: int
    precision: Precision = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """Of latents and codes."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def flop(self) -> int | None:
        """Of the matrix products that forward and backward cannot do without; `None` for nearest_code."""
        return PRODUCTS * 2 * self.rows * self.codes * self.channels if self.op == "soft_assign" else None


CASES: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("soft-k16384", "soft_assign", 4096, 64, 16384),
        Case("soft-c8-k4096", "soft_assign", 4096, 8, 4096),
        Case("nearest-k16384", "nearest_code", 4096, 64, 16384),
        Case("nearest-c8-k262144", "nearest_code", 1024, 8, 2**18),
    ),
    "cuda": (
        Case("soft-fp32", "soft_assign", 16384, 64, 16384),
        Case("soft-tf32", "soft_assign", 16384, 64, 16384, "tf32"),
        Case("soft-bf16", "soft_assign", 16384, 64, 16384, "bf16"),
        Case("soft-k65536", "soft_assign", 16384, 64, 65536),
        Case("soft-k262144", "soft_assign", 16384, 64, 262144),
        Case("nearest-k16384", "nearest_code", 16384, 64, 16384),
        Case("nearest-k262144", "nearest_code", 16384, 64, 262144),
    ),
    "quick": (
        Case("soft-quick", "soft_assign", 512, 8, 2048),
        Case("nearest-quick", "nearest_code", 512, 8, 2048),
    ),
}


def eager_soft_assign(x_NC: Tensor, centers_KC: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Soft codes, peak, usage and index as published code computes them: the expanded square, materialised."""
    distance_NK = x_NC.square().sum(1, keepdim=True) - 2 * torch.matmul(x_NC, centers_KC.T)
    distance_NK = distance_NK + centers_KC.square().sum(1)
    p_NK = torch.softmax(-distance_NK / temperature, dim=1)
    return torch.matmul(p_NK, centers_KC), p_NK.square().sum(1), p_NK.mean(0), distance_NK.argmin(1)


def cdist_argmin(x_NC: Tensor, centers_KC: Tensor) -> Tensor:
    """Index of the nearest code as it is usually looked up."""
    return torch.cdist(x_NC, centers_KC).argmin(1)


def _soft(backend: str) -> Callable[..., tuple[Tensor, ...]]:
    return partial(soft_assign, backend=cast(Backend, backend))


def _nearest(backend: str) -> Callable[..., Tensor]:
    return partial(nearest_code, backend=cast(Backend, backend))


def _compiled() -> Callable[..., tuple[Tensor, ...]]:
    reference = _soft("reference")
    # a function of three tensors: torch.compile does not take a partial
    return torch.compile(lambda x, centers, temperature: reference(x, centers, temperature), dynamic=False)


# What makes each provider; soft assignments return (soft codes, peak, usage, ..., index).
PROVIDERS: dict[Op, dict[str, Callable[[], Callable[..., Any]]]] = {
    "soft_assign": {
        "reference": lambda: _soft("reference"),
        "eager": lambda: eager_soft_assign,
        "chunked": lambda: _soft("chunked"),
        "triton": lambda: _soft("triton"),
        "torch.compile(reference)": _compiled,
    },
    "nearest_code": {
        "reference": lambda: _nearest("reference"),
        "cdist+argmin": lambda: cdist_argmin,
        "chunked": lambda: _nearest("chunked"),
        "triton": lambda: _nearest("triton"),
    },
}
# what `speed_against_eager` compares with
EAGER: dict[Op, str] = {"soft_assign": "eager", "nearest_code": "cdist+argmin"}


def temperature(case: Case) -> float:
    """Half of sqrt(6C), the spread of ||x - c||^2 over normal codes: logits have spread 2, the assignment is soft."""
    return (6 * case.channels) ** 0.5 / 2


def make_inputs(case: Case, device: str, seed: int) -> Outputs:
    """Normal latents and codes, and gradients of soft codes, peak and usage that weigh alike in those of the codes."""
    generator = torch.Generator().manual_seed(seed)
    rows, channels, codes = case.rows, case.channels, case.codes

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    inputs = {"x": normal(rows, channels), "centers": normal(codes, channels)}
    if case.op == "soft_assign":
        inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        inputs["temperature"] = torch.tensor(temperature(case), device=device)
        inputs["d_soft"] = normal(rows, channels)
        inputs["d_peak"] = normal(rows) * (10 * channels**0.5)
        inputs["d_usage"] = normal(codes) * (rows * channels**0.5)
    return inputs


def compute(op: Op, provider: Callable[..., Any], inputs: Outputs) -> Outputs:
    """What is timed, and compared by [`gate`]: outputs and, of soft_assign, the gradients of latents and codes."""
    x, centers = inputs["x"], inputs["centers"]
    if op == "nearest_code":
        return {"index": provider(x, centers)}
    result = provider(x, centers, inputs["temperature"])
    outputs = dict(zip(("soft", "peak", "usage"), result[:3], strict=True))
    grads = [inputs[f"d_{name}"].to(output.dtype) for name, output in outputs.items()]
    d_x, d_centers = torch.autograd.grad(tuple(outputs.values()), (x, centers), grads)
    return {name: output.detach() for name, output in outputs.items()} | {
        "d_x": d_x,
        "d_centers": d_centers,
        "index": result[-1],
    }


@contextmanager
def nan_in_uninitialised_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that what a provider does not write is noticed."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def gate(case: Case, provider: Callable[..., Any], device: str, seed: int) -> dict[str, Any]:
    """Compares a provider with the definition in float64 at a small shape, as GATE_PROTOCOL states.

    Returns:
        `errors` and `limits` of each output, and `failures`: a sentence for each limit that is not kept.
    """
    small = Case(case.name, case.op, GATE_ROWS, case.channels, GATE_CODES, case.precision)
    inputs = make_inputs(small, device, seed)
    exact = _float64(inputs)
    reference = compute(case.op, PROVIDERS[case.op]["reference"](), exact)
    with nan_in_uninitialised_memory():
        outputs = compute(case.op, provider, inputs)
    index, expected = outputs.pop("index"), reference.pop("index")
    errors = _relative_errors(outputs, reference)
    limits = _limits(small, inputs, reference)
    failures = [
        f"{name} differs from the float64 reference by {error:.2e}, allowed {limits[name]:.2e}"
        for name, error in errors.items()
        if not error <= limits[name]  # NaN too
    ]
    wrong, excess = _wrong_rows(index, expected, exact["x"].detach(), exact["centers"].detach(), case.precision)
    if wrong:
        failures.append(f"index is wrong in {wrong} of {GATE_ROWS} rows, by up to {excess:.2e} of the distance")
    return {"errors": errors, "limits": limits, "wrong_indices": wrong, "failures": failures}


def _float64(inputs: Outputs) -> Outputs:
    return {name: tensor.detach().double().requires_grad_(tensor.requires_grad) for name, tensor in inputs.items()}


def _relative_errors(outputs: Outputs, reference: Outputs) -> dict[str, float]:
    return {
        name: float((outputs[name].double() - expected).norm() / expected.norm())
        for name, expected in reference.items()
    }


def _limits(small: Case, inputs: Outputs, reference: Outputs) -> dict[str, float]:
    if small.op == "nearest_code":
        return {}
    if small.precision == "tf32":
        return dict.fromkeys(reference, 1e-2)
    name = "reference" if small.precision == "fp32" else "eager"
    outputs = compute(small.op, PROVIDERS[small.op][name](), inputs)
    errors = _relative_errors(outputs, reference)
    if small.precision == "fp32":
        return {name: min(1e-4, 8 * error + 1e-6) for name, error in errors.items()}
    return {name: 2 * error + 1e-3 for name, error in errors.items()}


def _wrong_rows(
    index_N: Tensor, expected_N: Tensor, x_NC: Tensor, centers_KC: Tensor, precision: Precision
) -> tuple[int, float]:
    """Rows whose code is further away than GATE_PROTOCOL allows, and the largest relative excess among them."""
    if index_N.shape != expected_N.shape or index_N.dtype != torch.int64:
        raise ValueError(f"index must be int64 {tuple(expected_N.shape)}, got {index_N.dtype} {tuple(index_N.shape)}")
    outside = (index_N < 0) | (index_N >= len(centers_KC))
    found_N = (x_NC - centers_KC[index_N.clamp(0, len(centers_KC) - 1)]).square().sum(1)
    best_N = (x_NC - centers_KC[expected_N]).square().sum(1)
    relative = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2}[precision]
    wrong = outside | (found_N - best_N > relative * best_N + 1e-6 * x_NC.square().sum(1))
    excess = ((found_N - best_N) / best_N)[wrong]
    return int(wrong.sum()), float(excess.max()) if wrong.any() else 0.0


TIMING = {
    "cpu": Timing(rounds=10, share_s=0.3, calls=(1, 50), enough_s=3),
    "cuda": Timing(rounds=10, share_s=0.1, calls=(2, 50), enough_s=15),
    "quick": Timing(rounds=2, share_s=0.01, calls=(2, 5), enough_s=3),
}


class AssignmentBench(Timed):
    """A provider on a case."""

    def __init__(self, case: Case, provider: str, seed: int, *settings: Any) -> None:
        super().__init__(*settings)
        self.case, self.seed = case, seed
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        self.provider = PROVIDERS[case.op][provider]()

    def gate(self) -> Row:
        """See [`gate`]; its inputs have the seed after that of the timed ones."""
        return gate(self.case, self.provider, self.device, self.seed + 1)

    def prepare(self) -> Row:
        """Makes the inputs first."""
        self.inputs = make_inputs(self.case, self.device, self.seed)
        return super().prepare()

    def _call(self) -> None:
        compute(self.case.op, self.provider, self.inputs)


def measure_case(case: Case, providers: Iterable[str], start: Callable[..., Any], timing: Timing) -> Row:
    """Shape and precision of the case, and a row of each provider: its figures, or why there are none."""
    with ExitStack() as stack:
        workers, rows = admit(providers, partial(start, case), stack)
        time_in_turns(workers, rows, timing)
    for name, other in {"reference": "reference", "eager": EAGER[case.op]}.items():
        base = rows.get(other, {}).get("ms")
        for row in rows.values():
            if "ms" in row:
                row[f"speed_against_{name}"] = base["p50"] / row["ms"]["p50"] if base else None
    return {**asdict(case), "providers": rows}


def add_products(measured: Row, case: Case, rates: dict[str, float]) -> None:
    """Adds the time of the matrix products alone at the GPU's own rate, and each provider's ratio to it."""
    if case.flop is None:
        return
    measured["products_ms"] = case.flop / rates[f"{case.precision}_tflop_per_s"] / 1e9
    for row in measured["providers"].values():
        if "ms" in row:
            row["ratio_to_products"] = row["ms"]["p50"] / measured["products_ms"]


def run(arguments: argparse.Namespace) -> int:
    """Measures the chosen cases, writing the file after each; 1 where a provider was refused."""
    device = arguments.device
    kind = "quick" if arguments.quick else device
    cases, timing = CASES[kind], TIMING[kind]
    names = [case.name for case in cases]
    if unknown := set(arguments.only or ()) - set(names):
        sys.exit(f"--only: no case {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    result, limit_bytes = begin(arguments)
    result["protocol"] = {
        "inputs": "normal latents and codes; random gradients of soft codes, peak and usage",
        "distance": "sq_l2",
        "temperature": {case.name: temperature(case) for case in cases if case.op == "soft_assign"},
        "gate": GATE_PROTOCOL,
        "call": "forward and backward (soft_assign) or the index (nearest_code)",
        "rounds": asdict(timing),
        **shared_protocol(device, limit_bytes),
    }
    name = result_name("assignment", device, arguments.quick)
    if device == "cuda":
        result["gpu_rates"] = gpu_rates()
    settings = (arguments.seed, device, timing, torch.get_num_threads(), limit_bytes)

    def start(case: Case, provider: str) -> Isolated:
        return Isolated(AssignmentBench, case, provider, *settings)

    result["cases"] = {}
    for case in cases:
        if arguments.only and case.name not in arguments.only:
            continue
        providers = [one for one in PROVIDERS[case.op] if one in (arguments.provider or PROVIDERS[case.op])]
        measured = measure_case(case, providers, start, timing)
        if device == "cuda":
            add_products(measured, case, result["gpu_rates"])
        result["cases"][case.name] = measured
        path = write_result(name, result, arguments.output)
        for provider, row in measured["providers"].items():
            print(line(f"{case.name:20} {provider}", row), flush=True)
    print(path)
    rows = (row for measured in result["cases"].values() for row in measured["providers"].values())
    return int(any("refused" in row for row in rows))
