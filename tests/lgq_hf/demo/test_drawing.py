"""Differences, token grids and highlighted codes, pixel by pixel."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lgq_hf.demo.drawing import (
    changed_pixels,
    code_colours,
    difference,
    figure,
    grid_html,
    highlight,
    occurrences,
    sample_buttons,
)
from lgq_hf.demo.pictures import Sample


def _pictures(html: str) -> list[Image.Image]:
    return [Image.open(BytesIO(base64.b64decode(found))) for found in re.findall(r'base64,([^"]+)"', html)]


def test_difference_is_amplified_and_cut() -> None:
    a, b = Image.new("RGB", (2, 1), (10, 200, 0)), Image.new("RGB", (2, 1), (13, 190, 255))
    assert difference(a, b).getpixel((1, 0)) == (12, 40, 255) == difference(b, a).getpixel((1, 0))


def test_changed_pixels_counts_each_pixel_once() -> None:
    a = Image.new("RGB", (5, 4))
    b = a.copy()
    b.putpixel((0, 0), (1, 1, 1))
    b.putpixel((4, 3), (0, 0, 1))
    assert (changed_pixels(a, b), changed_pixels(a, a)) == (2, 0)


def test_colours_belong_to_codes() -> None:
    codes = np.arange(4096)
    colours = code_colours(codes)
    assert (colours.shape, colours.dtype) == ((4096, 3), np.uint8)
    assert np.array_equal(code_colours(codes[::-1].reshape(64, 64))[0, 0], colours[4095])
    assert len(np.unique(colours, axis=0)) > 4000
    neighbours = np.abs(colours[1:].astype(int) - colours[:-1]).sum(axis=1)
    assert neighbours.min() > 60  # of 765: they can be told apart
    assert code_colours(np.array([2**18 - 1])).max() >= 100  # nothing is nearly black
    assert colours[[0, 1]].tolist() == [[36, 81, 196], [99, 138, 43]]  # in whatever run


def test_grid_holds_tokens_colours_and_frames() -> None:
    tokens = np.array([[7, 8, 9], [9, 9, 300]], dtype=np.uint16)
    html = grid_html(tokens, selected=(1, 2), edited=[(0, 0), (1, 2)])
    assert 'data-rows="2" data-columns="3" data-selected="1,2" data-tokens="7,8,9,9,9,300"' in html
    (picture,) = _pictures(html)
    assert np.array_equal(picture.convert("RGB"), code_colours(tokens.astype(int)))
    assert html.count('class="lgq-edited"') == 2
    place = "left:66.6667%;top:50.0000%;width:33.3333%;height:50.0000%"
    assert f'<div class="lgq-selected" style="{place}"></div>' in html
    assert 'data-selected=""' in grid_html(tokens) and "lgq-selected" not in grid_html(tokens)


def test_occurrences_and_their_places_in_the_picture() -> None:
    tokens = np.array([[1, 2, 1], [2, 2, 1]])
    assert occurrences(tokens, 1).tolist() == [[0, 0], [0, 2], [1, 2]]
    assert occurrences(tokens, 5).tolist() == []
    picture = Image.new("RGB", (160 * 2 + 100, 320), (200, 100, 50))  # the last column is partly padding
    shown = highlight(picture, tokens, 1, 160)
    assert shown.size == picture.size
    assert shown.getpixel((80, 80)) == (200, 100, 50) == shown.getpixel((400, 300))
    assert shown.getpixel((240, 80)) == (60, 30, 15)
    assert shown.getpixel((0, 80)) == (255, 40, 160) == shown.getpixel((419, 200))


def test_small_pictures_are_enlarged_and_tokens_of_the_padding_are_nowhere() -> None:
    tokens = np.array([[1, 3], [3, 3]])
    shown = highlight(Image.new("RGB", (8, 8), (200, 100, 50)), tokens, 3, 8)
    assert shown.size == (512, 512)
    assert shown.getcolors() == [(512 * 512, (60, 30, 15))]


@pytest.mark.parametrize("size", [(3, 5), (64, 64)])
def test_figure_is_the_picture_itself_under_an_escaped_caption(size: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    html = figure(noise, 'by "<b>"')
    (found,) = _pictures(html)
    assert np.array_equal(found, noise)
    assert "<figcaption>by &quot;&lt;b&gt;&quot;</figcaption>" in html and "<b>" not in html
    assert "<img" not in figure(None, "nothing")


def test_samples_are_square_buttons_by_number() -> None:
    html = sample_buttons([Sample("a", Image.new("RGB", (200, 100))), Sample("<b>", Image.new("RGB", (30, 90)))])
    assert [picture.size for picture in _pictures(html)] == [(64, 64), (64, 64)]
    assert re.findall(r'data-sample="(\d)"', html) == ["0", "1"] and "&lt;b&gt;" in html
