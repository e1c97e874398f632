"""LGQ image tokenizer: pictures to a grid of integers and back.

Shapes: B images, H W pixels, f downsampling factor, h = H / f and w = W / f, C latent channels, K codes.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbone_lgq import LGQDecoder, LGQEncoder
from .backbone_vqgan import VQGANDecoder, VQGANEncoder
from .configuration_lgq import LGQConfig
from .quantizer_base import Quantizer, run_offload_hook
from .quantizer_bsq import BSQQuantizer
from .quantizer_fsq import FSQQuantizer
from .quantizer_ibq import IBQQuantizer
from .quantizer_lfq import LFQQuantizer
from .quantizer_lgq import build_lgq_quantizer
from .quantizer_simvq import SimVQQuantizer
from .quantizer_vq import VQQuantizer

BACKBONES: dict[str, tuple[type[LGQEncoder] | type[VQGANEncoder], type[LGQDecoder] | type[VQGANDecoder]]] = {
    "lgq": (LGQEncoder, LGQDecoder),
    "vqgan": (VQGANEncoder, VQGANDecoder),
}
QUANTIZERS: dict[str, Callable[[LGQConfig], Quantizer]] = {
    "lgq": build_lgq_quantizer,
    "vq": VQQuantizer,
    "fsq": FSQQuantizer,
    "ibq": IBQQuantizer,
    "simvq": SimVQQuantizer,
    "lfq": LFQQuantizer,
    "bsq": BSQQuantizer,
}


def _shorten(names: list[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


@dataclass
class LGQEncoderOutput(ModelOutput):
    """What [`LGQModel.encode`] returns.

    Args:
        image_tokens (`torch.LongTensor` of shape `(B, h, w)`, or `(B, h, w, C)` with per-channel bins):
            Tokens in [0, K).
        quantized_last_hidden_state (`torch.FloatTensor` of shape `(B, C, h, w)`, fp32):
            The codes that the tokens stand for, in the quantizer's space.
        last_hidden_state (`torch.FloatTensor` of shape `(B, C, h, w)`):
            Latents as the quantizer receives them.
        embedding_loss (`torch.FloatTensor`, scalar, in training only):
            The quantizer's loss, weighted.
        statistics (`dict[str, torch.Tensor]`, in training only):
            Detached terms of that loss, and the batch's perplexities and codebook usage.
    """

    image_tokens: Tensor | None = None
    quantized_last_hidden_state: Tensor | None = None
    last_hidden_state: Tensor | None = None
    embedding_loss: Tensor | None = None
    statistics: dict[str, Tensor] | None = None


@dataclass
class LGQDecoderOutput(ModelOutput):
    """What [`LGQModel.decode`] returns.

    Args:
        decoded_pixel_values (`torch.FloatTensor` of shape `(B, 3, h*f, w*f)`):
            The picture in the processor's normalised space; `LGQImageProcessor.postprocess` makes pictures of it.
    """

    decoded_pixel_values: Tensor | None = None


@dataclass
class LGQOutput(ModelOutput):
    """What [`LGQModel`] returns: fields as in [`LGQEncoderOutput`] and [`LGQDecoderOutput`]."""

    decoded_pixel_values: Tensor | None = None
    image_tokens: Tensor | None = None
    embedding_loss: Tensor | None = None
    statistics: dict[str, Tensor] | None = None


class LGQPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the model, strict loading, and initial weights."""

    config: LGQConfig
    base_model_prefix = "lgq"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "LGQResnetBlock",
        "LGQAttentionBlock",
        "LGQVectorQuantizer",
        "LGQScalarQuantizer",
        "VQGANResnetBlock",
        "VQGANAttentionBlock",
        "VQGANAdaptiveNorm",
        "VQQuantizer",
        "FSQQuantizer",
        "IBQQuantizer",
        "SimVQQuantizer",
    ]
    _keep_in_fp32_modules_strict = ["quantizer"]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As `PreTrainedModel.from_pretrained`, for a checkpoint that fills the model exactly.

        transformers only warns about tensors that are missing (and fills them at random) or that nothing uses.

        Raises:
            ValueError: where a tensor is missing, unexpected or (without `ignore_mismatched_sizes`) of another shape.
        """
        # mismatches are let through here because transformers names them in its log alone
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )
        model, info = loaded
        found = {"missing": sorted(info["missing_keys"]), "unexpected": sorted(info["unexpected_keys"])}
        if not ignore_mismatched_sizes:
            found["of another shape"] = [
                f"{name} {tuple(saved)} where the model has {tuple(expected)}"
                for name, saved, expected in sorted(info["mismatched_keys"])
            ]
        problems = [f"{len(names)} {what}: {_shorten(names)}" for what, names in found.items() if names]
        if problems:
            raise ValueError(
                f"the weights in '{pretrained_model_name_or_path}' do not fit the {cls.__name__} of their config. "
                f"Tensors {'; '.join(problems)}. Nothing was loaded: take config.json and weights from one "
                "save_pretrained, and convert checkpoints of other programs first"
            )
        for module in model.modules():  # transformers makes parameters anew, and all of them learn
            if isinstance(module, Quantizer):
                module.freeze()
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's own defaults for convolutions (transformers' N(0, 0.02) starts a deep conv net badly)."""
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(module.weight)[0])
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Quantizer):
            module.init_weights()


