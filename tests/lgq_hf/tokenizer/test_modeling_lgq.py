"""What the model computes: tokens and pictures, in every precision and mode, copied and compiled.

Its training is in `test_modeling_training.py`, its refusals in `test_modeling_inputs.py`, its files in
`test_model_files.py`, and the models themselves in `tests/conftest.py`.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lgq_hf import LGQConfig, LGQModel, LGQTokenizer
from lgq_hf.tokenizer.backbone_lgq import LGQAttentionBlock
from lgq_hf.tokenizer.backbone_vqgan import VQGANAttentionBlock
from tests.conftest import MODELS
from tests.largest_tensor import LargestTensor

RARE = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float64)]
DTYPES = [torch.float32, torch.bfloat16, *RARE]

# How far apart the scores (see `score`) of two codes may lie for a token to differ between runs that round
# differently: twice the largest change of any score here when each latent moves by one unit in its last place; in fp32
# (where convolutions of 1 and of 3 pictures differ by more) between a batch and its single pictures.
MARGINS = {torch.float64: 1e-13, torch.float32: 1e-4, torch.float16: 0.09, torch.bfloat16: 0.7}


def score(model: LGQModel, latents: Tensor, tokens: Tensor) -> Tensor:
    """What the quantizer minimises over codes, (B, h, w) or per channel (B, h, w, C), in float64."""
    config, quantizer = model.config, model.quantizer
    x = latents.double().permute(0, 2, 3, 1)
    codes = quantizer.codes_from_tokens(tokens).double().permute(0, 2, 3, 1)
    if config.quantizer == "fsq":  # channels are squashed before they are compared
        x = quantizer.bounded(latents.double().permute(0, 2, 3, 1).flatten(0, 2)).reshape(x.shape)
        x = x / (torch.tensor(config.levels) // 2)
    if config.codebook_mode != "vector":
        value = (x - codes).square()
    elif config.distance in ("sq_l2", "l2"):
        value = (x - codes).square().sum(-1)
        value = value.sqrt() if config.distance == "l2" else value
    elif config.distance == "cosine":
        value = -F.cosine_similarity(x, codes, dim=-1, eps=1e-12)
    else:
        value = -(x * codes).sum(-1)
    if config.learn_widths:
        widths = F.softplus(quantizer.alpha).double() + 1e-6
        if config.codebook_mode == "vector":
            return value / widths[tokens]
        return value / widths.gather(1, tokens.reshape(-1, config.quantizer_dim).T).T.reshape(value.shape)
    return value


def assert_tokens_agree(model: LGQModel, latents: Tensor, tokens: Tensor, expected: Tensor, margin: float) -> None:
    """Equal, but for at most 1 in 20 tokens, where the scores of both choices lie within `margin`."""
    assert tokens.shape == expected.shape
    assert tokens.dtype == expected.dtype == torch.int64
    differ = tokens != expected
    assert differ.sum() <= differ.numel() / 20, f"{differ.sum()} of {differ.numel()} tokens differ"
    gap = (score(model, latents, tokens) - score(model, latents, expected)).abs()
    assert gap.max() <= margin, f"tokens differ where the scores do by {gap.max():.3g} > {margin}"


def quantizer_state(model: LGQModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.quantizer.state_dict().items()}


def assert_same_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


# --- the contract


@pytest.mark.parametrize("case", MODELS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_decoding_the_tokens_is_the_forward_pass(
    model: LGQModel, dtype: torch.dtype, make_pixels: Callable[..., Tensor]
) -> None:
    model.to(dtype)
    for batch in (1, 3):
        for grid in ((4, 4), (2, 5)):
            pixels = make_pixels(model, batch, grid)
            output, encoded = model(pixels), model.encode(pixels)
            decoded = model.decode(encoded.image_tokens).decoded_pixel_values
            assert torch.equal(output.decoded_pixel_values, decoded)
            assert torch.equal(output.image_tokens, encoded.image_tokens)
            assert torch.equal(model.decode_codes(encoded.quantized_last_hidden_state).decoded_pixel_values, decoded)
            groups = (model.config.tokens_per_position,) if model.config.tokens_per_position > 1 else ()
            assert encoded.image_tokens.shape == (batch, *grid, *groups)
            assert encoded.image_tokens.dtype == torch.int64
            assert encoded.image_tokens.min() >= 0
            assert encoded.image_tokens.max() < model.config.codebook_size
            assert len(encoded.image_tokens.unique()) >= 3
            assert encoded.last_hidden_state.shape == (batch, model.config.quantizer_dim, *grid)
            assert encoded.last_hidden_state.dtype == dtype
            assert encoded.quantized_last_hidden_state.shape == encoded.last_hidden_state.shape
            no_table = model.config.quantizer in ("lfq", "bsq", "fsq")  # that could follow the cast
            wider = dtype == torch.float64 and not no_table
            assert encoded.quantized_last_hidden_state.dtype == (torch.float64 if wider else torch.float32)
            assert decoded.shape == pixels.shape
            assert decoded.dtype == dtype
            assert decoded.isfinite().all()
            assert decoded.std() > 1e-3


@torch.no_grad()
def test_decoding_the_tokens_is_the_forward_pass_under_autocast(
    model: LGQModel, make_pixels: Callable[..., Tensor]
) -> None:
    pixels = make_pixels(model, 3, (3, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, encoded = model(pixels), model.encode(pixels)
        decoded = model.decode(encoded.image_tokens).decoded_pixel_values
    assert decoded.dtype == torch.bfloat16
    assert torch.equal(output.decoded_pixel_values, decoded)
    assert encoded.quantized_last_hidden_state.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_a_batch_has_the_tokens_of_its_pictures(
    model: LGQModel, dtype: torch.dtype, make_pixels: Callable[..., Tensor]
) -> None:
    model.to(dtype)
    pixels = make_pixels(model, 3, (6, 5))
    encoded = model.encode(pixels)
    singles = torch.cat([model.encode(picture[None]).image_tokens for picture in pixels])
    assert_tokens_agree(model, encoded.last_hidden_state, singles, encoded.image_tokens, MARGINS[dtype])


@torch.no_grad()
def test_tokens_are_the_codes_with_the_best_score(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    encoded = model.encode(make_pixels(model, 2, (3, 4)))
    tokens, latents = encoded.image_tokens, encoded.last_hidden_state

    def total(tokens: Tensor) -> Tensor:
        value = score(model, latents, tokens)
        return value.sum(-1) if model.config.codebook_mode == "product" else value

    best = total(tokens)
    for token in range(model.config.codebook_size):
        assert (best <= total(torch.full_like(tokens, token)) + 1e-5).all(), token


def test_training_and_evaluation_choose_the_same_tokens(
    trainable: LGQModel, make_pixels: Callable[..., Tensor]
) -> None:
    model = trainable
    pixels = make_pixels(model, 3, (4, 5))
    with torch.no_grad():
        expected = model.encode(pixels)
    model.train()
    output = model(pixels)
    assert_tokens_agree(
        model, expected.last_hidden_state, output.image_tokens, expected.image_tokens, MARGINS[torch.float32]
    )
    # the straight-through codes are the codes themselves, to the last bit
    decoded = model.decode(output.image_tokens).decoded_pixel_values
    assert torch.equal(output.decoded_pixel_values, decoded)


@torch.no_grad()
def test_the_parts_in_their_order(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    pixels, projected = make_pixels(model), model.config.code_dim is not None
    encoded = model.encode(pixels)
    latents = model.encoder(pixels)
    if model.config.backbone == "lgq":
        norm = model.pre_quant_norm
        rows = F.layer_norm(latents.movedim(1, -1), (model.config.latent_channels,), norm.weight, norm.bias, 1e-5)
        latents = rows.movedim(-1, 1)
    latents = model.pre_quant(latents) if projected else latents
    torch.testing.assert_close(encoded.last_hidden_state, latents, rtol=0, atol=1e-6)
    assert torch.equal(model.latents(pixels), encoded.last_hidden_state)
    codes = model.quantizer(latents).codes
    assert torch.equal(encoded.quantized_last_hidden_state, codes)
    decoded = model.decoder(model.post_quant(codes) if projected else codes)
    assert torch.equal(model.decode_codes(codes).decoded_pixel_values, decoded)


def test_the_public_name_is_the_class() -> None:
    assert LGQTokenizer is LGQModel
    assert LGQModel.__name__ == "LGQModel"  # "Tokenizer" in it would make transformers save a text tokenizer


# --- precision


CASTS: dict[str, Callable[[LGQModel], LGQModel]] = {
    "half": lambda model: model.half(),
    "bfloat16 and back": lambda model: model.bfloat16().float(),
    "half, on a submodule": lambda model: (model.encoder.half(), model.quantizer.half(), model)[-1],
}


@pytest.mark.parametrize("cast", CASTS)
@torch.no_grad()
def test_a_cast_leaves_the_quantizer_alone(
    model: LGQModel, cast: str, build_model: Callable[..., LGQModel], make_pixels: Callable[..., Tensor]
) -> None:
    latents = model.encode(make_pixels(model, 3, (4, 5))).last_hidden_state
    before, expected = quantizer_state(model), model.quantizer(latents)
    model = CASTS[cast](model)
    if "back" not in cast:
        assert model.dtype in (torch.float16, torch.bfloat16)
        assert model.encoder.stem.weight.dtype == model.dtype
    assert all(tensor.dtype == torch.float32 for tensor in before.values())
    assert_same_tensors(quantizer_state(model), before)
    quantized = model.quantizer(latents)
    assert torch.equal(quantized.image_tokens, expected.image_tokens)
    assert torch.equal(quantized.codes, expected.codes)


@torch.no_grad()
def test_autocast_does_not_reach_the_lookup(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    latents = model.encode(make_pixels(model, 3, (4, 5))).last_hidden_state
    expected = model.quantizer(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = model.quantizer(latents)
    assert torch.equal(quantized.image_tokens, expected.image_tokens)
    assert torch.equal(quantized.codes, expected.codes)


@pytest.mark.parametrize("mode", ["cast", "autocast"])
@torch.no_grad()
def test_codes_closer_than_bfloat16_resolves_are_told_apart(mode: str, build_model: Callable[..., LGQModel]) -> None:
    model = build_model("sq_l2")
    steps = torch.arange(32) * 2.0**-12
    assert len((1 + steps).bfloat16().unique()) < 3
    model.quantizer.centers.copy_((1 + steps)[:, None].expand(-1, 8))
    latents = model.quantizer.centers.clone().T.reshape(1, 8, 4, 8)
    if mode == "cast":
        tokens = model.bfloat16().quantizer(latents).image_tokens
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = model.quantizer(latents).image_tokens
    assert tokens.flatten().tolist() == list(range(32))


# --- sizes


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("codebook_size", "total"), [(4096, 28_253_507), (16384, 29_039_939), (65536, 32_185_667)])
def test_published_parameter_counts(codebook_size: int, total: int) -> None:
    with torch.device("meta"):
        model = LGQModel(LGQConfig(base_channels=128, latent_channels=64, codebook_size=codebook_size))
    assert parameters(model.encoder) == 13_995_712
    assert parameters(model.decoder) == 13_995_523
    assert parameters(model.pre_quant_norm) == 128
    assert parameters(model.quantizer) == codebook_size * 64
    assert parameters(model) == total
    # nothing but the temperature travels beside the parameters
    assert len(model.state_dict()) == len(list(model.parameters())) + 1


def test_options_change_the_modules_they_name(build_model: Callable[..., LGQModel]) -> None:
    def attention(model: LGQModel) -> list[str]:
        return [n for n, m in model.named_modules() if type(m).__name__ == "LGQAttentionBlock"]

    model = build_model("sq_l2")
    assert attention(model) == ["encoder.stages.2.1", "decoder.stages.0.1"]
    assert attention(build_model("sq_l2", bottleneck_attention=False)) == []
    assert not hasattr(model, "pre_quant")
    assert model.quantizer.alpha is None
    assert build_model("sq_l2", learn_widths=True).quantizer.alpha.shape == (32,)
    assert build_model("sq_l2", code_dim=5).pre_quant.weight.shape == (5, 8, 1, 1)
    legacy = build_model("sq_l2", base_channels=64, legacy_decoder=True)
    assert [stage[0].conv1.in_channels for stage in legacy.decoder.stages] == [32, 32, 64]
    assert [stage[0].conv1.in_channels for stage in legacy.encoder.stages] == [64, 128, 128]


def test_initialisation_fills_every_tensor() -> None:
    torch.manual_seed(0)
    config = LGQConfig(
        base_channels=32, channel_multiplier=[1, 2], latent_channels=16, code_dim=4, codebook_size=512, temperature=0.3
    )
    model = LGQModel(config)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert model.quantizer.temperature.item() == pytest.approx(0.3)
    assert model.quantizer.centers.std().item() == pytest.approx(1, rel=0.1)
    # torch's default for convolutions: uniform within 1/sqrt(fan_in), for the bias too
    conv = model.encoder.stages[0][0].conv1
    bound = (32 * 9) ** -0.5
    for tensor in (conv.weight, conv.bias):
        assert 0.8 * bound < tensor.abs().max().item() <= bound
    assert model.encoder.stages[0][0].norm1.weight.unique().item() == 1
    assert torch.equal(model.pre_quant.weight[:, :, 0, 0], torch.eye(4, 16))
    assert model.pre_quant.bias.abs().max() == 0


# --- copies and compilation


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_and_pickles(
    model: LGQModel, duplicate: Callable[[LGQModel], LGQModel], make_pixels: Callable[..., Tensor]
) -> None:
    pixels = make_pixels(model)
    expected = model(pixels)
    other = duplicate(model)
    assert_same_tensors(dict(other.state_dict()), dict(model.state_dict()))
    assert other.config.to_dict() == model.config.to_dict()
    for parameter in model.parameters():
        parameter.zero_()  # the copy shares nothing
    output = other(pixels)
    assert torch.equal(output.image_tokens, expected.image_tokens)
    assert torch.equal(output.decoded_pixel_values, expected.decoded_pixel_values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "backend", "grids"),
    [
        ("per_channel_widths", {}, "aot_eager", [(4, 4), (2, 5)]),
        # what surrounds the quantizer is in the graphs of the case above
        ("product", {"channel_multiplier": [1, 1], "bottleneck_attention": False}, "aot_eager", [(4, 4), (2, 5)]),
        # code generation takes half a minute, and as long again for each further size
        ("sq_l2", {"channel_multiplier": [1, 1], "bottleneck_attention": False}, "inductor", [(4, 4)]),
    ],
)
@torch.no_grad()
def test_compiled_without_graph_breaks(
    name: str,
    changes: dict[str, Any],
    backend: str,
    grids: list[tuple[int, int]],
    build_model: Callable[..., LGQModel],
    make_pixels: Callable[..., Tensor],
) -> None:
    torch.compiler.reset()
    model = build_model(name, **changes)
    encode = torch.compile(model.encode, fullgraph=True, backend=backend)
    decode = torch.compile(model.decode, fullgraph=True, backend=backend)
    for grid in grids:
        pixels = make_pixels(model, 2, grid)
        expected, encoded = model.encode(pixels), encode(pixels)
        torch.testing.assert_close(encoded.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
        assert_tokens_agree(
            model, expected.last_hidden_state, encoded.image_tokens, expected.image_tokens, MARGINS[torch.float32]
        )
        tokens = expected.image_tokens
        torch.testing.assert_close(
            decode(tokens).decoded_pixel_values, model.decode(tokens).decoded_pixel_values, rtol=1e-4, atol=1e-5
        )
        with pytest.raises(RuntimeError, match=rf"must lie in \[0, {model.config.codebook_size}\)"):
            decode(tokens + model.config.codebook_size)


@pytest.mark.parametrize(
    "block",
    [LGQAttentionBlock(16, 4), VQGANAttentionBlock(16, LGQConfig(backbone="vqgan", norm_num_groups=4))],
    ids=["lgq", "vqgan"],
)
@torch.no_grad()
def test_attention_never_holds_all_pairs_of_positions(block: nn.Module) -> None:
    """The fused kernel on a CPU takes channels in the last dimension only; else memory grows with the fourth power."""
    hidden_states = torch.randn(1, 16, 24, 24)
    with LargestTensor() as largest:
        block(hidden_states)
    assert largest.elements <= hidden_states.numel()
