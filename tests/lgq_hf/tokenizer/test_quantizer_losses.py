"""Losses and gradients of the baselines beside their equations, materialised in float64 with plain autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lgq_hf import LGQConfig, LGQModel
from lgq_hf.tokenizer.quantizer_base import Quantizer

SMALL = {"backbone": "vqgan", "base_channels": 8, "channel_multiplier": [1], "norm_num_groups": 4, "num_res_blocks": 1}
LATENTS = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DECODER = torch.randn(60, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # its gradient at codes


def build(**fields: Any) -> Quantizer:
    torch.manual_seed(2)
    quantizer = LGQModel(LGQConfig(**SMALL, **{"latent_channels": 6, **fields})).quantizer.double().train()
    if hasattr(quantizer, "codebook") and fields["quantizer"] != "simvq":
        quantizer.init_from(LATENTS, "gaussian", torch.Generator().manual_seed(3))
    return quantizer


def rows() -> Tensor:
    return LATENTS.permute(0, 2, 3, 1).flatten(0, 2).clone().requires_grad_()


def stop(tensor: Tensor) -> Tensor:
    return tensor.detach()


def nearest(z: Tensor, table: Tensor) -> Tensor:
    return table[torch.cdist(z, table).argmin(1)]


def vq(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    e = nearest(z, q.codebook)
    loss = (stop(z) - e).square().mean() + 0.25 * (z - stop(e)).square().mean()
    return z + stop(e - z), loss


def vq_ema(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    e = nearest(z, stop(q.codebook))
    return z + stop(e - z), 0.25 * (z - e).square().mean()


def vq_cosine(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    z, table = F.normalize(z, dim=1), F.normalize(q.codebook, dim=1)
    e = table[(z @ table.T).argmax(1)]
    return z + stop(e - z), (stop(z) - e).square().mean() + (z - stop(e)).square().mean()


def vq_rotation(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation as a matrix: R = I - 2 w w^T + 2 q u^T, stretched by |e| / |z|."""
    e = nearest(z, q.codebook)
    turned = []
    for row, code in zip(z, e, strict=True):
        u, v = stop(row / row.norm()), stop(code / code.norm())
        w = (u + v) / (u + v).norm()
        matrix = torch.eye(6, dtype=torch.float64) - 2 * torch.outer(w, w) + 2 * torch.outer(v, u)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(6, dtype=torch.float64))  # a rotation
        turned.append(stop(code.norm() / row.norm()) * matrix @ row)
    return torch.stack(turned), (stop(z) - e).square().mean() + (z - stop(e)).square().mean()


