"""What only a GPU can show: large sizes, memory, CUDA graphs, equal bits, a training step (`make test-gpu`)."""

import pytest
import torch
from torch import Tensor

from lgq_hf import LGQConfig, LGQModel
from lgq_hf.kernels import ops
from lgq_hf.tokenizer.assignment import nearest_code, soft_assign
from tests.lgq_hf.kernels.cases import Inputs, draw, errors, evaluate, settings_restored, truth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test-gpu` on a GPU"),
]


def step(x: Tensor, centers: Tensor, tau: Tensor | float, backend: str = "triton") -> tuple[Tensor, Tensor]:
    assigned = soft_assign(x, centers, tau, backend=backend)  # type: ignore[arg-type]
    loss = assigned.soft_codes_NC.square().mean() + assigned.peak_N.mean() + assigned.usage_K.square().sum()
    d_x, d_centers = torch.autograd.grad(loss, [x, centers])
    return d_x, d_centers


@pytest.mark.parametrize("distance", ["sq_l2", "l2", "cosine", "dot"])
def test_a_real_size(distance: str) -> None:
    inputs = draw("random", rows=3000, codes=4097, channels=64, tau=4.0)
    wanted = truth(inputs, distance=distance)
    of_reference = errors(evaluate(inputs, backend="reference", distance=distance), wanted)
    for name, error in errors(evaluate(inputs, backend="triton", distance=distance), wanted).items():
        assert error <= 8 * of_reference[name] + 2e-6, name


def test_equal_bits_from_run_to_run() -> None:
    inputs = draw("random", rows=5000, codes=3000, channels=64)
    first = evaluate(inputs, backend="triton", distance="sq_l2")
    for _ in range(3):
        again = evaluate(inputs, backend="triton", distance="sq_l2")
        assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
        assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


@pytest.mark.parametrize("codes", [2**18, 2**20])
def test_memory_does_not_hold_the_matrix(codes: int) -> None:
    """N x K in fp32 would be 16 or 64 GiB."""
    x = torch.randn(16384, 64, device="cuda", requires_grad=True)
    centers = torch.randn(codes, 64, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for gradient in step(x, centers, 4.0):
        assert gradient.isfinite().all()
    assert torch.cuda.max_memory_allocated() - before < codes / 2**18 * 2**30


@pytest.mark.parametrize("channels", [8, 64, 512])
def test_nearest_code_among_a_million(channels: int) -> None:
    x = torch.randn(512, channels, device="cuda")
    centers = torch.randn(2**20, channels, device="cuda")
    centers[1000:1100] = centers[5000:5100]
    x[:100] = centers[1000:1100] + 1e-3 * x[:100]
    if (reason := ops.reason_against_triton(x, centers, "nearest_code")) is not None:
        pytest.skip(reason)
    found = nearest_code(x, centers, backend="triton")
    best = torch.full((512,), float("inf"), device="cuda", dtype=torch.float64)
    wanted = torch.zeros(512, dtype=torch.int64, device="cuda")
    for start in range(0, 2**20, 4096):
        block = centers[start : start + 4096].double()
        apart = torch.cdist(x.double(), block, compute_mode="donot_use_mm_for_euclid_dist")
        low, place = apart.min(dim=1)
        wanted = torch.where(low < best, place + start, wanted)
        best = torch.minimum(best, low)
    assert torch.equal(found, wanted)


def test_cuda_graph() -> None:
    """Nothing waits for the device or depends on values: a step is captured once and replayed on other latents."""
    x = torch.randn(1000, 32, device="cuda", requires_grad=True)
    centers = torch.randn(777, 32, device="cuda", requires_grad=True)
    tau = torch.tensor(1.0, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x, centers, tau)
            nearest_code(x, centers, backend="triton")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = step(x, centers, tau)
        token = nearest_code(x, centers, backend="triton")
    with torch.no_grad():
        x.normal_()
        tau.fill_(0.5)
    graph.replay()
    for captured, eager in zip(gradients, step(x, centers, tau), strict=True):
        assert torch.equal(captured, eager)
    assert torch.equal(token, nearest_code(x, centers, backend="triton"))


def test_tf32_setting_does_not_reach_tokens() -> None:
    x, centers = torch.randn(4096, 16, device="cuda"), torch.randn(8192, 16, device="cuda")
    plain = nearest_code(x, centers, backend="triton")
    with settings_restored():
        torch.set_float32_matmul_precision("high")
        assert torch.equal(nearest_code(x, centers, backend="triton"), plain)
    assert torch.equal(plain.cpu(), nearest_code(x.cpu(), centers.cpu()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_device_that_is_not_the_current_one() -> None:
    inputs = Inputs(*(t.to("cuda:1") for t in draw("random", rows=300, codes=200, channels=16)))
    found = errors(evaluate(inputs, backend="triton", distance="sq_l2"), truth(inputs, distance="sq_l2"))
    assert max(found.values()) < 1e-5
    assert torch.equal(nearest_code(*inputs[:2]).cpu(), nearest_code(*(t.cpu() for t in inputs[:2])))


def test_a_float_temperature_does_not_wait_for_the_device() -> None:
    x, centers = torch.randn(100, 8, device="cuda"), torch.randn(50, 8, device="cuda")
    step(x.requires_grad_(), centers.requires_grad_(), 0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, centers, 0.5)
        nearest_code(x, centers)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_quantizer_takes_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ops.logger, "info", said.append)
    ops._say.cache_clear()
    torch.manual_seed(0)
    config = LGQConfig(
        base_channels=16, channel_multiplier=[1, 2], num_res_blocks=1, latent_channels=16, codebook_size=512
    )
    model = LGQModel(config).cuda().train()
    pixels = torch.rand(4, 3, 64, 64, device="cuda") * 2 - 1
    with torch.autocast("cuda", torch.bfloat16):
        output = model(pixels)
    (output.embedding_loss + (output.decoded_pixel_values - pixels).square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert said == ["Assignment op: 'auto' chose 'triton'"]
