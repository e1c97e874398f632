"""What one visitor looks at: a value that the functions here make another of. Nothing is shared between visitors."""

import math
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lgq_hf.checkpoint import Checkpoint
from lgq_hf.images.stored import to_rgb
from lgq_hf.metrics.reconstruction import psnr, ssim
from lgq_hf.tokenizer.image_processing_lgq import read_image

Numbers = list[tuple[str, str, str]]  # key, label, text
MOST_BYTES = 20 * 2**20  # of an uploaded file
LONGEST = 2048  # pixels of the longer side that are worked at
SIZES = (128, 256, 384, 512)  # pixels of the shorter side, to choose from
SIZE = 256
_ALONE = 8  # tokens along each side of the picture that one code fills
_SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # photographs in scikit-image's package


@dataclass(frozen=True)
class Sample:
    """An RGB picture to begin with, and its name."""

    name: str
    picture: Image.Image


def open_upload(path: Path) -> Image.Image:
    """Reads an uploaded file as RGB.

    Raises:
        ValueError: more than `MOST_BYTES`, more pixels than Pillow allows (a decompression bomb), or no picture; one
            line without the path.
    """
    if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"the file has {size / 2**20:.1f} MB, expected at most {MOST_BYTES // 2**20} MB: shrink it")
    try:
        return to_rgb(read_image(path))
    except ValueError as error:
        raise ValueError(f"this file cannot be shown: {error}") from error


def fit(picture: Image.Image, shorter: int) -> tuple[Image.Image, str]:
    """Shrinks a picture until its shorter side has `shorter` pixels and its longer one at most `LONGEST`.

    Args:
        picture: RGB, of any size.
        shorter: pixels, one of `SIZES`.

    Returns:
        The picture, never larger than it came, and one sentence that says what was done.

    Raises:
        ValueError: `shorter` is none of `SIZES`.
    """
    if shorter not in SIZES:
        raise ValueError(f"working size: expected one of {SIZES} pixels, got {shorter!r}")
    came = f"{picture.width} x {picture.height}"
    scale = min(shorter / min(picture.size), LONGEST / max(picture.size))
    if scale >= 1:
        return picture, f"{came} pixels, as it came."
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    reason = f"shorter side {shorter}" if min(size) == shorter else f"longer side at most {LONGEST}"
    text = f"Resized from {came} to {size[0]} x {size[1]} pixels ({reason})."
    return picture.resize(size, Image.Resampling.LANCZOS), text


@cache
def samples() -> tuple[Sample, ...]:
    """Photographs that come with scikit-image (the extra `samples`), or a drawn picture where it is not installed."""
    package = find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package and package.origin else Path()
    found = [folder / name for name in _SAMPLES if (folder / name).is_file()]
    if not found:
        across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
        return (Sample("drawn", Image.merge("RGB", (across, down, Image.radial_gradient("L")))),)
    return tuple(Sample(path.stem, to_rgb(read_image(path))) for path in found)


@dataclass(frozen=True)
class Reconstruction:
    """A picture, its tokens, and what they decode to.

    Attributes:
        name: of the checkpoint, as people are shown it.
        original: RGB, as the model sees it, without padding.
        tokens: (h,w), or (h,w,C) where a position has C tokens.
        picture: RGB of the original's size.
        numbers: the two pictures compared, see `numbers`.
    """

    name: str
    original: Image.Image
    tokens: np.ndarray
    picture: Image.Image
    numbers: Numbers


@dataclass(frozen=True)
class View:
    """Where a visitor is.

    Attributes:
        source: uploaded file, or sample picture.
        note: how the picture was resized.
        plain: of the picture's own tokens.
        now: of the tokens as they were edited; `plain` itself where they were not.
        selected: row and column of a token.
        code: that is looked at.
        other_name: text that names a second checkpoint; empty without one.
        other: the second checkpoint's reconstruction.
    """

    source: Path | Image.Image
    note: str
    plain: Reconstruction
    now: Reconstruction
    selected: tuple[int, int] | None = None
    code: int | None = None
    other_name: str = ""
    other: Reconstruction | None = None

    @property
    def edited(self) -> list[tuple[int, int]]:
        """Rows and columns of the tokens that are not the picture's own."""
        if self.now is self.plain:
            return []
        return [(row, column) for row, column in np.argwhere(self.now.tokens != self.plain.tokens).tolist()]


def reconstruct(checkpoint: Checkpoint, picture: Image.Image, name: str = "") -> Reconstruction:
    """Encodes and decodes an RGB picture, in the size in which it comes.

    Args:
        checkpoint: the model.
        picture: RGB.
        name: for people, if not the checkpoint's own.

    Raises:
        ValueError: a picture that the processor refuses.
    """
    pixel_values, size = _pixels(checkpoint, picture)
    tokens = checkpoint.encode(pixel_values)
    original = checkpoint.picture(pixel_values, size)
    return _decoded(checkpoint, name or checkpoint.name, original, tokens)


