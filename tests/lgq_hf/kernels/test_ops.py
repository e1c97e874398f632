"""The operators: registration, compiled graphs, refusals, and what `auto` chooses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from lgq_hf.kernels import ops
from lgq_hf.tokenizer import assignment
from lgq_hf.tokenizer.assignment import nearest_code, soft_assign
from tests.lgq_hf.kernels.cases import DEVICE, DISTANCES, draw

TRITON = pytest.param("triton", marks=pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')"))
BACKENDS = ["chunked", TRITON]


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x, centers, widths, tau = draw("random", rows=9, codes=20, channels=5)
    return tuple(t.to(dtype).requires_grad_() for t in (x, centers, tau * widths))  # type: ignore[return-value]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_opcheck(distance: str, backend: str) -> None:
    """Schema, fake implementation, autograd registration and AOT dispatch agree with what the operator does."""
    assert assignment._operators is not None
    inputs = leaves()
    for scale in (inputs[2], inputs[2].detach()[:1].requires_grad_()):
        torch.library.opcheck(assignment._operators.soft_assign, (*inputs[:2], scale, distance, False, backend))
    strided = inputs[0].detach().T.contiguous().T.requires_grad_()
    arguments = (strided, *inputs[1:], distance, False, backend)
    torch.library.opcheck(assignment._operators.soft_assign, arguments)
    x, centers, widths = (t.detach() for t in inputs)
    torch.library.opcheck(assignment._operators.nearest_code, (x, centers, widths, distance, backend))
    torch.library.opcheck(assignment._operators.nearest_code, (x, centers, None, distance, backend))


@pytest.mark.parametrize("hold_x", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_and_no_recompilation(backend: str, hold_x: bool) -> None:
    """`fullgraph`, with a temperature and a number of rows that change from step to step."""

    def step(x: Tensor, centers: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assigned = soft_assign(x, centers, tau, hold_x=hold_x, backend=backend)  # type: ignore[arg-type]
        loss = assigned.soft_codes_NC.square().sum() + assigned.peak_N.sum() + assigned.usage_K.square().sum()
        return loss, assigned.index_N, nearest_code(x, centers, backend=backend)  # type: ignore[arg-type]

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for rows, tau in ((9, 0.7), (14, 0.6), (23, 0.5)):
        inputs = draw("random", rows=rows, codes=20, channels=5, tau=tau)
        results = []
        for function in (step, compiled):
            x, centers = (t.detach().clone().requires_grad_() for t in inputs[:2])
            loss, index, token = function(x, centers, inputs.temperature)
            loss.backward()
            results.append((loss.detach(), index, token, x.grad, centers.grad))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_inductor(backend: str) -> None:
    """With rows as a quantizer makes them of one image: a view whose strides are not those of a new tensor."""
    torch._dynamo.reset()
    x, centers = draw("random", rows=12, codes=20, channels=5)[:2]
    latents = x.reshape(1, 4, 3, 5).permute(0, 3, 1, 2).contiguous()

    def loss(latents: Tensor, centers: Tensor, backend: str) -> Tensor:
        rows = latents.permute(0, 2, 3, 1).reshape(-1, 5)
        return soft_assign(rows, centers, 0.5, backend=backend).soft_codes_NC.square().sum()  # type: ignore[arg-type]

    gradients = []
    for function, which in ((loss, "reference"), (torch.compile(loss, fullgraph=True), backend)):
        leaves = [t.clone().requires_grad_() for t in (latents, centers)]
        gradients.append(torch.autograd.grad(function(*leaves, which), leaves))
    for wanted, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    ("x", "centers", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4, 3), "compute in fp32: use backend='chunked'"),
        (torch.zeros(2, 513), torch.zeros(4, 513), "up to C=512 channels and K=1048576 codes"),
        (torch.zeros(2, 1), torch.zeros(2**20 + 1, 1), "up to C=512 channels and K=1048576 codes"),
    ],
)
def test_refused_with_the_reason(x: Tensor, centers: Tensor, message: str) -> None:
    pytest.importorskip("triton")
    x, centers = x.to(DEVICE), centers.to(DEVICE)
    with pytest.raises(ValueError, match=f"backend='triton' cannot run: .*{message}"):
        soft_assign(x, centers, 1.0, backend="triton")
    with pytest.raises(ValueError, match=f"backend='triton' cannot run: .*{message}"):
        nearest_code(x, centers, backend="triton")


@pytest.mark.slow
def test_refused_where_kernels_cannot_run() -> None:
    """Without triton, in a fork, and with it, on a CPU; importing the package does not import the kernels."""
    script = """
import os, sys
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel  # takes seconds, once
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    sys.modules["triton"] = None
assert not any(name.startswith("lgq_hf") for name in sys.modules)
from lgq_hf.tokenizer.assignment import soft_assign, nearest_code
assert "lgq_hf.kernels.launch" not in sys.modules
x = torch.randn(4, 3)
assert soft_assign(x, x, 1.0).index_N.tolist() == nearest_code(x, x).tolist() == [0, 1, 2, 3]
try:
    soft_assign(x, x, 1.0, backend="triton")
except ValueError as error:
    print(error, flush=True)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False, cwd=root
    )
    assert run.returncode == 0, run.stderr[-2000:]
    has_triton = importlib.util.find_spec("triton") is not None
    messages = ["triton cannot be imported", "need tensors on a CUDA device, got cpu"]
    for line, message in zip(run.stdout.splitlines(), messages if has_triton else messages[:1] * 2, strict=True):
        assert line.startswith("backend='triton' cannot run: ") and message in line


def test_auto_leaves_wide_rows_to_chunked() -> None:
    pytest.importorskip("triton")
    for dtype, channels, left in (
        (torch.float32, 128, False),
        (torch.float32, 256, True),
        (torch.bfloat16, 512, False),
    ):
        x = torch.zeros(2, channels, dtype=dtype, device=DEVICE)
        assert ops.reason_against_triton(x, x, "soft_assign") is None
        assert (ops.reason_against_triton(x, x, "soft_assign", auto=True) is not None) == left


def test_auto_says_once_what_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ops.logger, "info", said.append)
    monkeypatch.setattr(ops, "reason_against_triton", lambda *_, **__: "this is a test")
    ops._say.cache_clear()
    on_a_gpu = type("OnAGPU", (), {"is_cuda": True})()
    assert [ops._takes_triton("auto", on_a_gpu, on_a_gpu) for _ in range(3)] == [False] * 3
    monkeypatch.setattr(ops, "reason_against_triton", lambda *_, **__: None)
    assert [ops._takes_triton("auto", on_a_gpu, on_a_gpu) for _ in range(3)] == [True] * 3
    assert said == [
        "Assignment op: 'auto' chose 'chunked': this is a test",
        "Assignment op: 'auto' chose 'triton'",
    ]
    assert not ops._takes_triton("auto", torch.zeros(1), torch.zeros(1))
    ops._say.cache_clear()
