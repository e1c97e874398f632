"""What only a GPU can show of an evaluation: that it finds what a CPU finds, in half precision too."""

from pathlib import Path

import pytest
import torch

from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.evaluation import evaluate_tokenizer
from lgq_hf.images.sources import ImageSource
from lgq_hf.metrics.perceptual import EfficientNetDistance
from tests.lgq_hf.evaluation.plain import settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test-gpu` on a GPU"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_finds_what_a_cpu_finds(
    dtype: torch.dtype, tiny: Checkpoint, model_folder: Path, source: ImageSource
) -> None:
    results = []
    for checkpoint in (tiny, load_checkpoint(str(model_folder), "cuda", dtype=dtype)):
        distance = EfficientNetDistance().to(checkpoint.device)
        results.append(
            evaluate_tokenizer(checkpoint, source, settings(), distance.network, distance, distance.network)
        )
    expected, found = (result["metrics"] for result in results)
    for name in ("psnr", "ssim", "perceptual", "frechet_distance", "mean_distance", "mean_latent_variance"):
        assert found[name] == pytest.approx(expected[name], rel=1e-2 if dtype == torch.float32 else 0.1), name
    protocol = results[1]["protocol"]
    assert (protocol["device"], protocol["tf32"].keys()) == ("cuda", {"convolutions", "products"})
    assert results[1]["cost"]["peak_memory_of"] == "tensors on the GPU"
