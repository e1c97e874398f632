"""Latents' axes at the scale of what they change in the picture."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lgq_hf import LGQConfig, LGQModel
from training.initialization import align_latents, check_alignable, energies, latents_and_gradients

FIELDS: dict[str, Any] = {
    "image_size": 16,
    "base_channels": 8,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "latent_channels": 16,
    "code_dim": 4,
    "codebook_size": 32,
}


@pytest.fixture
def model() -> LGQModel:
    torch.manual_seed(0)
    model = LGQModel(LGQConfig(**FIELDS)).double()
    with torch.no_grad():  # channels of unlike worth, mixed, and not centred
        model.pre_quant.weight.copy_(torch.randn_like(model.pre_quant.weight))
        model.pre_quant.bias.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
        model.post_quant.weight.mul_(torch.tensor([3.0, 1.0, 0.3, 0.1])[:, None, None])
    return model


def pictures(count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    return nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic").clamp(-1, 1)


def measured(model: LGQModel, count: int = 32) -> tuple[Tensor, Tensor]:
    return latents_and_gradients(model, pictures(count), torch.Generator().manual_seed(2))


def test_the_picture_stays_and_distances_become_errors(model: LGQModel) -> None:
    before = copy.deepcopy(model)
    latents, gradients = measured(model)
    shares = align_latents(model, latents, gradients)
    others = pictures(3, seed=5)
    pairs = [one.decode_codes(one.latents(others)).decoded_pixel_values for one in (before, model)]
    torch.testing.assert_close(*pairs, rtol=1e-9, atol=1e-12)
    latents_after, gradients_after = measured(model)
    cov = torch.cov(latents_after.T)
    torch.testing.assert_close(latents_after.mean(0), torch.zeros_like(latents_after[0]), rtol=0, atol=1e-10)
    torch.testing.assert_close(cov, torch.diag(cov.diagonal()), rtol=0, atol=1e-9)
    torch.testing.assert_close(cov.trace(), torch.cov(latents.T).trace())
    moment = gradients_after.T @ gradients_after / len(gradients_after)
    torch.testing.assert_close(moment, moment[0, 0] * torch.eye(4, dtype=moment.dtype), rtol=1e-8, atol=1e-10)
    variances = cov.diagonal().sort(descending=True).values
    torch.testing.assert_close(variances / variances.sum(), torch.tensor(shares, dtype=cov.dtype))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 2 * shares[-1]


def test_energies_are_the_squared_change_of_the_picture(model: LGQModel) -> None:
    """By finite differences: every latent moved along one axis by its spread, one position at a time."""
    pixels = pictures(8)
    pairs = [latents_and_gradients(model, pixels, torch.Generator().manual_seed(seed)) for seed in range(200)]
    latents, gradients = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    found, to_axes, mean = energies(latents, gradients)
    axes = torch.linalg.inv(to_axes)  # columns: a change of 1 along each whitened axis
    with torch.no_grad():
        z = model.latents(pixels)
        torch.testing.assert_close(mean, z.permute(0, 2, 3, 1).flatten(0, 2).mean(0))
        picture = model.decode_codes(z).decoded_pixel_values
        expected = []
        for axis in axes.T:
            change = 0.0
            for row in range(z.shape[2]):
                for column in range(z.shape[3]):
                    moved = z.clone()
                    moved[:, :, row, column] += 1e-4 * axis
                    change += float((model.decode_codes(moved).decoded_pixel_values - picture).square().sum())
            expected.append(change / 1e-8 / (len(pixels) * z.shape[2] * z.shape[3]))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0.1, atol=0)


def test_a_channel_that_nothing_comes_through_is_spread(model: LGQModel) -> None:
    with torch.no_grad():
        model.pre_quant.weight[3] *= 1e-3
        model.post_quant.weight[:, 3] *= 1e-3
    before = copy.deepcopy(model)
    shares = align_latents(model, *measured(model), least_energy=0.1)
    assert shares[-1] < 1e-9
    pairs = [one.decode_codes(one.latents(pictures(3))).decoded_pixel_values for one in (before, model)]
    torch.testing.assert_close(*pairs, rtol=1e-9, atol=1e-12)
    variances = torch.cov(measured(model)[0].T).diagonal()
    spread = [max(share, 0.1) for share in shares]
    wanted = torch.tensor(spread, dtype=variances.dtype).flip(0) / sum(spread)
    torch.testing.assert_close(variances / variances.sum(), wanted)


def test_one_channel(model: LGQModel) -> None:
    torch.manual_seed(0)
    model = LGQModel(LGQConfig(**{**FIELDS, "code_dim": 1})).double()
    before = copy.deepcopy(model)
    assert align_latents(model, *measured(model)) == [1.0]
    pairs = [one.decode_codes(one.latents(pictures(3))).decoded_pixel_values for one in (before, model)]
    torch.testing.assert_close(*pairs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {"code_dim": None, "latent_channels": 4},
        {"distance": "cosine"},
        {"learn_widths": True},
        {"quantizer": "fsq", "levels": [4, 4], "code_dim": 2, "codebook_size": 16},
        {"codebook_mode": "per_channel"},
    ],
)
def test_what_cannot_be_aligned(fields: dict[str, Any]) -> None:
    if "quantizer" in fields:
        fields = {"lambda_usage": 0.005, "lambda_peak": 0.005, "lambda_floor": 0.0, "min_perplexity": 0.0} | fields
    named = ", ".join(f"{name}={value}" for name, value in fields.items() if name in ("distance", "learn_widths"))
    with pytest.raises(ValueError, match=f"^a.field is for one codebook of vectors .*got quantizer=.*{named}"):
        check_alignable(LGQConfig(**{**FIELDS, **fields}), "a.field")
    check_alignable(LGQConfig(**FIELDS), "a.field")
    check_alignable(LGQConfig(**{**FIELDS, "distance": "l2"}), "a.field")


def test_in_single_precision_an_axis_that_nothing_comes_through_stays_small(model: LGQModel) -> None:
    model.float()
    with torch.no_grad():
        model.post_quant.weight[:, 3] = 0
    before = copy.deepcopy(model)
    pixels = pictures(32).float()
    latents, gradients = latents_and_gradients(model, pixels, torch.Generator().manual_seed(2))
    align_latents(model, latents, gradients)
    pairs = [one.decode_codes(one.latents(pixels[:3])).decoded_pixel_values for one in (before, model)]
    torch.testing.assert_close(*pairs, rtol=1e-3, atol=1e-4)
    variances = torch.cov(latents_and_gradients(model, pixels)[0].T).diagonal()
    assert float(variances.min() / variances.sum()) == pytest.approx(1e-6, rel=0.01)
    assert all(parameter.abs().max() < 1e4 for parameter in model.parameters())


@pytest.mark.parametrize("part", ["pre_quant", "post_quant"])
def test_latents_without_axes_are_refused(model: LGQModel, part: str) -> None:
    with torch.no_grad():
        getattr(model, part).weight.zero_()
    with pytest.raises(ValueError, match="latents have no axes: they are all the same, or the decoder makes nothing"):
        align_latents(model, *measured(model))
