"""Configuration of the LGQ image tokenizer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# what transformers adds to a config.json
_BOOKKEEPING = frozenset({"auto_map", "model_type", "torch_dtype", "transformers_version"})

# fields that one backbone reads
_READ_BY = {
    "lgq": (
        *("bottleneck_attention", "num_attention_heads", "legacy_decoder", "latent_group_norm"),
        "decoder_num_res_blocks",
    ),
    "vqgan": (
        *("stem_channels", "decoder_extra_block", "num_mid_blocks", "attention_levels", "mid_attention"),
        *("norm_num_groups", "norm_eps", "conv_bias", "downsample", "upsample", "shortcut_on_hidden"),
        *("adaptive_group_norm", "encoder_out_kernel"),
    ),
}
# fields that some quantizers read, and which
_READ_BY_QUANTIZER: dict[str, tuple[str, ...]] = {
    "codebook_mode": ("lgq",),
    "levels": ("lgq", "fsq"),
    "learn_widths": ("lgq",),
    "temperature": ("lgq",),
    "learn_temperature": ("lgq",),
    "straight_through": ("lgq",),
    "commitment_weight": ("lgq", "vq", "ibq", "simvq", "lfq", "bsq"),
    "lambda_peak": ("lgq",),
    "lambda_usage": ("lgq",),
    "lambda_floor": ("lgq",),
    "min_perplexity": ("lgq",),
    "codebook_update": ("vq",),
    "codebook_decay": ("lgq", "vq"),
    "dead_code_threshold": ("lgq", "vq"),
    "rotation_trick": ("vq",),
    "fsq_bound": ("fsq",),
    "learn_projection": ("simvq",),
    "entropy_weight": ("ibq", "lfq", "bsq"),
    "entropy_temperature": ("ibq", "lfq", "bsq"),
    "entropy_bits": ("lfq", "bsq"),
}
_DISTANCES = {
    "lgq": ("sq_l2", "l2", "cosine", "dot"),
    "vq": ("sq_l2", "cosine"),
    "fsq": ("sq_l2",),
    "ibq": ("dot",),
    "simvq": ("sq_l2",),
    "lfq": ("sq_l2",),
    "bsq": ("sq_l2",),
}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@strict
class LGQConfig(PreTrainedConfig):
    r"""
    Everything that fixes the shape and the behaviour of an [`LGQModel`]. Defaults are the published 256 px model.

    Args:
        backbone: encoder and decoder family: `"lgq"` is the published one, `"vqgan"` that of taming-transformers,
            LlamaGen, diffusers and others (`backbone_vqgan.py`), without a norm in front of the quantizer.
        in_channels: channels of `pixel_values`, and of the picture that the decoder returns.
        base_channels: width *b* of the first stage.
        channel_multiplier: width of each stage in units of *b*, from full resolution downwards. Its length fixes the
            downsampling factor: `2 ** (len - 1)`. `[1, 2, 2, 2, 2]` is the published f16 model.
        num_res_blocks: residual blocks per stage.
        decoder_num_res_blocks: residual blocks of each of the `lgq` decoder's stages, in the order of
            `channel_multiplier`; `None`: `num_res_blocks` in all of them (published).
        bottleneck_attention: self-attention after the residual blocks of the last stage.
        num_attention_heads: heads of that attention; fewer where the width is under four channels a head
            (published) or not a multiple of them.
        legacy_decoder: decoder stages below full resolution have `max(32, latent_channels)` channels instead of the
            encoder's (checkpoints of early releases).
        latent_group_norm: a group norm over the picture behind the encoder (published). It takes away mean and spread
            of each group of latent channels, so that a picture's brightness has to be told by differences within
            groups: without it nothing is lost, and the norm of each token's latent vector that follows stays.
        stem_channels: channels of the `vqgan` encoder's first convolution; `None`: the first stage's width.
        decoder_extra_block: decoder stages have one residual block more than the encoder's.
        num_mid_blocks: residual blocks between the last stage and the latents, and again in front of the decoder.
        attention_levels: stages of the `vqgan` backbone, 0 at full resolution, with self-attention after each block.
        mid_attention: self-attention after the first of the middle blocks.
        norm_num_groups: groups of each group norm of the `vqgan` backbone.
        norm_eps: what those norms add to the variance.
        conv_bias: biases in the residual blocks' convolutions and in the encoder's first one.
        downsample: `"asymmetric_conv"` (stride 2, padded on the right and at the bottom), `"conv"` (stride 2, padded
            all around) or `"avg_pool"`.
        upsample: `"nearest_conv"`, or `"depth_to_space"` behind a convolution to four times the channels.
        shortcut_on_hidden: see [`VQGANResnetBlock`].
        adaptive_group_norm: see [`VQGANAdaptiveNorm`].
        encoder_out_kernel: side of the encoder's last convolution: 3 or 1.
        latent_channels: channels *C* that the encoder returns and the decoder takes.
        code_dim: dimension of a code where it differs from `latent_channels`: 1x1 convolutions then lead into the
            quantizer and out of it. `None`: codes live in the encoder's latent space, without projections.
        quantizer: `"lgq"`, or what others have: `"vq"` (nearest code, by `distance` `"sq_l2"` or `"cosine"`), `"fsq"`
            (each channel rounded to one of `levels[i]` values), `"simvq"` (nearest code of a projected table),
            `"ibq"` (largest scalar product), `"lfq"` (signs: K is a power of two, and log2(K) channels make a token),
            `"bsq"` (signs on the unit sphere).
        codebook_mode: `"vector"`: one codebook of K codes over the whole latent vector (the paper's). `"per_channel"`:
            K scalar bins for each channel, one token per channel. `"product"`: `levels[i]` scalar bins for channel i;
            the token is the mixed-radix number of the bins, last channel fastest.
        codebook_size: K, the number of different tokens (per channel in `"per_channel"` mode).
        levels: bins of each channel in `"product"` mode and of `"fsq"`, with `prod(levels) == codebook_size`; else
            `None`.
        distance: what a code is compared by; see `assignment.py`.
        learn_widths: a learned width per code, by which its distance is divided.
        temperature: softmax temperature tau at construction; afterwards it lives in the checkpoint as a buffer.
        learn_temperature: a learned factor on tau, 1 at the start.
        straight_through: `"soft"` (published) or `"identity"`; see `quantizer_lgq.py`.
        commitment_weight: weight of the pull of latents towards their codes; for `"lgq"` with `"identity"` only.
        lambda_peak: weight of the peakedness term.
        lambda_usage: weight of the usage term (published name: lambda_bins).
        lambda_floor: weight of the floor under the soft perplexity.
        min_perplexity: that floor, in codes (published name: p_min).
        codebook_update: how the table of `"vq"` learns: `"gradient"` of a codebook term, or `"ema"`, a moving average
            of the latents of each code.
        codebook_decay: of that average, and of the count of a code's latents that `dead_code_threshold` looks at.
        dead_code_threshold: a code whose moving share of the latents is below this times 1 / K, that of even use, is
            moved onto a latent of the batch (of `"vq"`, and of `"lgq"` in `"vector"` mode); 0: never.
        rotation_trick: `"vq"`: the decoder's gradient reaches latents rotated and scaled as these would have to be to
            become their codes (arXiv 2410.06424), instead of unchanged.
        fsq_bound: squashes a channel of `"fsq"`: `"tanh"` (published) or `"sigmoid"`, 2 sigmoid(1.6 x) - 1 (iFSQ).
        learn_projection: `"simvq"`: the table is fixed and seen through a learned linear map; `False`: the table is
            their product, as in converted checkpoints, and does not train.
        entropy_weight: weight of the entropy term: a row's mean entropy less that of the mean assignment, in nats.
        entropy_temperature: softmax temperature in that term.
        entropy_bits: `"lfq"` and `"bsq"`: the term counts codes of groups of so many channels, which a token's bits
            are divided into, and adds up; `None`: all bits of a token at once.
        image_size: side in pixels of the square pictures that the model was trained on. Any size that the
            downsampling factor divides is accepted; this one only serves to state tokens per picture.
        converted_from: what a converted checkpoint was made of (format, file, SHA-256, licence, weights); else `None`.
    """

    model_type = "lgq"
    attribute_map = {"num_embeddings": "codebook_size"}

    backbone: Literal["lgq", "vqgan"] = "lgq"
    in_channels: int = 3
    base_channels: int = 128
    channel_multiplier: list[int] | tuple[int, ...] = (1, 2, 2, 2, 2)
    num_res_blocks: int = 2
    decoder_num_res_blocks: list[int] | tuple[int, ...] | None = None
    bottleneck_attention: bool = True
    num_attention_heads: int = 4
    legacy_decoder: bool = False
    latent_group_norm: bool = True
    stem_channels: int | None = None
    decoder_extra_block: bool = True
    num_mid_blocks: int = 2
    attention_levels: list[int] | tuple[int, ...] = ()
    mid_attention: bool = True
    norm_num_groups: int = 32
    norm_eps: float | int = 1e-6
    conv_bias: bool = True
    downsample: Literal["asymmetric_conv", "conv", "avg_pool"] = "asymmetric_conv"
    upsample: Literal["nearest_conv", "depth_to_space"] = "nearest_conv"
    shortcut_on_hidden: bool = False
    adaptive_group_norm: bool = False
    encoder_out_kernel: Literal[1, 3] = 3
    latent_channels: int = 64
    code_dim: int | None = None
    quantizer: Literal["lgq", "vq", "fsq", "ibq", "simvq", "lfq", "bsq"] = "lgq"
    codebook_mode: Literal["vector", "per_channel", "product"] = "vector"
    codebook_size: int = 16384
    levels: list[int] | tuple[int, ...] | None = None
    distance: Literal["sq_l2", "l2", "cosine", "dot"] = "sq_l2"
    learn_widths: bool = False
    temperature: float | int = 1.0
    learn_temperature: bool = False
    straight_through: Literal["soft", "identity"] = "soft"
    commitment_weight: float | int = 1.0
    lambda_peak: float | int = 0.005
    lambda_usage: float | int = 0.005
    lambda_floor: float | int = 0.0
    min_perplexity: float | int = 0.0
    codebook_update: Literal["gradient", "ema"] = "gradient"
    codebook_decay: float | int = 0.99
    dead_code_threshold: float | int = 0.0
    rotation_trick: bool = False
    fsq_bound: Literal["tanh", "sigmoid"] = "tanh"
    learn_projection: bool = False
    entropy_weight: float | int = 0.0
    entropy_temperature: float | int = 0.01
    entropy_bits: int | None = None
    image_size: int = 256
    converted_from: dict[str, str] | None = None

    @property
    def stage_channels(self) -> list[int]:
        """Channels of each stage, from full resolution downwards."""
        return [self.base_channels * multiplier for multiplier in self.channel_multiplier]

    @property
    def has_attention(self) -> bool:
        """Whether encoder and decoder attend anywhere."""
        return (
            self.bottleneck_attention if self.backbone == "lgq" else self.mid_attention or bool(self.attention_levels)
        )

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
        """Tokens per grid position: 1, or one per channel in `"per_channel"` mode, or one per group of signs."""
        if self.quantizer in ("lfq", "bsq"):
            return self.quantizer_dim // max(1, self.codebook_size.bit_length() - 1)
        return self.quantizer_dim if self.codebook_mode == "per_channel" else 1

    @property
    def num_image_tokens(self) -> int:
        """Tokens of an `image_size` x `image_size` picture."""
        return math.ceil(self.image_size / self.spatial_downsample_factor) ** 2 * self.tokens_per_position

    @property
    def bits_per_pixel(self) -> float:
        """log2(K) bits per token, spread over the pixels that the token stands for."""
        return self.tokens_per_position * math.log2(self.codebook_size) / self.spatial_downsample_factor**2

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "LGQConfig":
        """As in the base class. What another version of this package wrote and nothing here reads gives a warning:
        unknown fields, and values of fields that the checkpoint's backbone and quantizer do not read.
        """
        fields = {field.name for field in dataclasses.fields(cls)} | cls.attribute_map.keys()
        unknown = sorted(name for name in config_dict.keys() - fields - _BOOKKEEPING if not name.startswith("_"))
        unread = [
            name
            for name in _without_effect(_DEFAULTS | config_dict)
            if name in config_dict and _plain(config_dict[name]) != _plain(_DEFAULTS[name])
        ]
        if unknown or unread:
            logger.warning(f"config.json has fields that this model does not read: {[*unknown, *unread]}")
        return super().from_dict({k: v for k, v in config_dict.items() if k not in unread}, **kwargs)

    def validate_architecture(self) -> None:
        """Refuses sizes that no network has and fields that contradict each other (`ValueError`)."""
        sizes = ("in_channels", "base_channels", "num_res_blocks", "num_attention_heads", "latent_channels")
        for name in (*sizes, "codebook_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.code_dim is not None and self.code_dim < 1:
            raise ValueError(f"code_dim must be at least 1 or None, got {self.code_dim}")
        if self.image_size > 2**16:
            raise ValueError(f"image_size is the side of a picture in pixels, at most {2**16}, got more")
        if not self.channel_multiplier or min(self.channel_multiplier) < 1:
            raise ValueError(f"channel_multiplier needs a positive width per stage, got {self.channel_multiplier}")
        for name, needed in _without_effect(vars(self)).items():
            value, default = getattr(self, name), _DEFAULTS[name]
            if _plain(value) != _plain(default):
                raise ValueError(f"{name}={value!r} does nothing without {needed}: leave it at {default!r}")
        if (blocks := self.decoder_num_res_blocks) is not None and (
            len(blocks) != len(self.channel_multiplier) or min(blocks) < 1
        ):
            raise ValueError(
                f"decoder_num_res_blocks needs 1 or more for each of the {len(self.channel_multiplier)} stages of "
                f"channel_multiplier, got {blocks}"
            )
        if self.backbone == "vqgan":
            self._validate_vqgan()

    def _validate_vqgan(self) -> None:
        for name in ("stem_channels", "num_mid_blocks", "norm_num_groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.norm_eps < math.inf:
            raise ValueError(f"norm_eps must be positive and finite, got {self.norm_eps}")
        if uneven := sorted(
            w for w in {*self.stage_channels, *filter(None, [self.stem_channels])} if w % self.norm_num_groups
        ):
            raise ValueError(f"norm_num_groups={self.norm_num_groups} does not divide the stage widths {uneven}")
        stages = range(len(self.channel_multiplier))
        if list(self.attention_levels) != sorted(set(self.attention_levels)):
            raise ValueError(f"attention_levels must rise and not repeat, got {self.attention_levels}")
        if outside := [level for level in self.attention_levels if level not in stages]:
            raise ValueError(f"attention_levels must lie in 0..{stages[-1]}, one per stage, got {outside}")

    def validate_quantizer(self) -> None:
        """Refuses quantizer fields that contradict each other or lie out of range (`ValueError`)."""
        if self.distance not in _DISTANCES[self.quantizer]:
            expected = " or ".join(f"'{distance}'" for distance in _DISTANCES[self.quantizer])
            raise ValueError(f"quantizer='{self.quantizer}' has distance={expected}, got '{self.distance}'")
        if self.quantizer in ("lfq", "bsq"):
            self._validate_signs()
        if self.codebook_mode == "product" or self.quantizer == "fsq":
            self._validate_levels()
        elif self.levels is not None:
            raise ValueError(
                f"levels={self.levels} needs codebook_mode='product' or quantizer='fsq', got '{self.codebook_mode}'"
            )
        if self.codebook_mode != "vector" and self.distance != "sq_l2":
            raise ValueError(
                f"codebook_mode='{self.codebook_mode}' compares scalars and has distance='sq_l2' only, "
                f"got '{self.distance}'"
            )
        if self.codebook_mode == "product" and self.learn_widths:
            raise ValueError("learn_widths is not defined for codebook_mode='product': set learn_widths=False")
        self._validate_numbers()

    def _validate_numbers(self) -> None:
        for name in ("temperature", "entropy_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        not_negative = ("commitment_weight", "lambda_peak", "lambda_usage", "lambda_floor", "min_perplexity")
        for name in (*not_negative, "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        for name, unit in (("codebook_decay", ""), ("dead_code_threshold", ": a share of even use and no count")):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}{unit}")
        if self.quantizer == "lgq" and self.straight_through == "soft" and self.commitment_weight != 1:
            raise ValueError(
                f"commitment_weight={self.commitment_weight} needs straight_through='identity': the soft estimator "
                "has one term for codes and latents together"
            )
        if self.dead_code_threshold and self.codebook_mode != "vector":
            raise ValueError(
                f"dead_code_threshold={self.dead_code_threshold} needs codebook_mode='vector', got "
                f"'{self.codebook_mode}'"
            )
        if self.codebook_update == "ema" and self.distance != "sq_l2":
            raise ValueError(f"codebook_update='ema' averages latents and has distance='sq_l2', got '{self.distance}'")
        if self.dead_code_threshold and self.learn_widths:
            raise ValueError("dead_code_threshold moves codes and leaves their widths: set learn_widths=False")

    def _validate_signs(self) -> None:
        name, bits = self.quantizer, self.codebook_size.bit_length() - 1
        if self.codebook_size != 1 << bits or not 1 <= bits <= 62:
            raise ValueError(
                f"quantizer='{name}' has codebook_size = 2 ** bits with 1 to 62 bits, got {self.codebook_size}"
            )
        if self.quantizer_dim % bits:
            raise ValueError(
                f"quantizer='{name}' with codebook_size={self.codebook_size} makes a token of {bits} channels, which "
                f"do not divide the {self.quantizer_dim} channels of the latents"
            )
        group = bits if self.entropy_bits is None else self.entropy_bits
        if group < 1 or bits % group:
            raise ValueError(f"entropy_bits must divide the {bits} bits of a token, got {group}")
        if self.entropy_weight and group > 20:
            raise ValueError(
                f"the entropy term counts 2 ** {group} codes for each row: set entropy_bits to a divisor of {bits} "
                "that is at most 20"
            )

    def _validate_levels(self) -> None:
        levels = self.levels
        which = "quantizer='fsq'" if self.quantizer == "fsq" else "codebook_mode='product'"
        if not levels or min(levels) < 1 + (self.quantizer == "fsq"):
            least = "levels of at least 2" if self.quantizer == "fsq" else "positive levels"
            raise ValueError(f"{which} needs {least}, one per channel, got {levels}")
        if self.quantizer == "fsq" and max(levels) > 1000:
            raise ValueError(f"quantizer='fsq' has up to 1000 levels, by the published margin, got {levels}")
        if math.prod(levels) != self.codebook_size:
            raise ValueError(
                f"codebook_size must be the product of levels: prod({list(levels)}) = {math.prod(levels)}, "
                f"got codebook_size={self.codebook_size}"
            )
        if self.quantizer_dim != len(levels):
            raise ValueError(
                f"{which} quantizes one channel per level: {len(levels)} levels need "
                f"code_dim={len(levels)}, got {self.quantizer_dim}"
            )


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(LGQConfig)}


def _without_effect(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields that nothing reads where the others are as they are, and what each would need."""
    backbone, quantizer = fields["backbone"], fields["quantizer"]
    result = {
        name: f"backbone='{reader}'" for reader, names in _READ_BY.items() if reader != backbone for name in names
    }
    for name, readers in _READ_BY_QUANTIZER.items():
        if quantizer not in readers:
            result[name] = " or ".join(f"quantizer='{reader}'" for reader in readers)
    if not fields["dead_code_threshold"] and fields["codebook_update"] != "ema":
        result.setdefault("codebook_decay", "dead_code_threshold or codebook_update='ema'")
    if not fields["entropy_weight"]:
        result.setdefault("entropy_temperature", "entropy_weight")
        result.setdefault("entropy_bits", "entropy_weight")
    if quantizer == "simvq" and not fields["learn_projection"]:
        result["commitment_weight"] = "learn_projection, as a product of table and map does not train"
    return result


__all__ = ["LGQConfig"]
