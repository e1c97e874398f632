"""From a picture to its tokens: views of it as bytes, batches of one shape, the model.

Pixels stay bytes until they are on the model's device, where a table of 256 values for each channel, made by the image
processor itself, gives exactly its `pixel_values`. Letters: V views, n pictures, B batch size, H W pixels (padded).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgq_hf.checkpoint import Checkpoint
from lgq_hf.pictures import check_shorter_side
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# where a crop stands: share of the space above it, and to its left
CROPS = {
    "center": (0.5, 0.5),
    "top_left": (0.0, 0.0),
    "top_right": (0.0, 1.0),
    "bottom_left": (1.0, 0.0),
    "bottom_right": (1.0, 1.0),
}
Grid = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """What is cut out of each picture.

    Attributes:
        size: side of a square crop in pixels; `None`: pictures as the image processor's own settings leave them.
        crops: 1: the middle. 5: the corners and the middle.
        crop_scale: the shorter side is resized to `round(size * crop_scale)` before a crop is cut; at least 1.
        flip: each crop once more, mirrored.
    """

    size: int | None = None
    crops: int = 1
    crop_scale: float = 1.0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: expected a number of pixels, 1 or more, got {self.size}")
        if self.crops not in (1, 5):
            raise ValueError(f"crops: expected 1 (the middle) or 5 (corners and middle), got {self.crops}")
        if not 1 <= self.crop_scale <= 16:
            raise ValueError(f"crop_scale: expected a number from 1 to 16, got {self.crop_scale}")
        if self.size is None and (self.crops, self.crop_scale) != (1, 1.0):
            raise ValueError("crops and crop_scale need a size: how many pixels a crop has on each side")

    def views(self) -> list[tuple[str, bool]]:
        """Name of the crop ("" without one) and whether it is mirrored, for each row that a picture gives."""
        names = [""] if self.size is None else ["center", *list(CROPS)[1:]][: self.crops]
        return [(name, flipped) for name in names for flipped in ((False, True) if self.flip else (False,))]


@dataclass(frozen=True)
class Encoding:
    """How the model is run.

    Attributes:
        batch_size: pictures that go through the model together. A last batch of pictures of one size is filled up to
            it, so that a picture's tokens do not depend on what else was there to encode.
        dtype: "float32", "bfloat16" or "float16"; of the encoder, for the lookup is always fp32.
        channels_last: memory format of the encoder.
        compile: run the encoder through `torch.compile`.
    """

    batch_size: int = 16
    dtype: str = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {self.dtype!r}")


def cut_views(
    picture: Image.Image, processor: LGQImageProcessor, preprocessing: Preprocessing
) -> tuple[np.ndarray, Grid]:
    """All views of one picture, in the order of `Preprocessing.views`.

    Returns:
        (V,3,H,W) uint8, padded as the processor pads, and height and width of a view before that.

    Raises:
        ValueError: a picture that the processor refuses, or that is too long and thin to be resized.
    """
    options: dict[str, Any] = {"do_normalize": False, "rescale_factor": 1.0, "do_pad": False}  # bytes, in float32
    size = preprocessing.size
    if size is not None:
        shortest = round(size * preprocessing.crop_scale)
        check_shorter_side(picture, shortest)
        options |= {"do_resize": True, "size": {"shortest_edge": shortest}, "do_center_crop": False}
    pixels_3HW = processor(picture, return_tensors=None, **options)["pixel_values"][0].astype(np.uint8)
    height, width = pixels_3HW.shape[1:] if size is None else (size, size)
    cuts = []
    for name, flipped in preprocessing.views():
        above, left = (
            int(space * share)
            for space, share in zip(
                (pixels_3HW.shape[1] - height, pixels_3HW.shape[2] - width), CROPS.get(name, (0, 0)), strict=True
            )
        )
        cut = pixels_3HW[:, above : above + height, left : left + width]
        cuts.append(cut[:, :, ::-1] if flipped else cut)
    views = np.stack(cuts)
    multiple = processor.pad_to_multiple_of if processor.do_pad else 1
    if height % multiple or width % multiple:
        views = np.pad(views, [(0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)], mode="edge")
    return views, (height, width)


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
        self.model, self.encoding, self.device = checkpoint.model, encoding, checkpoint.device
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


__all__ = ["CROPS", "DTYPES", "Encoder", "Encoding", "Preprocessing", "cut_views", "pixel_table"]