def vq_cosine_rotation(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """On the unit sphere, where nothing is stretched: latents are brought to length 1 before they are rotated."""
    u, table = F.normalize(z, dim=1), F.normalize(q.codebook, dim=1)
    e = table[(u @ table.T).argmax(1)]
    w = stop(F.normalize(u + e, dim=1))
    turned = u - 2 * (u * w).sum(1, keepdim=True) * w + 2 * (u * stop(u)).sum(1, keepdim=True) * stop(e)
    return turned, (stop(u) - e).square().mean() + (u - stop(e)).square().mean()


def simvq(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    table = stop(q.codebook) @ q.projection.T + q.projection_bias
    e = nearest(z, table)
    return z + stop(e - z), (stop(z) - e).square().mean() + 0.25 * (z - stop(e)).square().mean()


def marginal_entropy(p: Tensor) -> Tensor:
    mean = p.mean(0)
    return -(p * p.log()).sum(1).mean() + (mean * mean.log()).sum()


def ibq(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    e = q.codebook
    logits = z @ e.T
    s = logits.softmax(1)
    a = F.one_hot(logits.argmax(1), len(e)).double()
    passed = (a - stop(s) + s) @ e
    hard = a @ e
    loss = (passed - z).square().mean() + (stop(hard) - z).square().mean() + 0.25 * (hard - stop(z)).square().mean()
    return passed, loss + 0.05 * marginal_entropy((logits / 0.5).softmax(1))


def signs(bits: int) -> Tensor:
    return torch.tensor([[2 * (n >> i & 1) - 1 for i in range(bits)] for n in range(2**bits)], dtype=torch.float64)


def lfq(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    code = torch.where(z > 0, 1.0, -1.0).double()
    p = (2 * z @ signs(6).T / 0.5).softmax(1)
    return z + stop(code - z), 0.25 * (z - code).square().mean() + 0.1 * marginal_entropy(p)


def lfq_groups(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    code = torch.where(z > 0, 1.0, -1.0).double()
    terms = [marginal_entropy((2 * part @ signs(2).T / 0.5).softmax(1)) for part in z.split(2, dim=1)]
    return z + stop(code - z), 0.25 * (z - code).square().mean() + 0.1 * sum(terms)


def bsq(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    u = F.normalize(z, dim=1)
    code = torch.where(u > 0, 1.0, -1.0).double()
    passed = (u + stop(code - u)) / 6**0.5
    terms = [marginal_entropy((2 * part @ (signs(3) / 6**0.5).T).softmax(1)) for part in u.split(3, dim=1)]
    return passed, 0.5 * (u - code / 6**0.5).square().mean() + 0.1 * sum(terms)


def fsq(slope: float) -> Callable[[Quantizer, Tensor], tuple[Tensor, Tensor]]:
    def reference(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
        channels = []
        for channel, level in enumerate([4, 3, 5, 8, 2, 7]):
            half = (level - 1) * 1.001 / 2
            offset = 0.5 if level % 2 == 0 else 0.0
            shift = torch.tensor(offset / half, dtype=torch.float64).atanh()
            bounded = (slope * z[:, channel] + shift).tanh() * half - offset
            channels.append((bounded + stop(bounded.round() - bounded)) / (level // 2))
        return torch.stack(channels, 1), 0 * z.sum()

    return reference


def ifsq(q: Quantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """By the sigmoid, where there is no shift: an odd number of levels."""
    bounded = (2 * (1.6 * z).sigmoid() - 1) * 2 * 1.001
    return (bounded + stop(bounded.round() - bounded)) / 2, 0 * z.sum()


LEVELS = {"quantizer": "fsq", "levels": [4, 3, 5, 8, 2, 7], "codebook_size": 4 * 3 * 5 * 8 * 2 * 7, "code_dim": 6}
CASES: dict[str, tuple[dict[str, Any], Callable[[Quantizer, Tensor], tuple[Tensor, Tensor]]]] = {
    "vq": ({"quantizer": "vq", "codebook_size": 30, "commitment_weight": 0.25}, vq),
    "vq_ema": (
        {"quantizer": "vq", "codebook_size": 30, "commitment_weight": 0.25, "codebook_update": "ema"},
        vq_ema,
    ),
    "vq_cosine": ({"quantizer": "vq", "codebook_size": 30, "distance": "cosine"}, vq_cosine),
    "vq_cosine_rotation": (
        {"quantizer": "vq", "codebook_size": 30, "distance": "cosine", "rotation_trick": True},
        vq_cosine_rotation,
    ),
    "vq_rotation": ({"quantizer": "vq", "codebook_size": 30, "rotation_trick": True}, vq_rotation),
    "simvq": (
        {"quantizer": "simvq", "codebook_size": 30, "learn_projection": True, "commitment_weight": 0.25},
        simvq,
    ),
    "ibq": (
        {
            "quantizer": "ibq",
            "codebook_size": 30,
            "distance": "dot",
            "entropy_weight": 0.05,
            "entropy_temperature": 0.5,
        },
        ibq,
    ),
    "lfq": (
        {
            "quantizer": "lfq",
            "codebook_size": 64,
            "commitment_weight": 0.25,
            "entropy_weight": 0.1,
            "entropy_temperature": 0.5,
        },
        lfq,
    ),
    "lfq_groups": (
        {
            "quantizer": "lfq",
            "codebook_size": 64,
            "commitment_weight": 0.25,
            "entropy_weight": 0.1,
            "entropy_temperature": 0.5,
            "entropy_bits": 2,
        },
        lfq_groups,
    ),
    "bsq": (
        {
            "quantizer": "bsq",
            "codebook_size": 64,
            "commitment_weight": 0.5,
            "entropy_weight": 0.1,
            "entropy_temperature": 1.0,
            "entropy_bits": 3,
        },
        bsq,
    ),
    "bsq_two_tokens": (
        {
            "quantizer": "bsq",
            "codebook_size": 8,
            "commitment_weight": 0.5,
            "entropy_weight": 0.1,
            "entropy_temperature": 1.0,
        },
        bsq,  # groups of 3 bits: those of a token
    ),
    "fsq": (LEVELS, fsq(1.0)),
    "fsq_by_sigmoid": ({**LEVELS, "fsq_bound": "sigmoid"}, fsq(0.8)),
    "ifsq": (
        {"quantizer": "fsq", "levels": [5] * 6, "codebook_size": 5**6, "code_dim": 6, "fsq_bound": "sigmoid"},
        ifsq,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_codes_loss_and_gradients_by_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgq_hf.tokenizer.quantizer_ibq._BLOCK", 30 * 7)  # several blocks, the last one not full
    fields, reference = CASES[name]
    quantizer = build(**fields)
    parameters = [p for p in quantizer.parameters() if p.requires_grad]
    results = []
    for function in (quantizer.train_rows, lambda z: reference(quantizer, z)):
        z = rows()
        found = function(z)
        codes, loss = (found.codes_NC, found.loss) if hasattr(found, "loss") else found
        total = (codes * DECODER).sum() + loss
        gradients = torch.autograd.grad(total, [z, *parameters], allow_unused=True, materialize_grads=True)
        results.append([codes.detach().double(), loss.detach(), *gradients])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)  # codes of FSQ and signs are in fp32
    assert all(gradient.abs().max() > 1e-4 for gradient in results[0][2:])


def test_fsq_tokens_are_mixed_radix_with_the_first_channel_fastest() -> None:
    quantizer = build(**LEVELS).eval()
    codes = quantizer.lookup_rows(torch.tensor([0, 1, 4, 12, 60, 6719]))
    levels = torch.tensor([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0],
                           [0, 0, 0, 1, 0, 0], [3, 2, 4, 7, 1, 6]])  # fmt: skip
    half = torch.tensor([2, 1, 2, 4, 1, 3])
    torch.testing.assert_close(codes, (levels - half) / half, rtol=0, atol=0)
    assert torch.equal(quantizer.assign_rows(torch.zeros(1, 6).double()), quantizer._to_tokens(torch.zeros(1, 6)))


def test_fsq_latents_of_any_size_are_tokens() -> None:
    quantizer = build(**LEVELS).eval()
    tokens = quantizer.assign_rows(torch.tensor([[-1e9] * 6, [1e9] * 6], dtype=torch.float32))
    assert tokens.tolist() == [0, quantizer.codebook_size - 1]


def test_bsq_codes_have_length_one() -> None:
    fields, _ = CASES["bsq"]
    codes = build(**fields).train_rows(rows()).codes_NC
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(60, dtype=codes.dtype), rtol=1e-6, atol=1e-6)


def test_a_simvq_product_says_that_it_does_not_train() -> None:
    with pytest.raises(ValueError, match="computed once and does not train: .*learn_projection=True"):
        build(quantizer="simvq", codebook_size=30).train_rows(rows())


def test_a_simvq_table_stays_where_it_was_drawn() -> None:
    quantizer = build(quantizer="simvq", codebook_size=3000, learn_projection=True)
    before = quantizer.codebook.clone()
    quantizer.init_from(LATENTS)
    assert torch.equal(quantizer.codebook, before)
    assert before.std() == pytest.approx(6**-0.5, rel=0.03)
    assert not quantizer.codebook.requires_grad
