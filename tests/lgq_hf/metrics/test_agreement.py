"""Agreement of a classifier with itself on two pictures."""

import pytest
import torch
from torch import Tensor

from lgq_hf.metrics.agreement import top1_agreement


def test_only_the_class_that_comes_first_counts() -> None:
    a = torch.tensor([[0.1, 3, 2], [5, 1, 1], [-1, -3, -2], [0, 0, 7.5]])
    b = torch.tensor([[-9, 0.2, 0], [1, 2, 3], [4, -8, -8], [0, 0, 1e-3]])
    agreement = top1_agreement(a, b)
    assert agreement.dtype == torch.bool
    assert agreement.tolist() == [True, False, True, True]
    assert torch.equal(top1_agreement(b, a), agreement)
    assert torch.equal(top1_agreement(a.bfloat16(), b.double()), agreement)


def test_of_equal_scores_the_first_class_counts() -> None:
    a, b = torch.zeros(1, 500), torch.zeros(1, 500)
    b[0, 0] = 1
    assert top1_agreement(a, b).tolist() == [True]
    a[0, [70, 300]] = 1
    assert top1_agreement(a, a.roll(-70)).tolist() == [False]
    assert top1_agreement(a, torch.eye(500)[70:71]).tolist() == [True]


TWO = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), TWO, r"logits_a: expected floats \(B,M\) of at least 1 picture and 2 classes, got shape \(3"),
        (torch.zeros(0, 2), torch.zeros(0, 2), r"logits_a: expected .* at least 1 picture .*, got shape \(0, 2\)"),
        (TWO, torch.zeros(1, 1), r"logits_b: expected .* 2 classes, got shape \(1, 1\)"),
        (TWO, torch.zeros(1, 3), r"expected scores of the same pictures and classes, got shapes \(1, 2\) and \(1, 3"),
        (TWO * torch.nan, TWO * torch.nan, "logits_a: expected finite scores, got NaN or infinities: look at the"),
    ],
)
def test_refuses_other_scores(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top1_agreement(a, b)
