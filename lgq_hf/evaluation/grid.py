"""One picture that shows the best and the worst reconstructions, each beside its original."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.pictures import Batch, chosen
from lgq_hf.evaluation.reconstruction import Reconstructor
from lgq_hf.evaluation.settings import Settings
from lgq_hf.images.sources import ImageSource
from lgq_hf.images.views import Grid, cut_views

_WIDE = 2200  # pixels, of a sheet
_SMALL, _LARGE = 128, 512  # longer side in pixels: smaller pictures are magnified, larger ones reduced
_FONT, _GAP, _INNER = 15, 14, 2
_BACKGROUND, _TEXT, _QUIET = (40, 40, 40), (235, 235, 235), (165, 165, 165)


@dataclass(frozen=True)
class Pair:
    """Two RGB pictures of one size, the name of the picture and its number for people."""

    original: Image.Image
    reconstruction: Image.Image
    name: str
    number: str


def draw_extremes(
    checkpoint: Checkpoint, source: ImageSource, settings: Settings, result: dict[str, Any]
) -> Image.Image:
    """The best and worst pictures of a result by PSNR, the extreme first, original left of reconstruction.

    Args:
        checkpoint: the tokenizer that was evaluated.
        source: the pictures that `evaluate_tokenizer` had.
        settings: as it had them.
        result: what it returned.

    Returns:
        RGB. Pictures whose longer side is below 128 pixels are magnified by whole numbers, those above 512 reduced.

    Raises:
        ValueError: a picture that cannot be read any more.
    """
    some, extremes = chosen(source, settings), result["extremes"]
    views = [view for part in ("best", "worst") for view in extremes[part]]
    pairs = _pairs(checkpoint, some, settings, views)
    half = len(extremes["best"])
    mean, count = result["metrics"]["psnr"], result["protocol"]["views"]
    what = "pictures" if count == result["protocol"]["pictures"] else "crops"
    told = "all exact" if mean is None else f"mean PSNR {mean:.2f} dB"
    title = f"{result['model']['name']}, {told} of {count:,} {what}: original left, reconstruction right"
    return draw_sections(title, {"Best": pairs[:half], "Worst": pairs[half:]})


def _pairs(checkpoint: Checkpoint, source: ImageSource, settings: Settings, views: list[dict[str, Any]]) -> list[Pair]:
    """Reads and reconstructs these views, as entries of `extremes` name them; in their order."""
    waiting: dict[Grid, list[tuple[int, torch.Tensor]]] = {}
    count = len(settings.preprocessing.views())
    for place, view in enumerate(views):
        index, which = divmod(view["view"], count)
        try:
            cuts, size = cut_views(source.read(index), checkpoint.processor, settings.preprocessing)
        except ValueError as error:
            raise ValueError(f"{view['id']} in {source.name}: {error}") from error
        waiting.setdefault(size, []).append((place, torch.from_numpy(cuts[which].copy())))
    reconstructor, found = Reconstructor(checkpoint, settings), dict[int, list[Image.Image]]()
    for size, group in waiting.items():
        for start in range(0, len(group), settings.batch_size):
            part = group[start : start + settings.batch_size]
            batch = Batch([place for place, _ in part], torch.stack([pixels for _, pixels in part]), size)
            made = reconstructor(batch)
            for place, original, picture in zip(made.numbers, made.originals, made.pictures, strict=False):
                found[place] = [Image.fromarray(x.permute(1, 2, 0).cpu().numpy()) for x in (original, picture)]
    return [Pair(found[i][0], found[i][1], _name(view), _decibels(view["psnr"])) for i, view in enumerate(views)]


def _name(view: dict[str, Any]) -> str:
    told = ", ".join([view["crop"]] * (view["crop"] not in ("", "center")) + ["mirrored"] * view["flip"])
    name = "".join(character if character.isprintable() else "?" for character in view["id"])
    return f"{name} ({told})" if told else name


def _decibels(psnr: float | None) -> str:
    return "identical" if psnr is None else f"{psnr:.2f} dB"


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


__all__ = ["Pair", "draw_extremes", "draw_sections"]
