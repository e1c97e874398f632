"""Batches through the model and back to bytes, as a user would save the pictures.

Shapes: n views, B views with those that fill up a batch, H W pixels (padded), a b pixels of a view, h w grid, N
latent vectors of C channels, G tokens for each position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.cost import Clock
from lgq_hf.evaluation.pictures import Batch
from lgq_hf.evaluation.settings import Settings
from lgq_hf.tokens.encoding import Encoder, Encoding


@dataclass(frozen=True)
class Reconstructed:
    """What became of a batch; the first n of B rows are its views, the others fill it up.

    Attributes:
        numbers: n, of the views.
        originals: (B,3,a,b) uint8.
        pictures: (B,3,a,b) uint8, clamped to the range of a picture and rounded.
        image_tokens: (n,h,w) or (n,h,w,G) int64.
        latents_NC: of all n h w positions (N,C) fp32, as the lookup compares them with codes.
        codes_NC: (N,C) fp32.
    """

    numbers: list[int]
    originals: Tensor
    pictures: Tensor
    image_tokens: Tensor
    latents_NC: Tensor
    codes_NC: Tensor


class Reconstructor:
    """A checkpoint's encoder, lookup and decoder, for batches of bytes.

    Args:
        checkpoint: the model; in evaluation mode, of any dtype.
        settings: how pictures are batched.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self.model, self.processor, self.device = checkpoint.model.eval(), checkpoint.processor, checkpoint.device
        self._fill_to = settings.batch_size if settings.preprocessing.size is not None else 1
        self._encoder = Encoder(checkpoint, Encoding(settings.batch_size))
        self.clock = Clock(self.device)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Reconstructed:
        """Encodes and decodes; `clock` measures that alone, with the views that fill up the batch."""
        count = len(batch.pixels)
        pixels = batch.pixels.to(self.device, non_blocking=True)
        if count < self._fill_to:
            pixels = torch.cat([pixels, pixels[-1:].expand(self._fill_to - count, -1, -1, -1)])
        with self.clock.around(len(pixels)):
            encoded = self.model.encode(self._encoder.pixel_values(pixels))
            decoded = self.model.decode_codes(encoded.quantized_last_hidden_state).decoded_pixel_values
        height, width = batch.size
        pictures = self.processor.postprocess(decoded, [batch.size] * len(pixels), output_type="pt")
        quantizer = self.model.quantizer
        latents, codes = encoded.last_hidden_state[:count], encoded.quantized_last_hidden_state[:count]
        return Reconstructed(
            batch.numbers,
            pixels[:, :, :height, :width],
            (torch.stack(pictures) * 255).round().to(torch.uint8),
            encoded.image_tokens[:count],
            quantizer.comparable(quantizer.to_rows(latents)),
            quantizer.comparable_codes(quantizer.to_rows(codes)),
        )


__all__ = ["Reconstructed", "Reconstructor"]
