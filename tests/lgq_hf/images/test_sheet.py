"""Sheets of pairs and grids of images."""

import numpy as np
import pytest
from PIL import Image

from lgq_hf.images.sheet import Pair, draw_grid, draw_sections

BACKGROUND = (40, 40, 40)
LINE, GAP = 21, 14

COLOURS = [(number, 200, 3 * number) for number in range(1, 6)]
PICTURES = [Image.new("RGB", (20, 10), colour) for colour in COLOURS]


def places(grid: Image.Image) -> list[tuple[int, int]]:
    """Left upper corner of each picture, all of whose pixels must be there."""
    pixels = np.asarray(grid)
    found = []
    for colour in COLOURS:
        rows, columns = (pixels == colour).all(2).nonzero()
        assert len(rows) == 200 and (np.ptp(columns), np.ptp(rows)) == (19, 9)
        found.append((int(columns.min()), int(rows.min())))
    return found


def test_pictures_stand_in_rows_over_their_captions() -> None:
    grid = draw_grid(PICTURES, [*"abcd", "a long name"], columns=2)
    corners = places(grid)
    assert [x for x, _ in corners] == [7, 34, 7, 34, 7] and grid.width == 61
    assert [y for _, y in corners] == [7, 7, 44, 44, 81] and grid.height == 118
    below = np.asarray(grid)[91:111]
    assert below[:, 7:27].max() > 150 and below[:, 28:].max() <= 40  # cut to the picture's width
    bare = draw_grid(PICTURES, [""] * 5)  # no room for captions
    assert bare.size == (3 * 27 + 7, 2 * 17 + 7) and len(places(bare)) == 5


def test_what_is_no_grid() -> None:
    for pictures, captions, columns in (
        (PICTURES, ["a"], None),
        ([], [], None),
        ([PICTURES[0], Image.new("RGB", (20, 20))], ["a", "b"], None),
        (PICTURES, [""] * 5, 0),
    ):
        with pytest.raises(ValueError, match="expected"):
            draw_grid(pictures, captions, columns)


def pair(width: int, height: int, name: str = "name") -> Pair:
    return Pair(*[Image.new("RGB", (width, height), (200, 0, 0))] * 2, name, "20.00 dB")


def test_sizes_on_the_sheet() -> None:
    def red(sheet: Image.Image) -> tuple[int, int]:
        inside = (np.asarray(sheet) == (200, 0, 0)).all(2)
        return int(inside.any(1).sum()), int(inside.any(0).sum())

    assert red(draw_sections("title", {"Best": [pair(40, 20)]})) == (60, 240)  # three times as large
    assert red(draw_sections("title", {"Best": [pair(1024, 300)]})) == (150, 1024)
    assert red(draw_sections("title", {"Best": [pair(1, 300)], "Worst": []})) == (300, 2)
    many = draw_sections("title " * 99, {"Best": [pair(256, 256, "n" * 500)] * 6, "Worst": [pair(128, 128)]})
    assert many.size == (4 * (514 + GAP) + GAP, GAP + 3 * (LINE + GAP) + 2 * (256 + 2 * LINE + GAP) + 128 + 56)
    assert (np.asarray(many)[:, -GAP:] == BACKGROUND).all()
    with pytest.raises(ValueError, match="expected at least one pair of pictures, got none"):
        draw_sections("title", {"Best": [], "Worst": []})
