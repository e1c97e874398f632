"""What the model refuses, and by which message; and inputs at the edge of what it takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lgq_hf import LGQModel


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"expected pixel_values \(B, 3, H, W\), got shape \(3, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3), ValueError, r"\(B, 3, H, W\), got shape \(1, 8, 8, 3\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ValueError, "floating point pixel_values, got torch.uint8"),
        (torch.zeros(1, 3, 8, 10), ValueError, "8 x 10 .* cannot be divided into tokens of 4 x 4 .* pad to 8 x 12 "),
        (torch.zeros(1, 3, 13, 8), ValueError, "13 x 8 .* cannot be divided into tokens of 4 x 4 .* pad to 16 x 8 "),
        (torch.zeros(1, 3, 0, 8), ValueError, "0 x 8 .* pad to 4 x 8 "),
        ([[0.0]], TypeError, "expected pixel_values as a tensor, got list: .*return_tensors='pt'"),
        (torch.zeros(1, 3, 8, 8).numpy(), TypeError, "expected pixel_values as a tensor, got ndarray"),
    ],
)
def test_refuses_pixels(
    pixels: Any, error: type[Exception], message: str, build_model: Callable[..., LGQModel]
) -> None:
    model = build_model("sq_l2")
    for method in (model.encode, model, model.latents, model.train()):
        with pytest.raises(error, match=message):
            method(pixels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_pixels_that_are_not_finite(
    value: float, build_model: Callable[..., LGQModel], make_pixels: Callable[..., Tensor]
) -> None:
    model = build_model("sq_l2")
    pixels = make_pixels(model)
    pixels[1, 2, 3, 4] = value
    for method in (model.encode, model, model.train()):
        with pytest.raises(ValueError, match="pixel_values hold NaN or infinite values"):
            method(pixels)


def _zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "tokens", "error", "message"),
    [
        ("sq_l2", _zeros(2, 2), ValueError, r"image_tokens \(B, h, w\), got shape \(2, 2\)"),
        ("product", _zeros(1, 2, 2, 3), ValueError, r"image_tokens \(B, h, w\), got shape \(1, 2, 2, 3\)"),
        ("per_channel", _zeros(1, 2, 2), ValueError, r"image_tokens \(B, h, w, 8\), got shape \(1, 2, 2\)"),
        ("per_channel", _zeros(1, 2, 2, 7), ValueError, r"image_tokens \(B, h, w, 8\), got shape \(1, 2, 2, 7\)"),
        ("one_channel", _zeros(1, 2, 2, 1), ValueError, r"image_tokens \(B, h, w\), got shape \(1, 2, 2, 1\)"),
        ("sq_l2", _zeros(1, 2, 2, dtype=torch.float32), ValueError, "expected integer .* got torch.float32"),
        ("sq_l2", _zeros(1, 2, 2, dtype=torch.bool), ValueError, "expected integer .* got torch.bool"),
        ("sq_l2", _zeros(1, 2, 2) - 1, ValueError, r"must lie in \[0, 32\), got values from -1 to -1"),
        ("sq_l2", _zeros(1, 2, 2) + 32, ValueError, r"must lie in \[0, 32\), got values from 32 to 32"),
        ("product", _zeros(1, 2, 2) + 32, ValueError, r"must lie in \[0, 32\), got values from 32 to 32"),
        ("per_channel", _zeros(1, 2, 2, 8) + 6, ValueError, r"must lie in \[0, 6\), got values from 6 to 6"),
        ("sq_l2", _zeros(1, 0, 2), ValueError, r"h and w not 0, got shape \(1, 8, 0, 2\)"),
        ("sq_l2", [[[0]]], TypeError, "expected image_tokens as a tensor, got list"),
    ],
)
def test_refuses_tokens(
    name: str, tokens: Any, error: type[Exception], message: str, build_model: Callable[..., LGQModel]
) -> None:
    with pytest.raises(error, match=message):
        build_model(name).decode(tokens)


def test_one_bad_token_among_good_ones_is_refused(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    tokens = model.encode(make_pixels(model)).image_tokens
    size = model.config.codebook_size
    for bad in (-1, size, 2**40):
        wrong = tokens.clone()
        wrong.view(-1)[3] = bad
        with pytest.raises(ValueError, match=rf"must lie in \[0, {size}\), got values from .*{bad}"):
            model.decode(wrong)


@torch.no_grad()
def test_tokens_of_any_integer_type_decode_alike(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    tokens = model.encode(make_pixels(model)).image_tokens
    decoded = model.decode(tokens).decoded_pixel_values
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(model.decode(tokens.to(dtype)).decoded_pixel_values, decoded), dtype


@pytest.mark.parametrize("shape", [(8, 2, 2), (1, 7, 2, 2), (1, 2, 2, 8), (1, 8, 2, 0)])
def test_refuses_codes(shape: tuple[int, ...], build_model: Callable[..., LGQModel]) -> None:
    with pytest.raises(
        ValueError, match=rf"expected codes \(B, 8, h, w\), .* got shape \({', '.join(map(str, shape))}\)"
    ):
        build_model("sq_l2").decode_codes(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected codes \(B, 5, h, w\)"):
        build_model("identity_projected_f16").decode_codes(torch.zeros(1, 8, 2, 2))


@torch.no_grad()
def test_empty_batch(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    pixels = make_pixels(model, 0, (2, 3))
    encoded, output = model.encode(pixels), model(pixels)
    decoded = model.decode(encoded.image_tokens).decoded_pixel_values
    groups = (model.config.tokens_per_position,) if model.config.tokens_per_position > 1 else ()
    assert encoded.image_tokens.shape == output.image_tokens.shape == (0, 2, 3, *groups)
    assert encoded.image_tokens.dtype == torch.int64
    assert encoded.quantized_last_hidden_state.shape == (0, model.config.quantizer_dim, 2, 3)
    assert decoded.shape == output.decoded_pixel_values.shape == pixels.shape


@torch.no_grad()
def test_a_single_token_has_no_variance_for_adaptive_norms(
    model: LGQModel, make_pixels: Callable[..., Tensor]
) -> None:
    pixels = make_pixels(model, 1, (1, 1))
    if not model.config.adaptive_group_norm:
        assert model(pixels).decoded_pixel_values.isfinite().all()
        return
    with pytest.raises(ValueError, match="expected a grid of at least two positions, got 1 x 1: adaptive_group_norm"):
        model(pixels)
