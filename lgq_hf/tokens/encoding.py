"""Tokens of batches of views: the model, run on pixels that stay bytes until they are on its device.

Pixels stay bytes until they are on the model's device, where a table of 256 values for each channel, made by the image
processor itself, gives exactly its `pixel_values`. Letters: V views, n pictures, B batch size, H W pixels (padded).
"""

import numpy as np
import torch
from torch import Tensor

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor
from lgq_hf.tokens.plan import Encoding


def pixel_table(processor: LGQImageProcessor) -> Tensor:
    """`pixel_values` (3,256) float32 of the bytes 0 to 255 in each channel."""
    ramp = np.arange(256, dtype=np.uint8).reshape(256, 1, 1).repeat(3, axis=2)
    made = processor(ramp, do_resize=False, do_center_crop=False, do_pad=False, return_tensors="pt")
    table: Tensor = made["pixel_values"][0, :, :, 0]
    return table.contiguous()


class Encoder:
    """A checkpoint's encoder and lookup, for batches of bytes.

    Args:
        checkpoint: model in the dtype of `encoding`, on its device.
        encoding: how it is run.
    """

    def __init__(self, checkpoint: Checkpoint, encoding: Encoding) -> None:
        self.checkpoint, self.encoding = checkpoint, encoding
        self.model, self.device = checkpoint.model, checkpoint.device
        self.table = pixel_table(checkpoint.processor).to(self.device)
        if encoding.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.latents = torch.compile(self.model.latents) if encoding.compile else self.model.latents

    def pixel_values(self, pixels: Tensor) -> Tensor:
        """(n,3,H,W) uint8 to float32 on the device, as the processor would."""
        pixels = pixels.to(self.device, non_blocking=True)
        made = torch.stack([self.table[channel][pixels[:, channel].int()] for channel in range(3)], dim=1)
        return made.contiguous(memory_format=torch.channels_last) if self.encoding.channels_last else made

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, *, fill: bool) -> Tensor:
        """Tokens (n,h,w), or (n,h,w,C) with per-channel bins, int64 on the device, of up to `batch_size` pictures.

        Args:
            pixels: (n,3,H,W) uint8, on any device.
            fill: repeat the last picture up to `batch_size`, and forget its tokens.
        """
        count, batch_size = len(pixels), self.encoding.batch_size
        if fill and count < batch_size:
            pixels = torch.cat([pixels, pixels[-1:].expand(batch_size - count, -1, -1, -1)])
        latents = self.latents(self.pixel_values(pixels))
        tokens: Tensor = self.model.quantizer(latents).image_tokens[:count]
        return tokens


__all__ = ["Encoder", "Encoding", "pixel_table"]
