"""Encoder and decoder of the LGQ paper (arXiv 2602.16086).

Shapes: B images, H W pixels, h w latent grid (h = H / f), b base width, C latent channels.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lgq import LGQConfig


class LGQGroupNorm(nn.GroupNorm):
    """GroupNorm that also takes a single value per group, such as a 1 x 1 grid has (normalised, it is the bias)."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _group_norm(channels: int) -> LGQGroupNorm:
    """32 groups, or one where there are fewer than 32 channels (the published rule); eps 1e-5."""
    groups = math.gcd(32, channels) if channels >= 32 else 1
    return LGQGroupNorm(groups, channels)


class LGQResnetBlock(GradientCheckpointingLayer):
    """GroupNorm, SiLU, 3x3 convolution, twice, plus the input: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = _group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See the class."""
        residual = self.conv1(F.silu(self.norm1(hidden_states)))
        return hidden_states + self.conv2(F.silu(self.norm2(residual)))


class LGQAttentionBlock(GradientCheckpointingLayer):
    """Self-attention over the h*w grid positions, plus the input: (B, D, h, w) -> (B, D, h, w)."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = math.gcd(min(num_heads, max(1, channels // 4)), channels)
        self.norm = _group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def _heads(self, hidden_states: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, heads, h*w, D/heads)."""
        return hidden_states.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3).contiguous()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See the class."""
        normed = self.norm(hidden_states)
        q, k, v = (self._heads(layer(normed)) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return hidden_states + self.proj(attended.reshape(hidden_states.shape))


def _stage(channels: int, num_blocks: int, config: LGQConfig, *, last: bool) -> nn.Sequential:
    """The residual blocks of one resolution; the last resolution has attention behind them."""
    blocks: list[nn.Module] = [LGQResnetBlock(channels) for _ in range(num_blocks)]
    if last and config.bottleneck_attention:
        blocks.append(LGQAttentionBlock(channels, config.num_attention_heads))
    return nn.Sequential(*blocks)


class LGQEncoder(nn.Module):
    """`pixel_values` (B, 3, H, W) -> latents (B, C, H/f, W/f).

    A stem convolution, then per stage residual blocks and a strided 4x4 convolution (none after the last), a 1x1
    convolution to C channels and (with `latent_group_norm`) `emb_norm`, a GroupNorm with gcd(8, C) groups.
    """

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        widths = config.stage_channels
        self.stem = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.stages = nn.ModuleList(
            _stage(width, config.num_res_blocks, config, last=i == last) for i, width in enumerate(widths)
        )
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in itertools.pairwise(widths)
        )
        self.to_emb = nn.Conv2d(widths[-1], config.latent_channels, 1)
        channels = config.latent_channels
        self.emb_norm = LGQGroupNorm(math.gcd(8, channels), channels) if config.latent_group_norm else None

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See the class."""
        hidden_states = self.stem(pixel_values)
        for i, stage in enumerate(self.stages):
            if i > 0:
                hidden_states = self.downsamplers[i - 1](hidden_states)
            hidden_states = stage(hidden_states)
        hidden_states = self.to_emb(hidden_states)
        return hidden_states if self.emb_norm is None else self.emb_norm(hidden_states)


class LGQDecoder(nn.Module):
    """codes (B, C, h, w) -> picture (B, 3, h*f, w*f) in the normalised pixel space of the encoder's input.

    The encoder mirrored, with transposed 4x4 convolutions, and with as many residual blocks where
    `decoder_num_res_blocks` does not say otherwise; no norm and no activation before the last convolution, `out`,
    which training weighs the terms of its loss at.
    """

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        widths = config.stage_channels
        if config.legacy_decoder:
            widths[1:] = [max(32, config.latent_channels)] * (len(widths) - 1)
        blocks = list(config.decoder_num_res_blocks or [config.num_res_blocks] * len(widths))
        widths.reverse()
        blocks.reverse()
        self.from_emb = nn.Conv2d(config.latent_channels, widths[0], 1)
        self.stages = nn.ModuleList(_stage(width, blocks[i], config, last=i == 0) for i, width in enumerate(widths))
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1) for coarse, fine in itertools.pairwise(widths)
        )
        self.out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def features(self, codes: Tensor) -> Tensor:
        """What `out` makes the picture of: (B, C, h, w) -> (B, b, h*f, w*f)."""
        hidden_states = self.from_emb(codes)
        for i, stage in enumerate(self.stages):
            if i > 0:
                hidden_states = self.upsamplers[i - 1](hidden_states)
            hidden_states = stage(hidden_states)
        return hidden_states

    def forward(self, codes: Tensor) -> Tensor:
        """See the class."""
        return self.out(self.features(codes))


__all__ = ["LGQDecoder", "LGQEncoder"]
