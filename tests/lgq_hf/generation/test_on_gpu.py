"""What only a GPU can show of generators: offloading, its random numbers, half precision, a compiled step."""

from typing import Any

import pytest
import torch

from tests.lgq_hf.generation.pipelines import SIDE, small_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test-gpu` on a GPU"),
]


@pytest.fixture(params=["masked", "autoregressive"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return small_pipeline(request.param)


def draw(pipe: Any, device: str = "cpu", **options: Any) -> torch.Tensor:
    generators = [torch.Generator(device).manual_seed(seed) for seed in (1, 2)]
    made = pipe([0, 2], generator=generators, guidance_scale=2.0, output_type="token", **options).images
    assert made.shape == (2, SIDE, SIDE) and int(made.min()) >= 0 and int(made.max()) < pipe.codebook_size
    return made.cpu()


def test_numbers_of_a_cpu_generator_draw_the_same_tokens_on_a_gpu(pipe: Any) -> None:
    pipe.transformer.double()  # so that nothing hangs on rounding
    expected = draw(pipe)
    assert torch.equal(draw(pipe.to("cuda")), expected)
    assert torch.equal(draw(pipe, "cuda"), draw(pipe, "cuda"))


@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_weights(pipe: Any, how: str) -> None:
    pipe.transformer.double()
    expected = draw(pipe)
    getattr(pipe, how)()
    assert torch.equal(draw(pipe), expected)
    assert pipe(0).images[0].size == (32, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe: Any, dtype: torch.dtype) -> None:
    pipe.to("cuda", dtype)
    assert pipe.vqvae.quantizer.centers.dtype == torch.float32
    assert torch.equal(draw(pipe), draw(pipe))
    assert pipe(1, output_type="pt").images.isfinite().all()


@pytest.mark.slow
def test_a_compiled_step_draws_the_same() -> None:
    pipe = small_pipeline("autoregressive").to("cuda")
    pipe.transformer.double()
    expected = draw(pipe)
    pipe.transformer.compile()
    assert torch.equal(draw(pipe), expected)