def _pixels(checkpoint: Checkpoint, picture: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """As `Checkpoint.pixels`, but never resized or cropped, and padded no more than the model needs.

    What a checkpoint of a stranger asks for could make a small picture one that no memory holds.
    """
    batch = checkpoint.processor(
        picture,
        return_tensors="pt",
        do_resize=False,
        do_center_crop=False,
        pad_to_multiple_of=checkpoint.config.spatial_downsample_factor,
    )
    height, width = batch["original_sizes"][0].tolist()
    return batch["pixel_values"].to(checkpoint.device), (height, width)


def open_view(checkpoint: Checkpoint, source: Path | Image.Image, shorter: int) -> View:
    """Begins with a picture.

    Args:
        checkpoint: the model.
        source: uploaded file, or RGB picture.
        shorter: pixels that its shorter side is shrunk to.

    Raises:
        ValueError: as `open_upload`, `fit` and `reconstruct`.
    """
    picture, note = fit(open_upload(source) if isinstance(source, Path) else source, shorter)
    plain = reconstruct(checkpoint, picture)
    return View(source, note, plain, plain)


def compare(view: View, checkpoint: Checkpoint, name: str) -> View:
    """The same picture through a second checkpoint, which `name` stands for."""
    return replace(view, other_name=name, other=reconstruct(checkpoint, view.plain.original, name))


def select(view: View, at: Any, checkpoint: Checkpoint) -> View:
    """Selects a token, and looks at its code.

    Args:
        view: where the visitor is.
        at: {"row": ..., "column": ...} as the browser sends it.
        checkpoint: the view's.

    Raises:
        ValueError: several tokens a position, or no such place.
    """
    check_editable(checkpoint)
    height, width = view.now.tokens.shape
    place = (at.get("row"), at.get("column")) if isinstance(at, dict) else (None, None)
    row, column = place
    if type(row) is not int or type(column) is not int or not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"expected a row below {height} and a column below {width}, got {str(place)[:60]}")
    return replace(view, selected=(row, column), code=int(view.now.tokens[row, column]))


def look_at(view: View, code: Any, checkpoint: Checkpoint) -> View:
    """Looks at a code; raises ValueError if it is none, or a position has several tokens."""
    check_editable(checkpoint)
    return replace(view, code=checked_code(code, checkpoint.config.codebook_size))


def put(view: View, code: Any, checkpoint: Checkpoint) -> View:
    """Gives the selected token another code, and decodes again.

    Raises:
        ValueError: nothing is selected, no code, or several tokens a position.
    """
    view = look_at(view, code, checkpoint)
    if view.selected is None:
        raise ValueError("no token is selected: click one in the grid first")
    tokens = view.now.tokens.copy()
    tokens[view.selected] = view.code
    if np.array_equal(tokens, view.plain.tokens):
        return replace(view, now=view.plain)
    return replace(view, now=_decoded(checkpoint, view.plain.name, view.plain.original, tokens))


def reset(view: View) -> View:
    """Gives all tokens their own codes again."""
    tokens = view.plain.tokens
    code = view.code if view.selected is None else int(tokens[view.selected])
    return replace(view, now=view.plain, code=code)


def alone(checkpoint: Checkpoint, code: int) -> Image.Image:
    """What `_ALONE` x `_ALONE` tokens of one code decode to, RGB."""
    side = _ALONE * checkpoint.config.spatial_downsample_factor
    return checkpoint.decode(np.full((_ALONE, _ALONE), code, dtype=np.uint32), (side, side))


def checked_code(code: Any, codebook_size: int) -> int:
    """`code` as a number in [0, codebook_size); raises ValueError, in one line, if it is none."""
    whole = isinstance(code, int | float) and not isinstance(code, bool) and code == code // 1
    if not whole or not 0 <= code < codebook_size:
        came = "nothing" if code is None else str(code)[:40]
        raise ValueError(f"expected a code, a whole number from 0 to {codebook_size - 1}, got {came}")
    return int(code)


def check_editable(checkpoint: Checkpoint) -> None:
    """Raises ValueError for a checkpoint with several tokens a position."""
    if (count := checkpoint.config.tokens_per_position) > 1:
        raise ValueError(
            f"this checkpoint has {count} tokens at each position, and only one a position can be shown as a grid and "
            "edited"
        )


def _decoded(checkpoint: Checkpoint, name: str, original: Image.Image, tokens: np.ndarray) -> Reconstruction:
    picture = checkpoint.decode(tokens, (original.height, original.width))
    compared = numbers(original, picture, tokens.shape, checkpoint.config.codebook_size)
    return Reconstruction(name, original, tokens, picture, compared)


def numbers(original: Image.Image, picture: Image.Image, grid: tuple[int, ...], codebook_size: int) -> Numbers:
    """How near a reconstruction is and what its tokens cost, as (key, label, text).

    Args:
        original: RGB, what was tokenized.
        picture: RGB of its size, what its tokens decode to.
        grid: (h,w), or (h,w,C) where a position has C tokens; those of the padding included.
        codebook_size: K.
    """
    a, b = ([torch.from_numpy(np.array(one)).permute(2, 0, 1).double() / 255] for one in (original, picture))
    decibels, count = float(psnr(a, b)[0]), math.prod(grid)
    try:
        similarity = f"{float(ssim(a, b)[0]):.3f}"
    except ModuleNotFoundError:
        similarity = "needs the extra metrics"
    except ValueError:  # the sizes are equal, or psnr had raised: they are too small for its window
        similarity = "needs sides of 11 pixels"
    bits = count * math.log2(codebook_size)
    bits_per_pixel = bits / math.prod(original.size)
    return [
        ("psnr", "PSNR", "no difference" if math.isinf(decibels) else f"{decibels:.2f} dB"),
        ("ssim", "SSIM", similarity),
        ("size", "Picture", f"{original.width} x {original.height} px"),
        ("grid", "Token grid", " x ".join(map(str, grid))),
        ("bits", "Bits", f"{bits:,.0f} = {count:,} x log2({codebook_size:,})"),
        ("bits_per_pixel", "Bits per pixel", f"{bits_per_pixel:.3f}"),
        ("compression", "Against raw RGB", f"{24 / bits_per_pixel:,.1f} : 1" if bits else "no bits"),
    ]
