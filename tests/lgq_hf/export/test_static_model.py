"""The forms of encoder and decoder that are traced: the model's own results, for every small model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lgq_hf import LGQModel
from lgq_hf.export.static_model import NO_TOKEN, StaticDecoder, StaticEncoder, TableSearch
from lgq_hf.tokenizer.assignment_reference import reference_nearest_code
from lgq_hf.tokenizer.quantizer_vq import VQQuantizer

Build = Callable[..., Any]


@torch.no_grad()
def test_tokens_and_pixels_are_those_of_the_model(model: LGQModel, make_pixels: Build) -> None:
    pixels = make_pixels(model, batch=3, grid=(3, 5))
    expected = model.encode(pixels)
    tokens, rows = StaticEncoder(model, with_rows=True)(pixels)
    assert torch.equal(tokens, expected.image_tokens)
    assert torch.equal(rows, model.quantizer.to_rows(expected.last_hidden_state))
    assert torch.equal(StaticEncoder(model)(pixels), tokens)
    drawn = torch.randint(model.config.codebook_size, tokens.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(StaticDecoder(model)(drawn), model.decode(drawn).decoded_pixel_values)


def hard_rows(distance: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows on, between and far from codes, some of which are equal or neighbours; far from zero."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(200, 5, generator=generator) + (30 if distance in ("sq_l2", "l2") else 0)
    codes[150:] = codes[:50]  # the same
    codes[100:150] = torch.nextafter(codes[50:100], torch.tensor(torch.inf))
    middles = (codes[0:60] + codes[60:120]) / 2
    rows = torch.cat([codes, middles, codes[:50] * 1e4, torch.randn(50, 5, generator=generator), torch.zeros(1, 5)])
    return rows, codes


@pytest.mark.parametrize(
    ("distance", "wide"), [("sq_l2", False), ("sq_l2", True), ("l2", True), ("cosine", False), ("dot", False)]
)
def test_search_is_exact_where_codes_nearly_tie(distance: str, wide: bool) -> None:
    rows, codes = hard_rows(distance)
    widths = torch.rand(200, generator=torch.Generator().manual_seed(1)) + 0.5 if wide else None
    if widths is not None:
        widths[150:] = widths[:50]
    found = TableSearch(codes, widths, distance)(rows)
    assert torch.equal(found, reference_nearest_code(rows, codes, widths, distance))
    assert len(found.unique()) > (3 if distance == "dot" else 30)


def test_search_takes_the_lowest_of_many_that_are_equal() -> None:
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 5)  # all as near to 0
    assert TableSearch(signs, None, "sq_l2")(torch.zeros(1, 5)).tolist() == [0]
    assert TableSearch(torch.ones(20, 5), None, "sq_l2")(torch.randn(4, 5)).tolist() == [0] * 4
    assert TableSearch(torch.ones(1, 5), None, "cosine")(torch.randn(4, 5)).tolist() == [0] * 4


@pytest.mark.parametrize(("case", "value"), [("sq_l2", torch.nan), ("per_channel", torch.inf), ("fsq", torch.nan)])
@torch.no_grad()
def test_pixels_that_are_not_finite_have_no_token(
    case: str, build_model: Build, make_pixels: Build, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    model = build_model(case)
    pixels = make_pixels(model)
    expected = model.encode(pixels).image_tokens
    pixels[0, 0, 3, 2] = value
    monkeypatch.setattr(LGQModel, "_check_pixels", lambda *_: None)  # as in a graph, which cannot raise
    tokens = StaticEncoder(model)(pixels)
    assert (tokens[0] == NO_TOKEN).all()
    assert torch.equal(tokens[1], expected[1])
    with pytest.raises(ValueError, match=r"image_tokens must lie in \[0, "):
        StaticDecoder(model)(tokens)


def test_an_unknown_search_is_refused(build_model: Build) -> None:
    class NewQuantizer(VQQuantizer):
        pass

    model = build_model("vq_ema")
    model.quantizer = NewQuantizer(model.config)
    with pytest.raises(ValueError, match="a NewQuantizer cannot be exported"):
        StaticEncoder(model)
