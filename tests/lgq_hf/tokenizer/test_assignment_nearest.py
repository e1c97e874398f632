"""The exact nearest code: equal to the float64 definition in every element, whatever the input, batch and blocks."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lgq_hf.tokenizer import assignment_nearest
from lgq_hf.tokenizer.assignment_nearest import chunked_nearest_code
from lgq_hf.tokenizer.assignment_reference import reference_nearest_code
from tests.largest_tensor import LargestTensor

pytestmark = pytest.mark.usefixtures("empty_is_nan")

DISTANCES = ["sq_l2", "l2", "cosine", "dot"]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, few pairs at a time, uneven tails."""
    monkeypatch.setitem(assignment_nearest._BLOCK_BYTES, "cpu", 2048)
    monkeypatch.setitem(assignment_nearest._ROWS, "cpu", 3)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def draw(kind: str, rows: int, codes: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents and codes of one of `KINDS`."""
    x, centers = normal(seed, rows, channels), normal(seed + 1, codes, channels)
    chosen = centers[torch.arange(rows) * 7 % codes]
    match kind:
        case "random":
            return x, centers
        case "clustered":  # latents close to their code
            return chosen + 1e-4 * x, centers
        case "on codes":
            return chosen, centers
        case "duplicates":
            return x, centers[torch.arange(codes) % max(1, codes // 3)]
        case "collapsed":  # codes a few ulp apart
            return x, centers[:1] * (1 + 1e-6 * uniform(seed, codes, channels))
        case "equal":
            return x, centers[:1].expand(codes, channels)
        case "midpoints":  # ties up to rounding
            return (chosen + centers[torch.arange(rows) * 3 % codes]) / 2, centers
        case "far":
            return x + 1e3, centers
        case "very far":
            return x + 1e6, centers
        case "farther than float64 tells apart":
            return x + 1e15, centers
        case "codes far off":
            return x + 1e4, centers + 1e4
        case "outlier":
            return x, torch.cat([centers[:-1], torch.full((1, channels), 1e6)])
        case "integers":  # ties in plenty
            return x.round(), centers.round()
        case "huge":
            return x * 1e25, centers * 1e25
        case "tiny":  # products are subnormal
            return x * 1e-22, centers * 1e-22
        case "subnormal":
            return x * 1e-40, centers * 1e-40
        case "zero":
            return x * 0, centers * 0
    raise AssertionError(kind)


KINDS = [
    "random", "clustered", "on codes", "duplicates", "collapsed", "equal", "midpoints", "far", "very far",
    "farther than float64 tells apart", "codes far off", "outlier", "integers", "huge", "tiny", "subnormal", "zero",
]  # fmt: skip


# the quick ones; the rest too in the whole suite
SOME_KINDS = ["random", "duplicates", "midpoints", "codes far off", "subnormal"]
EVERY_KIND = [pytest.param(kind, marks=[] if kind in SOME_KINDS else [pytest.mark.slow]) for kind in KINDS]


def spread_widths(codes: int) -> Tensor:
    """From 1e-3 to 1e3."""
    return 10 ** (6 * uniform(9, codes) - 3)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_equals_the_definition_in_every_element(kind: str, distance: str) -> None:
    for channels, rows, codes in ((1, 40, 70), (3, 50, 200), (8, 60, 300), (64, 40, 129), (512, 9, 65)):
        x, centers = draw(kind, rows, codes, channels)
        for widths in (None, 0.5 + uniform(8, codes), spread_widths(codes)):
            wanted = reference_nearest_code(x, centers, widths, distance)
            assert torch.equal(chunked_nearest_code(x, centers, widths, distance), wanted)
            wide = chunked_nearest_code(x.double(), centers.double(), widths, distance)
            assert torch.equal(wide, wanted)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_depends_on_nothing_but_the_row(kind: str, distance: str, request: pytest.FixtureRequest) -> None:
    """Any batch and any block size give the same token."""
    x, centers = draw(kind, 60, 150, 5)
    whole = chunked_nearest_code(x, centers, None, distance)
    single = torch.cat([chunked_nearest_code(row[None], centers, None, distance) for row in x])
    assert torch.equal(single, whole)
    request.getfixturevalue("small_blocks")
    assert torch.equal(chunked_nearest_code(x, centers, None, distance), whole)
    strided = centers.T.contiguous().T
    assert torch.equal(chunked_nearest_code(x.repeat_interleave(2, 0)[::2], strided, None, distance), whole)


def rational_winner(x: Tensor, centers: Tensor, widths: Tensor, distance: str) -> list[int]:
    """argmax in rational arithmetic; cosine by its square with sign, l2 by its square."""
    winners = []
    for row in x.tolist():
        scores = []
        for code, width in zip(centers.tolist(), widths.tolist(), strict=True):
            a, b, w = [Fraction(v) for v in row], [Fraction(v) for v in code], Fraction(width)
            inner = sum(u * v for u, v in zip(a, b, strict=True))
            apart = sum((u - v) ** 2 for u, v in zip(a, b, strict=True))
            score = {"sq_l2": -apart / w, "l2": -apart / w**2, "dot": inner / w}.get(distance)
            scores.append(inner * abs(inner) / sum(v * v for v in b) / w**2 if score is None else score)
        winners.append(scores.index(max(scores)))
    return winners


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates", "midpoints", "very far", "codes far off"])
def test_agrees_with_rational_arithmetic(kind: str, distance: str) -> None:
    x, centers = draw(kind, 30, 12, 3)
    for widths in (torch.ones(12), 0.5 + uniform(8, 12)):
        found = chunked_nearest_code(x, centers, widths, distance)
        assert found.tolist() == rational_winner(x, centers, widths, distance)


def mirrored() -> tuple[Tensor, Tensor]:
    """Codes in pairs around each latent, one channel of one of them an ulp further from it or nearer."""
    x, apart = normal(3, 200, 16), normal(4, 200, 16) * 0.01
    upper, lower = x + apart, x - apart
    lower[:, 0] = torch.nextafter(lower[:, 0], normal(5, 200) * torch.inf)
    return x, torch.stack([upper, lower], dim=1).flatten(0, 1)


def test_near_ties_that_fp32_products_decide_wrongly() -> None:
    x, centers = mirrored()
    wanted = reference_nearest_code(x, centers, None, "sq_l2")
    assert (wanted // 2 == torch.arange(200)).all()
    mean = centers.mean(0)
    a, b = x - mean, centers - mean
    plain = (2 * a @ b.T - b.square().sum(1)).argmax(dim=1)
    assert (plain != wanted).sum() > 20  # the case is hard
    assert torch.equal(chunked_nearest_code(x, centers, None, "sq_l2"), wanted)
    first = list(range(8))
    assert rational_winner(x[first], centers[:16], torch.ones(16), "sq_l2") == wanted[first].tolist()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_settings_that_round_factors_do_not_matter(precision: str) -> None:
    """TF32 on a GPU, bf16 on some CPUs: the bound on the filter's error would not hold."""
    x, centers = mirrored()
    wanted = reference_nearest_code(x, centers, None, "sq_l2")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(chunked_nearest_code(x, centers, None, "sq_l2"), wanted)
    finally:
        torch.set_float32_matmul_precision(before)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(0, 20),
    codes=st.integers(1, 200),
    channels=st.sampled_from([1, 2, 3, 5, 8, 17]),
    kind=st.sampled_from(KINDS),
    distance=st.sampled_from(DISTANCES),
    with_widths=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(
    rows: int, codes: int, channels: int, kind: str, distance: str, with_widths: bool, seed: int
) -> None:
    x, centers = draw(kind, rows, codes, channels, seed)
    widths = spread_widths(codes) if with_widths else None
    found = chunked_nearest_code(x, centers, widths, distance)
    assert found.dtype == torch.int64 and found.shape == (rows,)
    assert torch.equal(found, reference_nearest_code(x, centers, widths, distance))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_stay_in_their_row(bad: float, distance: str) -> None:
    x, centers = draw("random", 20, 100, 4)
    wanted = chunked_nearest_code(x, centers, None, distance)
    x[3, 1] = bad
    found = chunked_nearest_code(x, centers, None, distance)
    others = torch.arange(20) != 3
    assert torch.equal(found[others], wanted[others])
    centers[5, 2] = bad
    for index in (found, chunked_nearest_code(x, centers, None, distance)):
        assert (index >= 0).all() and (index < 100).all()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_never_holds_the_matrix(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the worst cases, too, no tensor is larger than a few blocks."""
    monkeypatch.setitem(assignment_nearest._BLOCK_BYTES, "cpu", 2**14)
    x, centers = draw(kind, 512, 256, 4)
    for distance in DISTANCES:
        with LargestTensor() as watch:
            chunked_nearest_code(x, centers, None, distance)
        assert 2**12 < watch.bytes <= 4 * 2**14 < 4 * 512 * 256
    with LargestTensor() as watch:
        reference_nearest_code(x, centers, None, "dot")
    assert watch.bytes >= 8 * 512 * 256  # the watch sees what it should


def test_a_million_codes() -> None:
    x, centers = normal(0, 64, 8), normal(1, 2**20, 8)
    found = chunked_nearest_code(x, centers, None, "sq_l2")
    assert torch.equal(found[:8], reference_nearest_code(x[:8], centers, None, "sq_l2"))
    apart = (x.double() - centers[found]).square().sum(1)
    assert (apart <= (x[:, None].double() - centers[: 2**14]).square().sum(2).amin(1)).all()
