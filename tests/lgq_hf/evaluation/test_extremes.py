"""The sheet of extremes: the right pictures in the right order, with room for their text."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.tokenizers import draw_extremes
from lgq_hf.images.sources import open_source
from tests.lgq_hf.evaluation.plain import Seen, evaluated, settings

BACKGROUND = (40, 40, 40)
LINE, GAP, INNER = 21, 14, 2


def cells(sheet: np.ndarray, pairs: list[tuple[int, int]], wide: int, high: int) -> list[np.ndarray]:
    """Original and reconstruction, one above the other, of the pairs at these places (row, column)."""
    found = []
    for row, column in pairs:
        top = GAP + (LINE + GAP) * (1 + row) + row * (high + 2 * LINE + GAP) + LINE
        left = GAP + column * (2 * wide + INNER + GAP)
        found.append([sheet[top : top + high, left + i * (wide + INNER) :][:, :wide] for i in (0, 1)])
    return [np.stack(pair) for pair in found]


def test_best_is_best_and_worst_is_worst(tiny: Checkpoint, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for number in range(5):  # from grey to noise: the random model makes nearly one colour of everything
        pixels = 128 + noise.standard_normal((64, 64, 3)) * 15 * number
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
    source, how = open_source(str(tmp_path), kind="folder"), settings(size=64, batch_size=2)
    result = evaluated(tiny, source, how)
    sheet = np.asarray(draw_extremes(tiny, source, how, result))
    pairs = Seen(tiny, source, 64, 2).pairs
    errors = [((a.astype(float) - b) ** 2).mean() for a, b in pairs]
    order = np.argsort(errors, kind="stable")
    places = cells(sheet, [(0, 0), (0, 1), (1, 0), (1, 1)], 128, 128)
    for place, number in zip(places, [*order[:2], *order[:-3:-1]], strict=True):
        for shown, pixels in zip(place, pairs[number], strict=True):
            assert np.array_equal(shown[::2, ::2], pixels) and np.array_equal(shown[1::2, 1::2], pixels)  # magnified
    assert [view["id"] for view in result["extremes"]["best"]] == [f"{number}.png" for number in order[:2]]
    assert sheet.shape == (GAP + 3 * (LINE + GAP) + 2 * (128 + 2 * LINE + GAP), sheet.shape[1], 3)


def test_pictures_of_several_sizes_and_crops(tiny: Checkpoint, photographs: Path) -> None:
    source = open_source(str(photographs), kind="folder")
    for how in (settings(size=None), settings(crops=5, crop_scale=1.5, flip=True, batch_size=10)):
        sheet = draw_extremes(tiny, source, how, evaluated(tiny, source, how))
        assert sheet.width <= 2200 + 2 * GAP and (np.asarray(sheet)[:, -GAP:] == BACKGROUND).all()


def test_a_picture_that_went_away_is_named(tiny: Checkpoint, tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
    source, how = open_source(str(tmp_path), kind="folder"), settings()
    result = evaluated(tiny, source, how)
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"1.png in .*: no such file"):
        draw_extremes(tiny, source, how, result)
