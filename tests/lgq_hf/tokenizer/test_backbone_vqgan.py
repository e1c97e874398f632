"""The places where members of the VQGAN family differ, each against its definition in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lgq_hf import LGQConfig, LGQModel
from lgq_hf.tokenizer.backbone_vqgan import (
    VQGANAdaptiveNorm,
    VQGANAttentionBlock,
    VQGANDownsampler,
    VQGANResnetBlock,
    VQGANUpsampler,
)

SMALL = {
    "backbone": "vqgan",
    "base_channels": 8,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "latent_channels": 6,
    "codebook_size": 16,
}


def config(**changes: Any) -> LGQConfig:
    return LGQConfig(**{**SMALL, **changes})


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    rows = x.unflatten(1, (groups, -1)).flatten(2)
    centred = rows - rows.mean(2, keepdim=True)
    normed = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    return normed.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def test_depth_to_space_has_the_position_before_the_channel() -> None:
    upsampler = VQGANUpsampler(2, config(upsample="depth_to_space"))
    upsampler.conv = torch.nn.Identity()
    numbers = torch.arange(8 * 3 * 5.0).reshape(1, 8, 3, 5)
    found = upsampler(numbers)
    assert found.shape == (1, 2, 6, 10)
    for channel in range(2):
        for y in range(6):
            for x in range(10):
                source = (y % 2) * 4 + (x % 2) * 2 + channel
                assert found[0, channel, y, x] == numbers[0, source, y // 2, x // 2]


def test_nearest_upsampling_repeats_before_the_convolution() -> None:
    upsampler = randomised(VQGANUpsampler(4, config()))
    x = draw(2, 4, 3, 5)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(upsampler(x), F.conv2d(repeated, upsampler.conv.weight, upsampler.conv.bias, padding=1))


@pytest.mark.parametrize(("kind", "padding"), [("asymmetric_conv", (0, 1, 0, 1)), ("conv", (1, 1, 1, 1))])
def test_strided_convolutions_differ_in_their_padding(kind: str, padding: tuple[int, ...]) -> None:
    downsampler = randomised(VQGANDownsampler(4, config(downsample=kind)))
    x = draw(2, 4, 6, 8)
    wanted = F.conv2d(F.pad(x, padding), downsampler.conv.weight, downsampler.conv.bias, stride=2)
    assert wanted.shape[2:] == (3, 4)
    torch.testing.assert_close(downsampler(x), wanted)


def test_average_pooling_has_no_weights() -> None:
    downsampler = VQGANDownsampler(4, config(downsample="avg_pool"))
    x = draw(2, 4, 6, 8)
    assert not list(downsampler.parameters())
    torch.testing.assert_close(downsampler(x), x.unflatten(3, (4, 2)).unflatten(2, (3, 2)).mean((3, 5)))


@pytest.mark.parametrize("on_hidden", [False, True])
@pytest.mark.parametrize(("inside", "outside"), [(8, 8), (8, 12)])
def test_residual_block(inside: int, outside: int, on_hidden: bool) -> None:
    block = randomised(VQGANResnetBlock(inside, outside, config(shortcut_on_hidden=on_hidden, norm_eps=0.25)))
    x = draw(2, inside, 3, 5)
    hidden = F.silu(group_norm(x, 4, block.norm1.weight, block.norm1.bias, 0.25))
    hidden = F.conv2d(hidden, block.conv1.weight, block.conv1.bias, padding=1)
    hidden = F.silu(group_norm(hidden, 4, block.norm2.weight, block.norm2.bias, 0.25))
    hidden = F.conv2d(hidden, block.conv2.weight, block.conv2.bias, padding=1)
    if inside == outside:
        assert block.shortcut is None
        wanted = x + hidden
    else:
        wanted = F.conv2d(hidden if on_hidden else x, block.shortcut.weight, block.shortcut.bias) + hidden
    torch.testing.assert_close(block(x), wanted)


def test_attention_has_one_head_and_the_scale_of_its_channels() -> None:
    block = randomised(VQGANAttentionBlock(8, config()))
    x = draw(2, 8, 3, 5)
    normed = group_norm(x, 4, block.norm.weight, block.norm.bias, 1e-6).flatten(2)
    q, k, v = (layer.weight[:, :, 0, 0] @ normed + layer.bias[:, None] for layer in (block.q, block.k, block.v))
    attended = v @ torch.softmax(q.mT @ k / 8**0.5, dim=2).mT
    wanted = x + (block.proj.weight[:, :, 0, 0] @ attended + block.proj.bias[:, None]).reshape(x.shape)
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("grid", [(2, 1), (3, 5)])
def test_adaptive_norm_follows_mean_and_unbiased_variance_of_the_codes(grid: tuple[int, int]) -> None:
    norm = randomised(VQGANAdaptiveNorm(8, config()))
    x, codes = draw(2, 8, 6, 7), draw(2, 6, *grid, seed=3)
    rows = codes.flatten(2)
    scale = (rows.var(2, correction=1) + 1e-6).sqrt() @ norm.gamma.weight.T + norm.gamma.bias
    shift = rows.mean(2) @ norm.beta.weight.T + norm.beta.bias
    plain = group_norm(x, 4, torch.ones(8).double(), torch.zeros(8).double(), 1e-6)
    wanted = plain * scale[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(norm(x, codes), wanted)


@pytest.mark.parametrize(
    ("changes", "blocks", "attentions"),
    [
        ({}, (1, 1, 2, 2, 2, 2), {"encoder.mid.0", "decoder.mid.0"}),
        ({"decoder_extra_block": False, "mid_attention": False}, (1, 1, 2, 2, 1, 1), set()),
        (
            {"num_res_blocks": 2, "num_mid_blocks": 1, "attention_levels": [0], "mid_attention": False},
            (2, 2, 1, 1, 3, 3),
            {"encoder.stages.0.0", "encoder.stages.0.1"} | {f"decoder.stages.1.{i}" for i in range(3)},
        ),
        (
            {"attention_levels": [1]},
            (1, 1, 2, 2, 2, 2),
            {"encoder.mid.0", "decoder.mid.0", "encoder.stages.1.0", "decoder.stages.0.0", "decoder.stages.0.1"},
        ),
    ],
)
def test_where_blocks_and_attention_stand(
    changes: dict[str, Any], blocks: tuple[int, ...], attentions: set[str]
) -> None:
    model = LGQModel(config(**changes))
    parts = [*model.encoder.stages, model.encoder.mid, model.decoder.mid, *model.decoder.stages]
    assert tuple(len(part.blocks) for part in parts) == blocks
    found = {name for name, module in model.named_modules() if isinstance(module, VQGANAttentionBlock)}
    assert {name.replace(".attentions", "") for name in found} == attentions


def test_parameters_of_the_published_tamings_f16() -> None:
    """29.30 M in the encoder and 42.45 M in the decoder, 338 tensors in both (CompVis/taming-transformers)."""
    with torch.device("meta"):
        model = LGQModel(
            LGQConfig(
                backbone="vqgan",
                base_channels=128,
                channel_multiplier=[1, 1, 2, 2, 4],
                attention_levels=[4],
                latent_channels=256,
                code_dim=256,
                quantizer="vq",
                codebook_size=1024,
            )
        )
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)]
    assert sizes == [pytest.approx(29.30, abs=0.005), pytest.approx(42.45, abs=0.005)]
    assert len([name for name in model.state_dict() if "coder." in name]) == 338


def test_parameters_of_the_published_open_magvit2() -> None:
    """49.75 M in the encoder and 65.38 M in the decoder (TencentARC/SEED-Voken)."""
    with torch.device("meta"):
        model = LGQModel(
            LGQConfig(
                backbone="vqgan",
                base_channels=128,
                channel_multiplier=[1, 1, 2, 2, 4],
                num_res_blocks=4,
                num_mid_blocks=4,
                conv_bias=False,
                mid_attention=False,
                decoder_extra_block=False,
                encoder_out_kernel=1,
                downsample="conv",
                upsample="depth_to_space",
                adaptive_group_norm=True,
                latent_channels=18,
                quantizer="lfq",
                codebook_size=2**18,
            )
        )
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)]
    assert sizes == [pytest.approx(49.75, abs=0.005), pytest.approx(65.38, abs=0.005)]
