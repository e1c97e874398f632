"""Encoder and decoder of the VQGAN family: one net, and the places where its members differ.

    taming, IBQ, LlamaGen, Janus, diffusers, aMUSEd   the defaults of `LGQConfig`
    MaskGIT          no biases, average pooling, shortcut on the hidden state, no attention
    Open-MAGVIT2     no biases, padded strided convolutions, depth to space, group norms that follow the codes
    SimVQ            the same without those group norms

After CompVis/taming-transformers, FoundationVision/LlamaGen, TencentARC/SEED-Voken, youngsheen/SimVQ and
huggingface/open-muse.

Shapes: B images, H W pixels, h w latent grid (h = H / f), C latent channels, L levels (0 is full resolution).
"""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbone_lgq import LGQGroupNorm
from .configuration_lgq import LGQConfig


def _group_norm(channels: int, config: LGQConfig) -> LGQGroupNorm:
    return LGQGroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)


class VQGANResnetBlock(GradientCheckpointingLayer):
    """GroupNorm, SiLU, 3x3 convolution, twice, plus the input: (B, in, H, W) -> (B, out, H, W).

    Where the widths differ, a 1x1 convolution fits the input; with `shortcut_on_hidden` it is applied to the result of
    the second convolution instead, and the input is left out (MaskGIT).
    """

    def __init__(self, in_channels: int, out_channels: int, config: LGQConfig) -> None:
        super().__init__()
        bias = config.conv_bias
        self.shortcut_on_hidden = config.shortcut_on_hidden
        self.norm1 = _group_norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = _group_norm(out_channels, config)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            shortcut_in = out_channels if self.shortcut_on_hidden else in_channels
            self.shortcut = nn.Conv2d(shortcut_in, out_channels, 1, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See the class."""
        residual = self.conv1(F.silu(self.norm1(hidden_states)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        if self.shortcut is None:
            return hidden_states + residual
        return self.shortcut(residual if self.shortcut_on_hidden else hidden_states) + residual


class VQGANAttentionBlock(GradientCheckpointingLayer):
    """Self-attention with one head over the grid positions, plus the input: (B, D, h, w) -> (B, D, h, w)."""

    def __init__(self, channels: int, config: LGQConfig) -> None:
        super().__init__()
        self.norm = _group_norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See the class."""
        normed = self.norm(hidden_states)
        # contiguous: fused attention, without the (h*w)^2 matrix, takes channels in the last dimension only
        q, k, v = (layer(normed).flatten(2).mT[:, None].contiguous() for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return hidden_states + self.proj(attended.reshape(hidden_states.shape))


class VQGANBlocks(nn.Module):
    """Residual blocks of one resolution; `attentions` gives the numbers of those that attention follows."""

    def __init__(self, widths: list[int], attentions: list[int], config: LGQConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VQGANResnetBlock(*pair, config) for pair in itertools.pairwise(widths))
        self.attentions = nn.ModuleDict({str(i): VQGANAttentionBlock(widths[i + 1], config) for i in attentions})

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, widths[0], h, w) -> (B, widths[-1], h, w)."""
        for i, block in enumerate(self.blocks):
            hidden_states = block(hidden_states)
            if str(i) in self.attentions:
                hidden_states = self.attentions[str(i)](hidden_states)
        return hidden_states


def _stage(level: int, in_channels: int, out_channels: int, blocks: int, config: LGQConfig) -> VQGANBlocks:
    attentions = list(range(blocks)) if level in config.attention_levels else []
    return VQGANBlocks([in_channels] + [out_channels] * blocks, attentions, config)


def _mid(channels: int, config: LGQConfig) -> VQGANBlocks:
    """Between the last stage and the latents; attention, if any, follows the first block."""
    return VQGANBlocks([channels] * (config.num_mid_blocks + 1), [0] if config.mid_attention else [], config)


class VQGANDownsampler(nn.Module):
    """Halves height and width: (B, D, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, channels: int, config: LGQConfig) -> None:
        super().__init__()
        self.kind = config.downsample
        if self.kind != "avg_pool":
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if self.kind == "conv" else 0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See the class."""
        if self.kind == "avg_pool":
            return F.avg_pool2d(hidden_states, 2)
        if self.kind == "asymmetric_conv":
            hidden_states = F.pad(hidden_states, (0, 1, 0, 1))
        return self.conv(hidden_states)


class VQGANUpsampler(nn.Module):
    """Doubles height and width: (B, D, H, W) -> (B, D, 2H, 2W)."""

    def __init__(self, channels: int, config: LGQConfig) -> None:
        super().__init__()
        self.depth_to_space = config.upsample == "depth_to_space"
        self.conv = nn.Conv2d(channels, 4 * channels if self.depth_to_space else channels, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See the class."""
        if not self.depth_to_space:
            return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))
        # position in the 2 x 2 block before channel (ONNX's DCR order), where `pixel_shuffle` has channel first
        blocks = self.conv(hidden_states).unflatten(1, (2, 2, -1))
        return blocks.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class VQGANAdaptiveNorm(nn.Module):
    """Group norm whose scale and shift follow the codes (Open-MAGVIT2).

    scale = gamma(sqrt(var + 1e-6)) and shift = beta(mean), with each code channel's mean and unbiased variance over
    the grid; the norm itself is not affine.
    """

    def __init__(self, channels: int, config: LGQConfig) -> None:
        super().__init__()
        self.norm = LGQGroupNorm(config.norm_num_groups, channels, eps=config.norm_eps, affine=False)
        self.gamma = nn.Linear(config.latent_channels, channels)
        self.beta = nn.Linear(config.latent_channels, channels)

    def forward(self, hidden_states: Tensor, codes: Tensor) -> Tensor:
        """(B, D, H, W) and codes (B, C, h, w) -> (B, D, H, W)."""
        codes = codes.flatten(2)
        positions = codes.shape[2]
        mean = codes.mean(2)
        variance = (codes - mean[..., None]).square().mean(2) * (positions / (positions - 1))
        scale = self.gamma((variance + 1e-6).sqrt())
        shift = self.beta(mean)
        return self.norm(hidden_states) * scale[..., None, None] + shift[..., None, None]


