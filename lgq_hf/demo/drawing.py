"""What the page draws: differences, token grids as colours, and where a code stands in a picture."""

import base64
from collections.abc import Collection, Sequence
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .pictures import Sample

GAIN = 4  # of differences
_THUMBNAIL = 64  # pixels
_TALLEST = 600  # pixels of the screen that a token grid is high
_MARK = (255, 40, 160)
# irrational steps around the circle of hues, and through saturation and value: neighbouring codes look different
_STEPS = np.array([0.6180339887, 0.7548776662, 0.5698402910])


def difference(original: Image.Image, picture: Image.Image) -> Image.Image:
    """|original - picture| of each channel times `GAIN`, cut at 255; RGB pictures of one size."""
    a, b = (np.asarray(one).astype(np.int64) for one in (original, picture))
    return Image.fromarray((np.abs(a - b) * GAIN).clip(0, 255).astype(np.uint8))


def changed_pixels(before: Image.Image, after: Image.Image) -> int:
    """In how many pixels two RGB pictures of one size differ."""
    return int((np.asarray(before) != np.asarray(after)).any(axis=-1).sum())


def code_colours(codes: np.ndarray) -> np.ndarray:
    """A colour for each code, the same for every picture, checkpoint and run.

    Args:
        codes: non-negative integers of any shape.

    Returns:
        uint8 RGB of that shape and one more dimension of 3.
    """
    hue, saturation, value = np.moveaxis((codes[..., None] + 1) * _STEPS % 1, -1, 0)
    hsv = np.stack((hue * 256, 110 + saturation * 130, 120 + value * 135), axis=-1)
    rows = hsv.astype(np.uint8).reshape(1, -1, 3)
    return np.asarray(Image.fromarray(rows, "HSV").convert("RGB")).reshape(*codes.shape, 3)


def grid_html(
    tokens: np.ndarray, selected: tuple[int, int] | None = None, edited: Collection[tuple[int, int]] = ()
) -> str:
    """The grid as coloured squares, for the script of the page, which tells clicks and shows what is pointed at.

    Args:
        tokens: (h,w) integers.
        selected: row and column that get a frame.
        edited: rows and columns that get a thinner one.

    Returns:
        HTML with the grid as a PNG of one pixel for each token, and its numbers in `data-` attributes.
    """
    height, width = tokens.shape
    marks = [_mark("lgq-edited", at, tokens.shape) for at in sorted(edited)]
    marks += [] if selected is None else [_mark("lgq-selected", selected, tokens.shape)]
    chosen = "" if selected is None else f"{selected[0]},{selected[1]}"
    shape = f"aspect-ratio:{width}/{height};width:min(100%,{_TALLEST * width // height}px)"
    numbers = ",".join(map(str, tokens.reshape(-1).tolist()))
    colours = Image.fromarray(code_colours(tokens.astype(np.int64)))
    return (
        f'<div class="lgq-grid" tabindex="0" data-rows="{height}" data-columns="{width}" data-selected="{chosen}" '
        f'data-tokens="{numbers}" style="{shape}">'
        f'<img alt="{height} rows of {width} tokens, a colour for each code" draggable="false" '
        f'src="{_data_url(colours)}">{"".join(marks)}</div>'
        '<div class="lgq-pointed">Point at a token to read it; click it to select it.</div>'
    )


def figure(picture: Image.Image | None, caption: str) -> str:
    """HTML of a picture (as PNG, so without loss) under its caption, escaped; an empty frame for `None`."""
    inner = '<div class="lgq-empty"></div>'
    if picture is not None:
        inner = f'<img alt="{escape(caption)}" src="{_data_url(picture)}">'
    return f'<figure class="lgq-figure"><figcaption>{escape(caption)}</figcaption>{inner}</figure>'


def sample_buttons(samples: Sequence[Sample]) -> str:
    """HTML of a small button for each sample; the script of the page tells which one is clicked."""
    buttons = ""
    for number, sample in enumerate(samples):
        thumbnail = ImageOps.fit(sample.picture, (_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        image = f'<img alt="" src="{_data_url(thumbnail)}">'
        buttons += f'<button type="button" data-sample="{number}">{image}{escape(sample.name)}</button>'
    return f'<div class="lgq-samples">{buttons}</div>'


def _data_url(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _mark(kind: str, at: tuple[int, int], shape: tuple[int, ...]) -> str:
    (row, column), (height, width) = at, shape
    place = f"left:{100 * column / width:.4f}%;top:{100 * row / height:.4f}%"
    return f'<div class="{kind}" style="{place};width:{100 / width:.4f}%;height:{100 / height:.4f}%"></div>'


def occurrences(tokens: np.ndarray, code: int) -> np.ndarray:
    """(n,2) rows and columns where an (h,w) grid holds `code`, row by row."""
    return np.argwhere(tokens == code)


def highlight(picture: Image.Image, tokens: np.ndarray, code: int, factor: int) -> Image.Image:
    """The picture with all tokens but those of one code darkened, and these framed.

    Args:
        picture: RGB, of at most h * factor rows and w * factor columns.
        tokens: (h,w) integers.
        code: the code to look for.
        factor: pixels of a token along each side.

    Returns:
        RGB, scaled up by a whole number if the picture is small, so that frames are thin.
    """
    scale = max(1, 512 // max(picture.size))
    shown = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    dark = shown.point(lambda value: value * 0.3)
    found = occurrences(tokens, code)
    edge = factor * scale
    for row, column in found.tolist():
        box = (column * edge, row * edge, min((column + 1) * edge, dark.width), min((row + 1) * edge, dark.height))
        if box[0] < box[2] and box[1] < box[3]:  # not a token of the padding
            dark.paste(shown.crop(box), box[:2])
            ImageDraw.Draw(dark).rectangle(
                (box[0], box[1], box[2] - 1, box[3] - 1), outline=_MARK, width=min(3, max(1, edge // 8))
            )
    return dark


__all__ = [
    "GAIN",
    "changed_pixels",
    "code_colours",
    "difference",
    "figure",
    "grid_html",
    "highlight",
    "occurrences",
    "sample_buttons",
]
