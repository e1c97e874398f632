"""The adapter beside a real `VQModel` of the same weights, alone and inside aMUSEd's pipelines."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from conversion import diffusers_vq
from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.generation.vq_model import VQModelAdapter

SIZE, CODES, CHANNELS = 16, 24, 8


def theirs_of(**changes: Any) -> diffusers.VQModel:
    """A small net of diffusers, f4, with nothing where its initialisation left it."""
    fields: dict[str, Any] = {
        "block_out_channels": [8, 12, 12],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "latent_channels": CHANNELS,
        "num_vq_embeddings": CODES,
        "norm_num_groups": 4,
        "sample_size": 64,
        "lookup_from_codebook": True,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = diffusers.VQModel(**{**fields, **changes}).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(torch.randn_like(parameter) * (1.0 if "embedding" in name else 0.1))
    return model


def ours_of(theirs: diffusers.VQModel, format: str) -> tuple[LGQModel, LGQImageProcessor]:
    plan = diffusers_vq.plan(theirs.state_dict(), theirs.config, "auto", format)
    model = LGQModel(plan.config).eval()
    model.load_state_dict(plan.tensors)
    return model, LGQImageProcessor(**plan.processor)


def both(format: str = "diffusers", **changes: Any) -> tuple[diffusers.VQModel, VQModelAdapter]:
    theirs = theirs_of(**changes)
    pixel_range = (0.0, 1.0) if format == "amused" else (-1.0, 1.0)
    return theirs, VQModelAdapter(*ours_of(theirs, format), pixel_range)


def pictures(low: float = -1.0, seed: int = 5) -> Tensor:
    """(2,3,16,24) in [low, 1]."""
    return low + (1 - low) * torch.rand(2, 3, SIZE, 24, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"vq_embed_dim": 5}])
@torch.no_grad()
def test_encodes_quantizes_and_decodes_as_a_vq_model(changes: dict[str, Any]) -> None:
    theirs, ours = both(**changes)
    latents = ours.encode(pictures()).latents
    close(latents, theirs.encode(pictures()).latents)
    assert torch.equal(ours.encode(pictures(), return_dict=False)[0], latents)
    codes, loss, (perplexity, encodings, indices) = ours.quantize(latents)
    their_codes, their_loss, (their_perplexity, their_encodings, their_indices) = theirs.quantize(latents)
    assert torch.equal(indices, their_indices) and indices.shape == (2 * 4 * 6,) and len(indices.unique()) > 1
    assert perplexity is their_perplexity is None and encodings is their_encodings is None
    close(codes, their_codes)
    close(loss, their_loss)
    decoded, expected = ours.decode(latents), theirs.decode(latents)
    close(decoded.sample, expected.sample)
    close(decoded.commit_loss, expected.commit_loss)
    sample, commit_loss = ours.decode(latents, return_dict=False)
    assert torch.equal(sample, decoded.sample) and torch.equal(commit_loss, decoded.commit_loss)
    close(ours(pictures()).sample, theirs(pictures()).sample)
    assert torch.equal(ours(pictures(), return_dict=False)[0], ours(pictures()).sample)


@torch.no_grad()
def test_tokens_and_codes_are_decoded_without_a_lookup() -> None:
    theirs, ours = both()
    tokens = torch.randint(CODES, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    shape = (2, 4, 6, CHANNELS)
    entry = ours.quantize.get_codebook_entry(tokens, shape)
    assert torch.equal(entry, theirs.quantize.get_codebook_entry(tokens, shape)) and entry.shape == (2, CHANNELS, 4, 6)
    assert torch.equal(ours.quantize.get_codebook_entry(tokens.flatten(), shape), entry)
    rows = ours.quantize.get_codebook_entry(tokens.flatten(), None)
    assert torch.equal(rows, theirs.quantize.get_codebook_entry(tokens.flatten(), None)) and rows.shape == (48, 8)

    expected = theirs.decode(tokens, force_not_quantize=True, shape=shape)
    decoded = ours.decode(tokens, force_not_quantize=True, shape=shape)
    close(decoded.sample, expected.sample)
    assert torch.equal(decoded.commit_loss, torch.zeros(2)) and not expected.commit_loss.any()
    for h, given in ((tokens, None), (tokens.flatten(), shape), (entry, None)):
        assert torch.equal(ours.decode(h, force_not_quantize=True, shape=given).sample, decoded.sample)
    theirs.register_to_config(lookup_from_codebook=False)  # as VQ-Diffusion calls it, with codes
    close(decoded.sample, theirs.decode(entry, force_not_quantize=True).sample)


def test_gradients_pass_the_lookup_as_in_a_vq_model() -> None:
    theirs, ours = both()
    gradients = []
    for model in (ours, theirs):
        latents = theirs.encode(pictures()).latents.detach().requires_grad_()
        codes, loss, _ = model.quantize(latents)
        (codes.square().sum() + loss).backward()
        gradients.append((latents.grad, next(p for p in model.parameters() if p.shape == (CODES, CHANNELS)).grad))
    for one, other in zip(*gradients, strict=True):
        close(one, other)
        assert one.abs().max() > 0


def test_states_what_callers_read() -> None:
    theirs, ours = both(vq_embed_dim=5)
    for name in ("in_channels", "out_channels", "sample_size", "num_vq_embeddings", "vq_embed_dim", "force_upcast"):
        assert getattr(ours.config, name) == ours.config[name] == getattr(theirs.config, name)
    assert list(ours.config.block_out_channels) == theirs.config.block_out_channels
    assert ours.config.latent_channels == ours.encode(pictures()).latents.shape[1] == 5
    assert ours.config.scaling_factor == 1 and ours.config.lookup_from_codebook is True
    assert ours.quantize.n_e == theirs.quantize.n_e and ours.quantize.vq_embed_dim == theirs.quantize.vq_embed_dim
    assert (ours.dtype, ours.device) == (torch.float32, torch.device("cpu"))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    names = {name.removeprefix("model.") for name in ours.state_dict()}
    assert names == ours.model.state_dict().keys()  # each tensor once


@torch.no_grad()
def test_a_cast_model_keeps_its_lookup() -> None:
    _, ours = both("amused")
    tokens = ours.quantize(ours.encode(pictures(0)).latents)[2][2]
    ours.to(torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    latents = ours.encode(pictures(0).bfloat16()).latents
    codes, _, (_, _, cast) = ours.quantize(latents)
    assert latents.dtype == codes.dtype == ours.decode(latents).sample.dtype == torch.bfloat16
    assert (cast == tokens).float().mean() > 0.9
    assert ours.quantize.get_codebook_entry(cast, None).dtype == torch.float32


@pytest.mark.parametrize(
    ("pixel_range", "options"),
    [
        ((-1.0, 1.0), {}),
        ((0.0, 1.0), {"do_normalize": False}),
        ((0.0, 255.0), {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
        ((-1.0, 1.0), {"do_normalize": False, "rescale_factor": 1 / 127.5}),
    ],
)
@torch.no_grad()
def test_pictures_are_converted_as_the_image_processor_would(
    options: dict[str, Any], pixel_range: tuple[float, float]
) -> None:
    model, _ = ours_of(theirs_of(), "diffusers")
    processor = LGQImageProcessor(**options, pad_to_multiple_of=4)
    eight_bits = torch.randint(256, (1, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = processor(eight_bits[0], return_tensors="pt", input_data_format="channels_first")
    black, white = pixel_range
    ours = VQModelAdapter(model, processor, pixel_range)
    latents = ours.encode(black + (white - black) * (eight_bits / 255)).latents
    close(latents, model.latents(batch["pixel_values"]))
    decoded = (ours.decode(latents).sample - black) / (white - black)
    expected = processor.postprocess(model(batch["pixel_values"]).decoded_pixel_values, output_type="pt")[0]
    close(decoded[0].clamp(0, 1), expected)


# aMUSEd


@pytest.fixture
def transformer() -> diffusers.UVit2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UVit2DModel(
            hidden_size=8,
            cond_embed_dim=8,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=8,
            vocab_size=CODES + 1,
            codebook_size=CODES,
            in_channels=8,
            block_out_channels=8,
            num_res_blocks=1,
            block_num_heads=1,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            sample_size=8,
        ).eval()


@pytest.fixture
def amused(transformer: diffusers.UVit2DModel) -> Callable[..., Any]:
    """`amused(pipeline class, vqvae)`: no text encoder, as embeddings are given."""

    def build(kind: str, vqvae: torch.nn.Module) -> Any:
        scheduler = diffusers.AmusedScheduler(mask_token_id=CODES)
        components = {"tokenizer": None, "text_encoder": None, "transformer": transformer, "scheduler": scheduler}
        pipe = getattr(diffusers, kind)(vqvae=vqvae, **components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


def given(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = {name: torch.randn(1, 8, generator=generator) for name in ("", "negative_")}
    states = {name: torch.randn(1, 7, 8, generator=generator) for name in ("", "negative_")}
    options = {f"{name}prompt_embeds": value for name, value in embeddings.items()}
    options |= {f"{name}encoder_hidden_states": value for name, value in states.items()}
    return {**options, "num_inference_steps": 4, "output_type": "np"}


def seeded() -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(1)}


@pytest.mark.parametrize("kind", ["AmusedPipeline", "AmusedImg2ImgPipeline"])
def test_amused_draws_the_same_pictures_with_it(amused: Callable[..., Any], kind: str) -> None:
    theirs, ours = both("amused")
    options = given()
    if kind == "AmusedImg2ImgPipeline":
        options |= {"image": pictures(0)[:1, :, :, :16].repeat(1, 1, 2, 2), "strength": 0.5}
    made = [amused(kind, vqvae)(**options, **seeded()).images for vqvae in (theirs, ours)]
    assert made[1].shape == (1, 32, 32, 3) and made[1].std() > 0.01
    close(torch.from_numpy(made[1]), torch.from_numpy(made[0]))


def test_what_is_refused() -> None:
    model, processor = ours_of(theirs_of(), "diffusers")
    ours, narrow = VQModelAdapter(model, processor), VQModelAdapter(model, processor, (0.0, 1.0))
    tokens, pixels = torch.zeros(2, 4, 6, dtype=torch.long), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    entry = ours.quantize.get_codebook_entry
    for call, message in (
        (lambda: VQModelAdapter(model, processor, (1.0, -1.0)), r"\(1.0, -1.0\)"),
        (lambda: VQModelAdapter(model, processor, (0.0, 0.0)), r"\(0.0, 0.0\)"),
        (lambda: ours.decode(tokens), "torch.int64"),
        (lambda: ours.decode(torch.zeros(2, 3, 4, 6), force_not_quantize=True), r"\(2, 3, 4, 6\)"),
        (lambda: entry(tokens, (2, 4, 6, 5)), r"\(2, 4, 6, 5\)"),
        (lambda: entry(tokens, (2, 4, 5, 8)), r"\(2, 4, 5, 8\)"),
        (lambda: entry(tokens, (2, 24, 8)), r"\(2, 24, 8\)"),
        (lambda: entry(tokens + CODES, None), "24 to 24"),
        (lambda: ours.encode(pixels), "torch.uint8"),
        (lambda: narrow.encode(pixels), "torch.uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    model.config.codebook_mode, model.config.quantizer = "per_channel", "lgq"
    with pytest.raises(ValueError, match="one with 8"):
        VQModelAdapter(model, processor)
