"""Square crops of pictures: functions of a picture and a random generator alone."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

Crop = Callable[[Image.Image, np.random.Generator], Image.Image]
_TRIES = 10


def scaled_crop(
    picture: Image.Image, rng: np.random.Generator, *, size: int, max_scale: float = 1.0, flip: float = 0.5
) -> Image.Image:
    """A square of `size` to `max_scale * size` pixels, at most the shorter side, scaled to `size`.

    A picture whose shorter side is below `size` is enlarged: its largest square is taken.

    Args:
        picture: RGB.
        rng: draws the side, left, top and, last, the flip.
        size: of the result, in pixels.
        max_scale: at least 1.
        flip: how often the crop is mirrored, in [0, 1].

    Returns:
        An RGB picture of `size` x `size`.
    """
    short = min(picture.size)
    largest = min(short, int(size * max_scale))
    side = short if short <= size else int(rng.integers(size, largest + 1))
    left = int(rng.integers(0, picture.width - side + 1))
    top = int(rng.integers(0, picture.height - side + 1))
    box = (left, top, left + side, top + side)
    if side == size:
        return _flipped(picture.crop(box), rng, flip)
    return _flipped(picture.resize((size, size), Image.Resampling.BICUBIC, box), rng, flip)


def resized_crop(
    picture: Image.Image,
    rng: np.random.Generator,
    *,
    size: int,
    area: Sequence[float] = (0.08, 1.0),
    aspect: Sequence[float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Image.Image:
    """A share of the picture of random area and aspect ratio, stretched to a square.

    The crop of Szegedy et al., "Going Deeper with Convolutions" (2015), section 6, as torchvision's RandomResizedCrop
    defines it: what does not fit into the picture is drawn again, ten times; then the middle of the picture is taken,
    as much of it as has an aspect ratio in `aspect`.

    Args:
        picture: RGB.
        rng: draws area and ratio at each try, then top and left and, last, the flip.
        size: of the result, in pixels.
        area: lowest and highest share of the picture's area, drawn uniformly; in (0, 1].
        aspect: lowest and highest ratio of width to height, drawn uniformly in its logarithm.
        flip: how often the crop is mirrored, in [0, 1].

    Returns:
        An RGB picture of `size` x `size`.
    """
    box = _inception_box(picture.size, rng, area, aspect)
    return _flipped(picture.resize((size, size), Image.Resampling.BICUBIC, box), rng, flip)


def center_crop(picture: Image.Image, rng: np.random.Generator, *, size: int, flip: float = 0.5) -> Image.Image:
    """The middle of the picture after its shorter side was scaled to `size`; always the same, but for the flip.

    What `LGQImageProcessor` makes with do_resize and do_center_crop (LANCZOS), but only the part that is kept is
    computed, so that a long strip needs no memory.

    Args:
        picture: RGB.
        rng: draws the flip.
        size: of the result, in pixels.
        flip: how often the crop is mirrored, in [0, 1].

    Returns:
        An RGB picture of `size` x `size`.
    """
    short = min(picture.size)
    scaled = [int(size * edge / short) for edge in picture.size]  # the longer side is rounded down
    box = []
    for edge, length in zip(picture.size, scaled, strict=True):
        start = (length - size) // 2
        box.append((start * edge / length, (start + size) * edge / length))
    (left, right), (top, bottom) = box
    resized = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, right, bottom))
    return _flipped(resized, rng, flip)


def _inception_box(
    picture_size: tuple[int, int], rng: np.random.Generator, area: Sequence[float], aspect: Sequence[float]
) -> tuple[int, int, int, int]:
    width, height = picture_size
    for _ in range(_TRIES):
        target = width * height * rng.uniform(area[0], area[1])
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < aspect[0]:
        h = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(height * aspect[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _flipped(picture: Image.Image, rng: np.random.Generator, flip: float) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < flip else picture