class VQGANEncoder(nn.Module):
    """`pixel_values` (B, 3, H, W) -> latents (B, C, H/f, W/f)."""

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        widths = config.stage_channels
        stem = config.stem_channels or widths[0]
        self.stem = nn.Conv2d(config.in_channels, stem, 3, padding=1, bias=config.conv_bias)
        self.stages = nn.ModuleList(
            _stage(level, fine, coarse, config.num_res_blocks, config)
            for level, (fine, coarse) in enumerate(itertools.pairwise([stem, *widths]))
        )
        self.downsamplers = nn.ModuleList(VQGANDownsampler(width, config) for width in widths[:-1])
        self.mid = _mid(widths[-1], config)
        self.norm_out = _group_norm(widths[-1], config)
        kernel = config.encoder_out_kernel
        self.to_emb = nn.Conv2d(widths[-1], config.latent_channels, kernel, padding=kernel // 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See the class."""
        hidden_states = self.stem(pixel_values)
        for i, stage in enumerate(self.stages):
            if i > 0:
                hidden_states = self.downsamplers[i - 1](hidden_states)
            hidden_states = stage(hidden_states)
        return self.to_emb(F.silu(self.norm_out(self.mid(hidden_states))))


class VQGANDecoder(nn.Module):
    """codes (B, C, h, w) -> picture (B, 3, h*f, w*f) in the pixel space of the encoder's input.

    `stages` run from the lowest resolution to full resolution. Training weighs the terms of its loss at the last
    layer, `out`.
    """

    def __init__(self, config: LGQConfig) -> None:
        super().__init__()
        widths = config.stage_channels[::-1]
        blocks = config.num_res_blocks + config.decoder_extra_block
        last = len(widths) - 1
        self.from_emb = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = _mid(widths[0], config)
        pairs = list(itertools.pairwise([widths[0], *widths]))
        self.stages = nn.ModuleList(
            _stage(last - i, coarse, fine, blocks, config) for i, (coarse, fine) in enumerate(pairs)
        )
        self.upsamplers = nn.ModuleList(VQGANUpsampler(width, config) for width in widths[:-1])
        self.adaptive_norms: nn.ModuleList | None = None
        if config.adaptive_group_norm:
            self.adaptive_norms = nn.ModuleList(VQGANAdaptiveNorm(coarse, config) for coarse, _ in pairs)
        self.norm_out = _group_norm(widths[-1], config)
        self.out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def features(self, codes: Tensor) -> Tensor:
        """What `out` makes the picture of: (B, C, h, w) -> (B, b, h*f, w*f).

        Raises:
            ValueError: for a 1 x 1 grid with `adaptive_group_norm`, which needs a variance over the grid.
        """
        if self.adaptive_norms is not None and codes.shape[2] * codes.shape[3] < 2:
            raise ValueError(
                "expected a grid of at least two positions, got 1 x 1: adaptive_group_norm takes the codes' unbiased "
                "variance over the grid. Use a larger picture"
            )
        hidden_states = self.mid(self.from_emb(codes))
        for i, stage in enumerate(self.stages):
            if i > 0:
                hidden_states = self.upsamplers[i - 1](hidden_states)
            if self.adaptive_norms is not None:
                hidden_states = self.adaptive_norms[i](hidden_states, codes)
            hidden_states = stage(hidden_states)
        return F.silu(self.norm_out(hidden_states))

    def forward(self, codes: Tensor) -> Tensor:
        """See the class."""
        return self.out(self.features(codes))


__all__ = ["VQGANDecoder", "VQGANEncoder"]
