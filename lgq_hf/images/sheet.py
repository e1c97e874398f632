"""One picture that shows many: originals beside their reconstructions, or a grid of pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MOST_PIXELS = 500_000_000  # of the pictures on a sheet: 1.5 GB in memory
_SMALLEST_FONT, _LONGEST_NAME = 14, 60
_BACKGROUND, _TEXT = (40, 40, 40), (235, 235, 235)


@dataclass(frozen=True)
class Row:
    """Two RGB pictures of one size, and the lines of their caption."""

    original: Image.Image
    reconstruction: Image.Image
    caption: tuple[str, ...]


def pixels(sizes: Sequence[tuple[int, int]]) -> int:
    """Pixels that a sheet of pairs of (width, height) takes, without its captions."""
    return 2 * max(width for width, _ in sizes) * sum(height for _, height in sizes)


def shortened(name: str) -> str:
    """`name` without its middle, where it is longer than a caption should be."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 3) // 2
    return f"{name[:half]}...{name[-half:]}"


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draws each row as original | reconstruction, unscaled, over its caption; RGB, as wide as the widest part.

    The text grows with the widest or highest picture, so that it can be read when the sheet is seen as a whole.
    """
    longest = max(max(2 * row.original.width, row.original.height) for row in rows)
    size = max(_SMALLEST_FONT, longest // 80)
    font = ImageFont.load_default(size)
    gap, line = size // 2, round(size * 1.4)
    text_width = max(round(font.getlength(text)) for row in rows for text in row.caption)
    width = max(text_width, *(2 * row.original.width + gap for row in rows)) + 2 * gap
    height = gap + sum(row.original.height + len(row.caption) * line + 2 * gap for row in rows)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row in rows:
        sheet.paste(row.original, (gap, top))
        sheet.paste(row.reconstruction, (2 * gap + row.original.width, top))
        top += row.original.height + gap // 2
        for text in row.caption:
            draw.text((gap, top), text, fill=_TEXT, font=font)
            top += line
        top += 2 * gap - gap // 2
    return sheet


def draw_grid(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Draws pictures row by row, unscaled, each over one line of caption that is cut to its width; RGB.

    Args:
        pictures: RGB pictures of one size.
        captions: one for each; empty texts take no room where all are empty.
        columns: pictures in a row; `None`: about as many as there are rows.

    Raises:
        ValueError: no pictures, another number of captions, pictures of several sizes, or no column.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"expected pictures and a caption for each, got {len(pictures)} and {len(captions)}")
    if len(sizes := sorted({picture.size for picture in pictures})) > 1:
        raise ValueError(f"expected pictures of one size, got {sizes[:4]}: draw those of one size together")
    columns = math.ceil(len(pictures) ** 0.5) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    width, height = sizes[0]
    font = ImageFont.load_default(_SMALLEST_FONT)
    gap, line = _SMALLEST_FONT // 2, round(_SMALLEST_FONT * 1.4) if any(captions) else 0
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    size = (columns * (width + gap) + gap, rows * (height + line + gap) + gap)
    grid = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = gap + number % columns * (width + gap)
        top = gap + number // columns * (height + line + gap)
        grid.paste(picture, (left, top))
        draw.text((left, top + height), _fitting(caption, font, width), fill=_TEXT, font=font)
    return grid


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of the text's beginning as is `width` pixels wide."""
    while font.getlength(text) > width:
        text = text[:-1]
    return text


__all__ = ["MOST_PIXELS", "Row", "draw_grid", "draw_sheet", "pixels", "shortened"]
