"""One picture that shows many: originals beside their reconstructions, or a grid of pictures."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MOST_PIXELS = 500_000_000  # of the pictures on a sheet: 1.5 GB in memory
_SMALLEST_FONT, _LONGEST_NAME = 14, 60
_WIDE = 2200  # pixels, of a sheet of sections
_SMALL, _LARGE = 128, 512  # longer side in pixels: smaller images are magnified there, larger ones reduced
_FONT, _GAP, _INNER = 15, 14, 2
_BACKGROUND, _TEXT, _QUIET = (40, 40, 40), (235, 235, 235), (165, 165, 165)


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


@dataclass(frozen=True)
class Pair:
    """Two RGB images of one size, the name of the image and its number for people."""

    original: Image.Image
    reconstruction: Image.Image
    name: str
    number: str


def draw_sections(title: str, sections: dict[str, Sequence[Pair]]) -> Image.Image:
    """Draws pairs from left to right in rows, each over its caption, under the heading of their section; RGB.

    Raises:
        ValueError: no pairs.
    """
    rows = {name: _rows([_scaled(pair) for pair in pairs]) for name, pairs in sections.items()}
    every = [row for part in rows.values() for row in part]
    if not every:
        raise ValueError("expected at least one pair of pictures, got none")
    font, line = ImageFont.load_default(_FONT), round(_FONT * 1.4)
    widest = max(sum(_width(pair) + _GAP for pair in row) for row in every)
    shown = _fitting(title, font, max(widest - _GAP, _WIDE // 4))
    width = max(widest, round(font.getlength(shown)) + _GAP) + _GAP
    heights = [max(pair.original.height for pair in row) + 2 * line + _GAP for row in every]
    sheet = Image.new("RGB", (width, _GAP + (1 + len(rows)) * (line + _GAP) + sum(heights)), _BACKGROUND)
    draw, top = ImageDraw.Draw(sheet), _GAP
    draw.text((_GAP, top), shown, fill=_TEXT, font=font)
    for name, part in rows.items():
        top += line + _GAP
        draw.text((_GAP, top), name, fill=_TEXT, font=font)
        for row in part:
            left, above = _GAP, top + line
            for pair in row:
                sheet.paste(pair.original, (left, above))
                sheet.paste(pair.reconstruction, (left + pair.original.width + _INNER, above))
                below = above + pair.original.height + 2
                draw.text((left, below), pair.number, fill=_TEXT, font=font)
                draw.text((left, below + line), _fitting(pair.name, font, _width(pair)), fill=_QUIET, font=font)
                left += _width(pair) + _GAP
            top += heights.pop(0)
    return sheet


def _width(pair: Pair) -> int:
    """Pixels that a pair and its caption take."""
    return max(2 * pair.original.width + _INNER, _SMALL)


def _rows(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in their order, as many in a row as find room."""
    rows: list[list[Pair]] = []
    room = 0
    for pair in pairs:
        if not rows or room < _width(pair):
            rows.append([])
            room = _WIDE
        rows[-1].append(pair)
        room -= _width(pair) + _GAP
    return rows


def _scaled(pair: Pair) -> Pair:
    longer = max(pair.original.size)
    if _SMALL <= longer <= _LARGE:
        return pair
    if longer < _SMALL:
        factor, resample = float(_SMALL // longer), Image.Resampling.NEAREST
    else:
        factor, resample = _LARGE / longer, Image.Resampling.LANCZOS
    width, height = (max(1, round(side * factor)) for side in pair.original.size)
    made = [picture.resize((width, height), resample) for picture in (pair.original, pair.reconstruction)]
    return Pair(made[0], made[1], pair.name, pair.number)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text without as much of its middle as it takes to be `width` pixels wide."""

    def shortened(kept: int) -> str:
        return f"{text[: kept // 2]}…{text[len(text) - (kept + 1) // 2 :]}"

    if font.getlength(text) <= width:
        return text
    most = bisect.bisect_left(range(len(text)), True, key=lambda kept: font.getlength(shortened(kept)) > width)
    return shortened(max(0, most - 1))


__all__ = ["MOST_PIXELS", "Pair", "Row", "draw_grid", "draw_sections", "draw_sheet", "pixels", "shortened"]
