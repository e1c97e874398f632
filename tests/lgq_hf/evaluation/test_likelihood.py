"""Held-out bits, against distributions whose cross entropy is known."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lgq_hf.evaluation.likelihood import code_logits, held_out, summary
from lgq_hf.tokens import AutoregressiveCollator, MaskedCollator

CODES, SIDE, CLASSES = 8, 4, 2


class Fixed(nn.Module):
    """Gives every token the same distribution, whatever came before, over more than the codes."""

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        rest = torch.full((CLASSES + 1,), 50.0)  # of what is no code: cut off, or it would swallow everything
        self.logits = nn.Parameter(torch.cat([probabilities.log(), rest]))

    def forward(self, input_ids: Tensor, **more: Any) -> Any:
        self.given = {"input_ids": input_ids, **more}
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


class Counting(nn.Module):
    """Is the surer of code 0 the fewer tokens are masked: p = 1 - m / (T + 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, class_labels: Tensor) -> Any:
        sure = 1 - (input_ids == CODES).double().sum(1) / (SIDE**2 + 1)
        rest = ((1 - sure) / (CODES - 1))[:, None].expand(-1, CODES - 1)
        probabilities = torch.cat([sure[:, None], rest], 1)
        return SimpleNamespace(logits=probabilities.log()[:, None].expand(-1, input_ids.shape[1], -1))


def rows(count: int, tokens: Tensor | None = None) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    grids = torch.randint(CODES, (count, SIDE, SIDE), generator=generator) if tokens is None else tokens
    return [{"image_tokens": grid, "id": str(number), "label": number % 2} for number, grid in enumerate(grids)]


def batches(kind: str, some: list[dict[str, Any]], size: int = 3) -> list[dict[str, Tensor]]:
    collator: Any = (
        MaskedCollator(CODES, CLASSES, schedule="linear")
        if kind == "masked"
        else AutoregressiveCollator(CODES, CLASSES, shift=True)
    )
    return [collator(some[first : first + size]) for first in range(0, len(some), size)]


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_a_uniform_model_needs_log2_of_the_codes(kind: str) -> None:
    model = Fixed(torch.full((CODES,), 1 / CODES)).eval()
    found = summary(held_out(model, batches(kind, rows(10)), CODES), tokens=SIDE**2, pixels=64)
    assert found["bits_per_token"] == pytest.approx(3.0, abs=1e-6) and found["perplexity"] == pytest.approx(8.0)
    assert found["bits_per_pixel"] == pytest.approx(3 * 16 / 64) and found["rows"] == 10
    assert found["loss"] == pytest.approx(math.log(8))


def test_a_known_distribution_costs_its_cross_entropy() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.0078125])
    some = rows(9)
    every = torch.cat([row["image_tokens"].flatten() for row in some])
    wanted = float(-p.log2()[every].mean())
    found = summary(held_out(Fixed(p).eval(), batches("autoregressive", some), CODES), tokens=16, pixels=64)
    assert found["bits_per_token"] == pytest.approx(wanted, rel=1e-6)


def test_the_bound_weighs_every_number_of_masked_tokens_alike() -> None:
    """Code 0 everywhere: the bound is the mean of -log2(1 - m / (T + 1)) over m = 1 to T."""
    count, length = 4000, SIDE**2
    some = rows(count, torch.zeros(count, SIDE, SIDE, dtype=torch.int64))
    wanted = sum(-math.log2(1 - m / (length + 1)) for m in range(1, length + 1)) / length
    found = summary(held_out(Counting().eval(), batches("masked", some, 500), CODES), tokens=length, pixels=64)
    spread = (sum(math.log2(1 - m / (length + 1)) ** 2 for m in range(1, length + 1)) / length - wanted**2) ** 0.5
    assert found["bits_per_token"] == pytest.approx(wanted, abs=4 * spread / count**0.5)
    assert 4 * spread / count**0.5 < 0.1 * wanted


def test_sums_add_up_over_batches_and_processes() -> None:
    p = torch.softmax(torch.arange(CODES).double(), 0)
    some = rows(11)
    whole = held_out(Fixed(p).eval(), batches("masked", some, 11), CODES)
    parts = [held_out(Fixed(p).eval(), batches("masked", some[rank::2], 2), CODES) for rank in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    assert held_out(Fixed(p).eval(), [], CODES).tolist() == [0.0, 0.0]


def test_what_the_model_is_given() -> None:
    model = Fixed(torch.full((CODES,), 1 / CODES))
    for kind, names in (("masked", {"input_ids", "class_labels"}), ("autoregressive", {"input_ids", "use_cache"})):
        (batch,) = batches(kind, rows(2))
        assert code_logits(model, batch, CODES).shape == (2, SIDE**2, CODES)
        assert set(model.given) == names


def test_a_loss_beyond_all_numbers_has_no_finite_perplexity() -> None:
    found = summary(torch.tensor([8000.0, 10.0]), tokens=4, pixels=16)
    assert found["perplexity"] == math.inf and found["loss"] == 800


def test_half_precision_is_rounded_by_the_network_alone() -> None:
    class Rounded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.logits = (3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))).bfloat16()

        def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.logits)

    model, labels = Rounded().eval(), torch.arange(10).view(2, 5) % 8
    sums = held_out(model, [{"input_ids": labels, "labels": labels}], 8)
    exact = -model.logits.double().log_softmax(-1).gather(-1, labels[..., None]).mean()
    assert float(sums[0] / sums[1]) == pytest.approx(float(exact), rel=1e-6)


def test_what_cannot_be_measured() -> None:
    model = Fixed(torch.full((CODES,), 1 / CODES))
    with pytest.raises(ValueError, match=r"the model is in training mode: call model\.eval\(\) first"):
        held_out(model, [], CODES)
    with pytest.raises(ValueError, match="no rows were measured: give at least one"):
        summary(torch.zeros(2), tokens=16, pixels=64)
