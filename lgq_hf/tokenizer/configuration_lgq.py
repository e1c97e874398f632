"""Configuration of the LGQ image tokenizer."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class LGQConfig(PreTrainedConfig):
    r"""
    Everything that fixes the shape and the behaviour of an [`LGQModel`]. Defaults are the published 256 px model.

    Args:
        backbone: encoder and decoder family; `"lgq"` is the published one.
        in_channels: channels of `pixel_values`, and of the picture that the decoder returns.
        base_channels: width *b* of the first stage.
        channel_multiplier: width of each stage in units of *b*, from full resolution downwards. Its length fixes the
            downsampling factor: `2 ** (len - 1)`. `[1, 2, 2, 2, 2]` is the published f16 model.
        num_res_blocks: residual blocks per stage.
        bottleneck_attention: self-attention after the residual blocks of the last stage.
        num_attention_heads: heads of that attention; fewer where the width is under four channels a head
            (published) or not a multiple of them.
        legacy_decoder: decoder stages below full resolution have `max(32, latent_channels)` channels instead of the
            encoder's (checkpoints of early releases).
        latent_channels: channels *C* that the encoder returns and the decoder takes.
        code_dim: dimension of a code where it differs from `latent_channels`: 1x1 convolutions then lead into the
            quantizer and out of it. `None`: codes live in the encoder's latent space, without projections.
        quantizer: name of the quantizer.
        codebook_mode: `"vector"`: one codebook of K codes over the whole latent vector (the paper's). `"per_channel"`:
            K scalar bins for each channel, one token per channel. `"product"`: `levels[i]` scalar bins for channel i;
            the token is the mixed-radix number of the bins, last channel fastest.
        codebook_size: K, the number of different tokens (per channel in `"per_channel"` mode).
        levels: bins of each channel in `"product"` mode, with `prod(levels) == codebook_size`; else `None`.
        distance: what a code is compared by; see `assignment.py`.
        learn_widths: a learned width per code, by which its distance is divided.
        temperature: softmax temperature tau at construction; afterwards it lives in the checkpoint as a buffer.
        straight_through: `"soft"` (published) or `"identity"`; see `quantizer_lgq.py`.
        commitment_weight: weight of the pull of latents towards their codes, with `"identity"` only.
        lambda_peak: weight of the peakedness term.
        lambda_usage: weight of the usage term (published name: lambda_bins).
        lambda_floor: weight of the floor under the soft perplexity.
        min_perplexity: that floor, in codes (published name: p_min).
        image_size: side in pixels of the square pictures that the model was trained on. Any size that the
            downsampling factor divides is accepted; this one only serves to state tokens per picture.
    """

    model_type = "lgq"
    attribute_map = {"num_embeddings": "codebook_size"}

    backbone: Literal["lgq"] = "lgq"
    in_channels: int = 3
    base_channels: int = 128
    channel_multiplier: list[int] | tuple[int, ...] = (1, 2, 2, 2, 2)
    num_res_blocks: int = 2
    bottleneck_attention: bool = True
    num_attention_heads: int = 4
    legacy_decoder: bool = False
    latent_channels: int = 64
    code_dim: int | None = None
    quantizer: Literal["lgq"] = "lgq"
    codebook_mode: Literal["vector", "per_channel", "product"] = "vector"
    codebook_size: int = 16384
    levels: list[int] | tuple[int, ...] | None = None
    distance: Literal["sq_l2", "l2", "cosine", "dot"] = "sq_l2"
    learn_widths: bool = False
    temperature: float | int = 1.0
    straight_through: Literal["soft", "identity"] = "soft"
    commitment_weight: float | int = 1.0
    lambda_peak: float | int = 0.005
    lambda_usage: float | int = 0.005
    lambda_floor: float | int = 0.0
    min_perplexity: float | int = 0.0
    image_size: int = 256

    @property
    def spatial_downsample_factor(self) -> int:
        """Pixels per token along each side: 2 ** (number of stages - 1)."""
        return 2 ** (len(self.channel_multiplier) - 1)

    @property
    def quantizer_dim(self) -> int:
        """Channels of the latents that the quantizer receives."""
        return self.latent_channels if self.code_dim is None else self.code_dim

    @property
    def tokens_per_position(self) -> int:
        """Tokens per grid position: 1, or one per channel in `"per_channel"` mode."""
        return self.quantizer_dim if self.codebook_mode == "per_channel" else 1

    @property
    def num_image_tokens(self) -> int:
        """Tokens of an `image_size` x `image_size` picture."""
        return math.ceil(self.image_size / self.spatial_downsample_factor) ** 2 * self.tokens_per_position

    @property
    def bits_per_pixel(self) -> float:
        """log2(K) bits per token, spread over the pixels that the token stands for."""
        return self.tokens_per_position * math.log2(self.codebook_size) / self.spatial_downsample_factor**2

    def validate_architecture(self) -> None:
        """Refuses sizes that no network has and fields that contradict each other (`ValueError`)."""
        sizes = ("in_channels", "base_channels", "num_res_blocks", "num_attention_heads", "latent_channels")
        for name in (*sizes, "codebook_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.code_dim is not None and self.code_dim < 1:
            raise ValueError(f"code_dim must be at least 1 or None, got {self.code_dim}")
        if not self.channel_multiplier or min(self.channel_multiplier) < 1:
            raise ValueError(f"channel_multiplier needs a positive width per stage, got {self.channel_multiplier}")

    def validate_quantizer(self) -> None:
        """Refuses quantizer fields that contradict each other or lie out of range (`ValueError`)."""
        if self.codebook_mode == "product":
            self._validate_levels()
        elif self.levels is not None:
            raise ValueError(f"levels={self.levels} needs codebook_mode='product', got '{self.codebook_mode}'")
        if self.codebook_mode != "vector" and self.distance != "sq_l2":
            raise ValueError(
                f"codebook_mode='{self.codebook_mode}' compares scalars and has distance='sq_l2' only, "
                f"got '{self.distance}'"
            )
        if self.codebook_mode == "product" and self.learn_widths:
            raise ValueError("learn_widths is not defined for codebook_mode='product': set learn_widths=False")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        for name in ("commitment_weight", "lambda_peak", "lambda_usage", "lambda_floor", "min_perplexity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        if self.straight_through == "soft" and self.commitment_weight != 1:
            raise ValueError(
                f"commitment_weight={self.commitment_weight} needs straight_through='identity': the soft estimator "
                "has one term for codes and latents together"
            )

    def _validate_levels(self) -> None:
        levels = self.levels
        if not levels or min(levels) < 1:
            raise ValueError(f"codebook_mode='product' needs positive levels, one per channel, got {levels}")
        if math.prod(levels) != self.codebook_size:
            raise ValueError(
                f"codebook_size must be the product of levels: prod({list(levels)}) = {math.prod(levels)}, "
                f"got codebook_size={self.codebook_size}"
            )
        if self.quantizer_dim != len(levels):
            raise ValueError(
                f"codebook_mode='product' quantizes one channel per level: {len(levels)} levels need "
                f"code_dim={len(levels)}, got {self.quantizer_dim}"
            )


__all__ = ["LGQConfig"]
