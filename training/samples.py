"""What a loader hands over, and the rules by which one sample is made: they are the same for all kinds of sources."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from lgq_hf import LGQImageProcessor
from training.crops import Crop

MOST_IN_A_ROW = 1000  # broken pictures that are passed over for one sample


class Batch(NamedTuple):
    """Samples of one step of one process.

    Attributes:
        pixel_values: (B,3,size,size) float32, in the processor's normalised space.
        ids: the name of each sample's picture; in training "name@epoch".
        broken: (name, reason) of each picture that was met and could not be read.
    """

    pixel_values: Tensor
    ids: list[str]
    broken: list[tuple[str, str]]


def cut(picture: Image.Image, crop: Crop, seed: int, epoch: int, index: int) -> Image.Image:
    """The crop of picture `index` in an epoch: it depends on (seed, epoch, index) and on nothing else."""
    return crop(picture, np.random.default_rng([seed, epoch, index]))


def make_batch(
    crops: Sequence[Image.Image], ids: list[str], broken: list[tuple[str, str]], processor: LGQImageProcessor
) -> Batch:
    """Normalises RGB crops of one size; the processor's own resizing, cropping and padding is left out."""
    made = processor(list(crops), do_resize=False, do_center_crop=False, do_pad=False, return_tensors="pt")
    return Batch(made["pixel_values"], ids, broken)


def none_readable(broken: Sequence[tuple[str, str]]) -> ValueError:
    """The error for a sample that no picture can be found for; `broken` are the pictures that were tried."""
    (first, _), (last, reason) = broken[0], broken[-1]
    return ValueError(
        f"{len(broken)} pictures in a row, from {first} to {last}, cannot be read (the last: {reason}): expected "
        "pictures that Pillow opens; look at the source's path and column"
    )
