"""The lookups of converted checkpoints beside their definitions, materialised in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lgq_hf import LGQConfig, LGQModel
from lgq_hf.tokenizer.quantizer_base import Quantizer

SMALL = {"backbone": "vqgan", "base_channels": 8, "channel_multiplier": [1], "norm_num_groups": 4, "num_res_blocks": 1}
LATENTS = torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(0))


def build(**fields: Any) -> Quantizer:
    torch.manual_seed(1)
    quantizer = LGQModel(LGQConfig(**SMALL, latent_channels=6, **fields)).quantizer.eval()
    if hasattr(quantizer, "codebook"):
        with torch.no_grad():  # of lengths over two orders of magnitude, as trained tables have
            quantizer.codebook.copy_(torch.randn(50, 6) * torch.logspace(-1, 1, 50)[:, None])
    return quantizer


def rows(latents: Tensor) -> Tensor:
    return latents.double().permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize(
    ("fields", "similarity", "row"),
    [
        ({"quantizer": "vq"}, lambda z, e: -torch.cdist(z, e), lambda e: e),
        ({"quantizer": "simvq"}, lambda z, e: -torch.cdist(z, e), lambda e: e),
        (
            {"quantizer": "vq", "distance": "cosine"},
            lambda z, e: F.normalize(z, dim=1) @ F.normalize(e, dim=1).T,
            lambda e: F.normalize(e, dim=1),
        ),
        ({"quantizer": "ibq", "distance": "dot"}, lambda z, e: z @ e.T, lambda e: e),
    ],
)
def test_tokens_and_codes_by_definition(fields: dict[str, Any], similarity: Any, row: Any) -> None:
    quantizer = build(**fields, codebook_size=50)
    table = quantizer.codebook.detach().double()
    wanted = similarity(rows(LATENTS), table).argmax(1)
    found = quantizer(LATENTS)
    assert torch.equal(found.image_tokens.flatten(), wanted)
    assert wanted.unique().numel() > 5
    torch.testing.assert_close(rows(found.codes), row(table)[wanted], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("codes", "groups"), [(64, 1), (8, 2), (4, 3), (2, 6)])
def test_signs_are_bits_with_the_first_channel_lowest(codes: int, groups: int) -> None:
    quantizer = build(quantizer="lfq", codebook_size=codes)
    assert quantizer.tokens_per_position == groups
    found = quantizer(LATENTS)
    bits = (rows(LATENTS) > 0).long().reshape(-1, groups, 6 // groups)
    wanted = sum(bits[..., i] * 2**i for i in range(6 // groups))
    tokens = found.image_tokens.reshape(-1, groups)
    assert torch.equal(tokens, wanted)
    assert torch.equal(rows(found.codes), torch.where(rows(LATENTS) > 0, 1.0, -1.0).double())


def test_exactly_zero_is_a_zero_bit() -> None:
    quantizer = build(quantizer="lfq", codebook_size=64)
    found = quantizer(torch.tensor([0.0, -0.0, 1e-30, -1e-30, 5, -5]).reshape(1, 6, 1, 1))
    assert found.image_tokens.item() == 0b010100
    assert found.codes.flatten().tolist() == [-1, -1, 1, -1, 1, -1]


def test_tokens_of_forty_bits_are_whole_numbers() -> None:
    torch.manual_seed(0)
    config = LGQConfig(**SMALL, latent_channels=40, quantizer="lfq", codebook_size=2**40)
    quantizer = LGQModel(config).quantizer.eval()
    latents = torch.randn(1, 40, 3, 3)
    found = quantizer(latents)
    assert found.image_tokens.max() > 2**33
    assert torch.equal(quantizer.codes_from_tokens(found.image_tokens), latents.sign())


def test_init_from_places_the_table_on_latents() -> None:
    quantizer = build(quantizer="vq", codebook_size=50)
    quantizer.init_from(LATENTS, "random", torch.Generator().manual_seed(0))
    nearest = torch.cdist(quantizer.codebook.detach().double(), rows(LATENTS)).min(1).values
    assert nearest.max() < 1e-6
