"""What the page draws for a view, as HTML: images, differences, token grids as colours, where a code stands."""

import base64
import math
from collections.abc import Collection, Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from lgq_hf.checkpoint import Checkpoint

from .view import Numbers, Sample, View, alone, check_editable

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


def table(named: Sequence[tuple[str, Numbers]]) -> str:
    """An HTML table with a line for each (name, numbers); names are escaped. Cells have `data-number`."""
    labels = "".join(f"<th>{label}</th>" for _, label, _ in named[0][1])
    body = ""
    for name, line in named:
        cells = "".join(f'<td data-number="{key}">{text}</td>' for key, _, text in line)
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return f'<table class="lgq-numbers"><tr><th></th>{labels}</tr>{body}</table>'


PICTURE_PARTS = ("original", "reconstruction", "difference", "other", "note", "numbers")
TOKEN_PARTS = ("grid", "selection", "edits", "code", "highlighted", "found", "alone")
_LONGEST_NAME = 28


def picture_contents(view: View) -> dict[str, str]:
    """`PICTURE_PARTS`: pictures under captions, what was done to the original, and a table; `other` may be empty."""
    original, now, other = view.plain.original, view.now, view.other
    edited = " (edited)" if view.edited else ""
    lines = [(shortened(now.name) + edited, now.numbers)]
    lines += [] if other is None else [(shortened(other.name), other.numbers)]
    return {
        "original": figure(original, "Original"),
        "reconstruction": figure(now.picture, f"Reconstruction{edited}"),
        "difference": figure(difference(original, now.picture), f"Difference, {GAIN} times"),
        "other": "" if other is None else figure(other.picture, f"By {shortened(other.name)}"),
        "note": _paragraph(view.note),
        "numbers": table(lines),
    }


def token_contents(view: View, checkpoint: Checkpoint) -> dict[str, Any]:
    """`TOKEN_PARTS`: `code` a number or `None`, the rest HTML.

    Where a position has several tokens, `grid` says that there is none, and the rest is empty.
    """
    try:
        check_editable(checkpoint)
    except ValueError as error:
        return dict.fromkeys(TOKEN_PARTS, "") | {"grid": _paragraph(f"No grid here: {error}."), "code": None}
    tokens, own, code = view.now.tokens, view.plain.tokens, view.code
    selection = "No token selected."
    if view.selected is not None:
        (row, column), held = view.selected, int(tokens[view.selected])
        was = "" if held == own[view.selected] else f" (was {int(own[view.selected])})"
        selection = f"Selected: row {row}, column {column}, code {held}{was}."
    edits, pixels = len(view.edited), math.prod(view.now.picture.size)
    changed = changed_pixels(view.plain.picture, view.now.picture) if edits else 0
    text = f"{edits} of {tokens.size:,} tokens edited; {changed:,} of {pixels:,} pixels of the reconstruction changed."
    parts = {
        "grid": grid_html(tokens, view.selected, view.edited),
        "selection": _paragraph(selection),
        "edits": _paragraph(text),
        "code": code,
    }
    if code is None:
        empty = {"highlighted": figure(None, "Where the code occurs"), "alone": figure(None, "The code alone")}
        return parts | empty | {"found": _paragraph("Select a token, or choose a code.")}
    count = len(occurrences(tokens, code))
    times = {0: "nowhere", 1: "once"}.get(count, f"{count:,} times")
    marked = highlight(view.now.picture, tokens, code, checkpoint.config.spatial_downsample_factor)
    return parts | {
        "highlighted": figure(marked, f"Where code {code} occurs"),
        "found": _paragraph(f"Code {code} occurs {times} among {tokens.size:,} tokens."),
        "alone": figure(alone(checkpoint, code), f"Code {code} alone"),
    }


def shortened(name: str) -> str:
    """The end of a long name, which tells folders apart best."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"


def about(checkpoint: Checkpoint) -> str:
    """One line of HTML about a checkpoint: name, tokens, codes, bits."""
    config = checkpoint.config
    count, factor = config.tokens_per_position, config.spatial_downsample_factor
    tokens = "a token" if count == 1 else f"{count} tokens"
    bits = f"{math.log2(config.codebook_size):.4g} bits a token, {config.bits_per_pixel:.4g} bits a pixel"
    codes = f"one of {config.codebook_size:,} codes ({config.quantizer})"
    return _paragraph(f"{checkpoint.name}: {tokens} for each {factor} x {factor} pixels, {codes}, {bits}.")


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
