"""What one visitor looks at: a value that the functions here make another of. Nothing is shared between visitors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint

from .measures import Measures, measure
from .pictures import fit, open_upload

_ALONE = 8  # tokens along each side of the picture that one code fills


@dataclass(frozen=True)
class Reconstruction:
    """A picture, its tokens, and what they decode to.

    Attributes:
        name: of the checkpoint, as people are shown it.
        original: RGB, as the model sees it, without padding.
        tokens: (h,w), or (h,w,C) where a position has C tokens.
        picture: RGB of the original's size.
        measures: the two pictures compared.
    """

    name: str
    original: Image.Image
    tokens: np.ndarray
    picture: Image.Image
    measures: Measures


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
    measures = measure(original, picture, tokens.shape, checkpoint.config.codebook_size)
    return Reconstruction(name, original, tokens, picture, measures)


__all__ = [
    "Reconstruction",
    "View",
    "alone",
    "check_editable",
    "checked_code",
    "compare",
    "look_at",
    "open_view",
    "put",
    "reconstruct",
    "reset",
    "select",
]
