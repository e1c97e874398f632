"""Training with one backend or another is the same training; scalar bins never hold all channels' probabilities."""

from pathlib import Path

import pytest
import torch
from skimage import data

import lgq_hf
from lgq_hf import LGQConfig, LGQModel
from lgq_hf.tokenizer import assignment
from tests.largest_tensor import LargestTensor

DEFAULT = Path(lgq_hf.__file__).parent / "pretrained" / "lgq-tiny"


def loss_curve(backend: str, steps: int) -> torch.Tensor:
    """Losses of the demo model, trained on crops of photographs as its recipe does."""
    model = LGQModel.from_pretrained(DEFAULT).train()
    model.quantizer.backend = backend
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    photographs = [torch.from_numpy(picture).permute(2, 0, 1) for picture in (data.astronaut(), data.coffee())]
    losses = []
    for step in range(steps):
        model.quantizer.set_temperature(1.0 - 0.9 * step / steps)
        crops = []
        for photograph in photographs:
            top, left = (int(torch.randint(size - 32, (), generator=generator)) for size in photograph.shape[1:])
            crops.append(photograph[:, top : top + 32, left : left + 32])
        pixels = torch.stack(crops).float() / 127.5 - 1
        output = model(pixels)
        loss = (output.decoded_pixel_values - pixels).abs().mean() + output.embedding_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.slow
def test_chunked_trains_the_demo_model_as_the_reference_does() -> None:
    chunked, reference = (loss_curve(backend, 50) for backend in ("chunked", "reference"))
    assert reference.std() > 1e-3  # something happens in 50 steps
    torch.testing.assert_close(chunked[:10], reference[:10], rtol=1e-6, atol=0)
    torch.testing.assert_close(chunked[:40], reference[:40], rtol=1e-5, atol=0)
    torch.testing.assert_close(chunked, reference, rtol=3e-5, atol=0)  # sums in another order, carried on


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_scalar_bins_never_hold_rows_by_channels_by_bins(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor rows by bins of one channel, unless the backend is the one that materialises them."""
    rows, channels, bins = 1024, 4, 4096
    config = LGQConfig(
        base_channels=8,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        latent_channels=channels,
        codebook_mode="per_channel",
        codebook_size=bins,
    )
    quantizer = LGQModel(config).quantizer.train()
    latents = torch.randn(1, channels, 32, rows // 32, requires_grad=True)
    quantizer.init_from(latents.detach())
    # the function behind the operator: what runs inside of an operator cannot be watched
    monkeypatch.setattr(assignment, "_operators", None)
    quantizer.backend = backend
    with LargestTensor() as watch:
        quantizer(latents).loss.backward()
    assert (watch.elements < rows * bins) == (backend == "chunked")
    assert watch.elements < rows * channels * bins


@pytest.mark.parametrize("mode", ["vector", "per_channel"])
def test_the_quantizers_backend_reaches_the_op(mode: str) -> None:
    """On a CPU without the interpreter, or with rows in float64, Triton refuses: the refusal shows who was asked."""
    config = LGQConfig(
        base_channels=8, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=4, codebook_mode=mode
    )
    quantizer = LGQModel(config).quantizer
    latents = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    quantizer.init_from(latents.float())
    plain = quantizer.eval()(latents).image_tokens
    quantizer.backend = "reference"
    assert torch.equal(quantizer(latents).image_tokens, plain)
    quantizer.backend = "triton"
    for training in (False, True):
        with pytest.raises(ValueError, match="backend='triton' cannot run"):
            quantizer.train(training)(latents)