class LGQModel(LGQPreTrainedModel):
    """Turns pictures into tokens and tokens into pictures.

    `encode` gives tokens, `decode` takes them, and the model itself is `decode(encode(pixel_values))`. The lookup runs
    in fp32 under autocast and in a model cast to a lower precision.
    """

    def __init__(self, config: LGQConfig) -> None:
        super().__init__(config)
        encoder, decoder = BACKBONES[config.backbone]
        self.encoder = encoder(config)
        self.pre_quant_norm = nn.LayerNorm(config.latent_channels) if config.backbone == "lgq" else None
        if config.code_dim is not None:
            self.pre_quant = nn.Conv2d(config.latent_channels, config.code_dim, 1)
            self.post_quant = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        self.quantizer: Quantizer = QUANTIZERS[config.quantizer](config)
        self.decoder = decoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "pre_quant", None):  # copies the first channels, as published
            init.dirac_(module.weight)
            init.zeros_(module.bias)

    def latents(self, pixel_values: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the quantizer receives them; arguments and errors as in `encode`."""
        self._check_pixels(pixel_values)
        hidden_states = self.encoder(pixel_values.to(self.dtype))
        if self.pre_quant_norm is not None:
            hidden_states = self.pre_quant_norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return hidden_states if self.config.code_dim is None else self.pre_quant(hidden_states)

    @run_offload_hook
    def encode(self, pixel_values: Tensor) -> LGQEncoderOutput:
        """Pictures to tokens.

        Args:
            pixel_values: (B, 3, H, W), floating point, finite, normalised as the checkpoint's image processor does;
                H and W multiples of the downsampling factor. B may be 0.

        Returns:
            [`LGQEncoderOutput`]; `embedding_loss` and `statistics` in training mode only.

        Raises:
            ValueError: for another rank, channel count or dtype, a size that the factor does not divide, or
                pixels that are NaN or infinite (not looked for in training on an accelerator, and in compiled graphs).
            TypeError: for pixels that are not a tensor.
        """
        latents = self.latents(pixel_values)
        quantized = self.quantizer(latents)
        return LGQEncoderOutput(
            image_tokens=quantized.image_tokens,
            quantized_last_hidden_state=quantized.codes,
            last_hidden_state=latents,
            embedding_loss=quantized.loss,
            statistics=quantized.statistics or None,
        )

    @run_offload_hook
    def decode(self, image_tokens: Tensor) -> LGQDecoderOutput:
        """Tokens to pictures.

        Args:
            image_tokens: (B, h, w) integers in [0, K), or (B, h, w, C) with per-channel bins, of any grid size.

        Returns:
            [`LGQDecoderOutput`] with `decoded_pixel_values` (B, 3, h*f, w*f).

        Raises:
            ValueError: for a wrong rank, an empty grid, tokens that are not integers, or tokens outside [0, K).
            TypeError: for tokens that are not a tensor.
        """
        return self.decode_codes(self.quantizer.codes_from_tokens(image_tokens))

    @run_offload_hook
    def decode_codes(self, codes: Tensor) -> LGQDecoderOutput:
        """As `decode`, from codes (B, C, h, w) such as `quantized_last_hidden_state`; gradients pass through."""
        dim = self.config.quantizer_dim
        if codes.ndim != 4 or codes.shape[1] != dim or 0 in codes.shape[2:]:
            raise ValueError(f"expected codes (B, {dim}, h, w), h and w not 0, got shape {tuple(codes.shape)}")
        hidden_states = codes.to(self.dtype)
        if self.config.code_dim is not None:
            hidden_states = self.post_quant(hidden_states)
        return LGQDecoderOutput(decoded_pixel_values=self.decoder(hidden_states))

    def forward(self, pixel_values: Tensor) -> LGQOutput:
        """`decode(encode(pixel_values))`, with the straight-through gradient and the quantizer's loss in training.

        Arguments and errors as in `encode`.
        """
        encoded = self.encode(pixel_values)
        decoded = self.decode_codes(encoded.quantized_last_hidden_state)
        return LGQOutput(
            decoded_pixel_values=decoded.decoded_pixel_values,
            image_tokens=encoded.image_tokens,
            embedding_loss=encoded.embedding_loss,
            statistics=encoded.statistics,
        )

    def _check_pixels(self, pixel_values: Tensor) -> None:
        if not isinstance(pixel_values, Tensor):
            raise TypeError(
                f"expected pixel_values as a tensor, got {type(pixel_values).__name__}: the image processor returns "
                "one with return_tensors='pt'"
            )
        channels, factor = self.config.in_channels, self.config.spatial_downsample_factor
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"expected pixel_values (B, {channels}, H, W), got shape {tuple(pixel_values.shape)}")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"expected floating point pixel_values, got {pixel_values.dtype}: the image processor makes them"
            )
        height, width = pixel_values.shape[2:]
        if height < 1 or width < 1 or height % factor or width % factor:
            raise ValueError(
                f"pixel_values of {height} x {width} (height x width) cannot be divided into tokens of {factor} x "
                f"{factor} pixels: pad to {max(1, -(-height // factor)) * factor} x "
                f"{max(1, -(-width // factor)) * factor} with LGQImageProcessor(do_pad=True)"
            )
        if torch.compiler.is_compiling() or (self.training and pixel_values.device.type != "cpu"):
            return  # a step of training must not wait for the device; its loss shows what is not finite
        if not torch.isfinite(pixel_values).all():
            raise ValueError("pixel_values hold NaN or infinite values")


__all__ = ["LGQModel", "LGQPreTrainedModel"]
