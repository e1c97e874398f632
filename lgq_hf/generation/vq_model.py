"""An LGQ model behind the interface of diffusers' `VQModel`, for code that was written for that class.

Shapes: B pictures, H W pixels, h w latent grid, C channels of a code, K codes.
"""

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from torch import Tensor, nn

from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor
from lgq_hf.tokenizer.modeling_lgq import LGQModel
from lgq_hf.tokenizer.quantizer_base import Quantizer, run_offload_hook, straight_through

_BETA = 0.25  # of VectorQuantizer's loss, as VQModel builds it


class VQModelAdapter(nn.Module):
    """Encodes and decodes as diffusers' `VQModel` does, with the weights of an `LGQModel`.

    `adapter.quantize(latents)` and `adapter.quantize.get_codebook_entry(indices, shape)` are those of diffusers'
    `VectorQuantizer`. It differs from a `VQModel` in this:
      * Callers' pictures are in `pixel_range` and the model's are normalised by the checkpoint's image processor: they
        are converted on the way in and out, and decoded ones are not clamped, as there.
      * `config.latent_channels` is C, as `config.vq_embed_dim` is: the channels of what `encode` returns and of codes,
        by which pipelines shape both. A `VQModel` may state two numbers, and then fails in them.
      * `config.lookup_from_codebook` is True and goes by what arrives: `decode(h, force_not_quantize=True)` looks
        integers up and takes floats for codes. `config.scaling_factor` is 1: latents are not scaled for tokens.
      * A pipeline does not save it: save the `LGQModel`, and put an adapter around it after loading.

    Args:
        model: a model with one token per position; it is held, not copied.
        image_processor: the checkpoint's own.
        pixel_range: what callers take for black and white: (-1, 1), or (0, 1) in aMUSEd's pipelines.

    Attributes:
        quantize: the lookup.
        config: the fields of `VQModel` that do not describe its blocks, by attribute and by key.

    Raises:
        ValueError: a model with several tokens per position, or a range whose ends are not in order.
    """

    def __init__(
        self, model: LGQModel, image_processor: LGQImageProcessor, pixel_range: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        settings = model.config
        if settings.tokens_per_position != 1:
            raise ValueError(
                f"expected a tokenizer with one token per position, got one with {settings.tokens_per_position}: "
                "VQModel has a single codebook of whole vectors (codebook_mode 'vector' or 'product')"
            )
        self._conversion = _conversion(image_processor, pixel_range)
        self.model = model
        self.quantize = _Quantize(model.quantizer)
        self.config = FrozenDict(
            in_channels=settings.in_channels,
            out_channels=settings.in_channels,
            block_out_channels=tuple(settings.stage_channels),
            layers_per_block=settings.num_res_blocks,
            latent_channels=settings.quantizer_dim,
            sample_size=settings.image_size,
            num_vq_embeddings=settings.codebook_size,
            vq_embed_dim=settings.quantizer_dim,
            scaling_factor=1.0,
            lookup_from_codebook=True,
            force_upcast=False,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder and decoder; the codebook stays fp32."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.model.device

    @run_offload_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Latents of pictures, not yet quantized.

        Args:
            x: (B,3,H,W) floating point in `pixel_range`; H and W multiples of the downsampling factor.
            return_dict: False for a plain tuple.

        Returns:
            `latents` (B,C,h,w), as the quantizer receives them.

        Raises:
            ValueError: as `LGQModel.encode`.
        """
        latents = self.model.latents(self._to_model(x))
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @run_offload_hook
    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """Pictures of latents, of codes or of tokens.

        Args:
            h: latents (B,C,h,w), which are quantized; with `force_not_quantize` codes (B,C,h,w), or integer tokens in
                [0, K), (B,h,w) or of any shape with `shape`.
            force_not_quantize: whether `h` holds codes or tokens.
            return_dict: False for a plain tuple.
            shape: (B,h,w,C) of the codes that integer `h` stands for.

        Returns:
            `sample` (B,3,H,W) in about `pixel_range`, not clamped, and `commit_loss`: the lookup's, a number, or
            zeros (B,) where nothing was quantized.

        Raises:
            ValueError: other shapes or dtypes, or tokens outside [0, K).
        """
        tokens, loss = not h.is_floating_point(), None
        if not force_not_quantize:
            if tokens:
                raise ValueError(f"h: expected latents, got {h.dtype}: decode tokens with force_not_quantize=True")
            codes, loss, _ = self.quantize(h)
        elif tokens:
            codes = self.quantize.get_codebook_entry(h, shape or (*h.shape, self.quantize.vq_embed_dim))
        else:
            codes = h
        loss = codes.new_zeros(len(codes)) if loss is None else loss
        sample = self._from_model(self.model.decode_codes(codes).decoded_pixel_values)
        # declared as FloatTensor, which a type checker does not take a Tensor for
        return DecoderOutput(sample=sample, commit_loss=loss) if return_dict else (sample, loss)  # type: ignore[arg-type]

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor, Tensor]:
        """`decode(encode(sample).latents)`; arguments and errors as there."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)

    def _to_model(self, pixels: Tensor) -> Tensor:
        if self._conversion is None or not pixels.is_floating_point():  # the model refuses integers
            return pixels
        scale, shift = self._conversion
        return pixels.float() * _per_channel(scale, pixels) + _per_channel(shift, pixels)

    def _from_model(self, pixels: Tensor) -> Tensor:
        if self._conversion is None:
            return pixels
        scale, shift = self._conversion
        return ((pixels.float() - _per_channel(shift, pixels)) / _per_channel(scale, pixels)).to(pixels.dtype)


class _Quantize:
    """The interface of diffusers' `VectorQuantizer`.

    No module of its own, so that the model's parameters have one name each.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self.n_e, self.vq_embed_dim = quantizer.codebook_size, quantizer.code_dim

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Looks latents (B,C,h,w) up.

        Returns:
            The codes (B,C,h,w) in the dtype of `z`, with the straight-through gradient; a loss, in training the
            quantizer's own, else VectorQuantizer's (1 + 0.25) mean |code - latent|^2; and (perplexity, encodings,
            indices) of which that class too fills only the last: (B*h*w,) int64 tokens, row by row.

        Raises:
            ValueError: another shape, or integers.
        """
        quantized = self._quantizer(z)
        codes, loss = quantized.codes, quantized.loss
        if loss is None:
            latents = z.to(codes.dtype)
            loss = (codes.detach() - latents).square().mean() + _BETA * (codes - latents.detach()).square().mean()
            codes = straight_through(codes, latents)
        return codes.to(z.dtype), loss, (None, None, quantized.image_tokens.flatten())

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """The codes of tokens: (B,C,h,w) where `shape` is (B,h,w,C), (*indices.shape,C) where it is None; fp32.

        Raises:
            ValueError: indices that are no integers in [0, K), or that do not fill `shape`.
        """
        if shape is None:
            return self._quantizer.codes_from_tokens(indices.reshape(1, 1, -1))[0, :, 0].T.reshape(*indices.shape, -1)
        batch, height, width, channels = shape if len(shape) == 4 else (0, 0, 0, 0)
        if channels != self.vq_embed_dim or batch * height * width != indices.numel():
            expected = f"shape: expected (B, h, w, {self.vq_embed_dim}) with B h w = {indices.numel()}"
            raise ValueError(f"{expected}, as there are indices, got {tuple(shape)}")
        return self._quantizer.codes_from_tokens(indices.reshape(batch, height, width))


def _conversion(
    processor: LGQImageProcessor, pixel_range: tuple[float, float]
) -> tuple[list[float], list[float]] | None:
    """Scale and shift of each channel, from callers' pixels to the model's; `None` where the two are the same."""
    black, white = pixel_range
    if not black < white:
        raise ValueError(f"pixel_range: expected (black, white) with black < white, got {tuple(pixel_range)}")
    peak = 255 * processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    means, stds = (torch.tensor(values, dtype=torch.float64).expand(3) for values in (mean, std))
    scale = peak / ((white - black) * stds)
    shift = (-black * peak / (white - black) - means) / stds
    same = bool((scale == 1).all()) and bool((shift == 0).all())
    return None if same else (scale.tolist(), shift.tolist())


def _per_channel(values: list[float], pixels: Tensor) -> Tensor:
    """(3,1,1) fp32 beside the pixels. Made at each call: as a buffer it would lose digits in `half()`."""
    return torch.tensor(values, dtype=torch.float32, device=pixels.device).reshape(-1, 1, 1)


__all__ = ["VQModelAdapter"]
