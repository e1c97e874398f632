"""Precision and recall against the definition, written out pair by pair, and where the answer is known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lgq_hf.metrics.precision_recall import precision_recall


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lattice(rows: int, seed: int) -> Tensor:
    """Points with whole coordinates: many equal points and many equal distances, all exact."""
    return torch.randint(0, 3, (rows, 3), generator=torch.Generator().manual_seed(seed)).double()


def defined(real: Tensor, generated: Tensor, k: int) -> tuple[float, float]:
    """Equations 1 and 2 for one pair of vectors at a time."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    def share(points: np.ndarray, balls: np.ndarray) -> float:
        radii = [sorted(distance(a, b) for j, b in enumerate(balls) if j != i)[k - 1] for i, a in enumerate(balls)]
        inside = [any(distance(p, ball) <= radius for ball, radius in zip(balls, radii, strict=True)) for p in points]
        return sum(inside) / len(points)

    return share(generated.numpy(), real.numpy()), share(real.numpy(), generated.numpy())


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("block", [1, 7, 512])
@pytest.mark.parametrize("kind", ["normal", "shifted", "lattice"])
def test_agrees_with_the_definition_in_blocks_of_any_size(k: int, block: int, kind: str) -> None:
    if kind == "lattice":
        real, generated = lattice(30, 1), lattice(20, 2)
    else:
        real, generated = random(30, 4, seed=1), 0.5 * random(20, 4, seed=2)
    if kind == "shifted":  # a common offset costs no digits, which a product of features would
        real, generated = real + 1e6, generated + 1e6
    expected = defined(real, generated, k)
    assert tuple(precision_recall(real, generated, k=k, block=block)) == expected
    assert tuple(precision_recall(generated, real, k=k, block=block)) == expected[::-1]
    assert kind == "lattice" or 0 < expected[1] < 1


def test_a_set_is_all_of_itself() -> None:
    features = random(40, 8)
    assert precision_recall(features, features) == (1, 1)
    assert precision_recall(features, features[torch.randperm(40)]) == (1, 1)


def test_sets_far_apart_have_nothing_in_common() -> None:
    assert precision_recall(random(40, 8), random(40, 8, seed=1) + 100) == (0, 0)


def test_some_of_the_modes_are_precise_and_recall_their_share() -> None:
    modes = 1000 * torch.eye(4, 6, dtype=torch.float64)
    real = torch.cat([mode + random(25, 6, seed=i) for i, mode in enumerate(modes)])
    found = precision_recall(real, real[:25])
    assert found.precision == 1 and found.recall == 0.25


def test_a_point_on_the_surface_is_inside() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0]])  # with k = 1 the balls reach from -1 to 3
    generated = torch.tensor([[3.0], [-1.0], [3.0 + 1e-6], [-50.0]])
    assert precision_recall(real, generated, k=1).precision == 0.5


def test_equal_points_are_neighbours_at_no_distance() -> None:
    real = torch.tensor([[0.0], [0.0], [0.0], [9.0], [9.5]])
    near = torch.tensor([[0.0], [-1e-9], [9.2], [20.0]])
    assert precision_recall(real, near, k=2).precision == 0.5  # only 0 is in a ball of radius 0, and 9.2 in [0, 18]
    assert precision_recall(torch.ones(5, 2), torch.ones(4, 2), k=3) == (1, 1)


def test_half_precision_is_computed_in_float64_and_keeps_no_graph() -> None:
    real, generated = random(20, 4).bfloat16(), random(20, 4, seed=1).bfloat16().requires_grad_()
    assert precision_recall(real, generated) == precision_recall(real.double(), generated.detach().double())


GOOD = random(9, 3)
NAN = GOOD.clone()
NAN[4, 1] = torch.nan


@pytest.mark.parametrize(
    ("real", "generated", "options", "message"),
    [
        (GOOD, GOOD[:3], {}, "generated: expected at least 4 vectors for k = 3, got 3"),
        (GOOD[:5], GOOD, {"k": 5}, "real: expected at least 6 vectors for k = 5, got 5"),
        (GOOD, GOOD[:, :2], {}, "expected two sets of equally many features, got real 3 and generated 2: use one"),
        (NAN, GOOD, {}, "real: expected finite features, got NaN or infinities: look at the pictures"),
        (GOOD, GOOD / 0, {}, "generated: expected finite features, got NaN or infinities"),
        (GOOD[0], GOOD, {}, r"real: expected floats \(vectors, features\), got shape \(3,\)"),
        (GOOD, GOOD[:, :0], {}, r"generated: expected floats \(vectors, features\), got shape \(9, 0\)"),
        (GOOD.int(), GOOD, {}, r"real: expected floats .* got shape \(9, 3\), torch.int32"),
        (GOOD, GOOD, {"k": 0}, "k: expected at least 1, got 0"),
        (GOOD, GOOD, {"block": 0}, "block: expected at least 1, got 0"),
    ],
)
def test_refuses(real: Tensor, generated: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(real, generated, **options)
