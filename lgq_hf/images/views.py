"""Views of an image as bytes: what is resized and cut out of each image before it is encoded.

Letters: V views, H W pixels (padded).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lgq_hf.images.opening import check_shorter_side
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor

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


__all__ = ["CROPS", "Grid", "Preprocessing", "cut_views"]
