"""What the parts of the page say and show: numbers, differences, token grids and highlighted codes."""

import base64
import importlib
import re
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.demo import view as views
from lgq_hf.demo.drawing import (
    PICTURE_PARTS,
    TOKEN_PARTS,
    about,
    changed_pixels,
    code_colours,
    difference,
    figure,
    grid_html,
    highlight,
    occurrences,
    picture_contents,
    sample_buttons,
    shortened,
    table,
    token_contents,
)
from lgq_hf.demo.view import Sample, numbers


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


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_facts_as_text() -> None:
    picture = _noise((256, 128), 0)
    assert (numbers(picture, picture, (16, 32), 4096)) == [
        ("psnr", "PSNR", "no difference"),
        ("ssim", "SSIM", "1.000"),
        ("size", "Picture", "256 x 128 px"),
        ("grid", "Token grid", "16 x 32"),
        ("bits", "Bits", "6,144 = 512 x log2(4,096)"),
        ("bits_per_pixel", "Bits per pixel", "0.188"),
        ("compression", "Against raw RGB", "128.0 : 1"),
    ]
    of_channels = {key: text for key, _, text in (numbers(picture, picture, (4, 8, 16), 6))}
    assert of_channels["grid"] == "4 x 8 x 16"


def test_ssim_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    small = numbers(_noise((10, 30), 0), _noise((10, 30), 1), (1, 3), 8)
    assert small[1] == ("ssim", "SSIM", "needs sides of 11 pixels")

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    without = numbers(_noise((20, 30), 0), _noise((20, 30), 1), (1, 3), 8)
    assert without[1] == ("ssim", "SSIM", "needs the extra metrics")


def test_table_has_a_line_for_each_name_and_escapes_it() -> None:
    one = numbers(_noise((20, 30), 0), _noise((20, 30), 1), (1, 3), 8)
    html = table([("first", one), ("<script>alert(1)</script>", one)])
    assert html.count('data-number="psnr"') == 2 and html.count("<th>PSNR</th>") == 1
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html


Tiny = Callable[..., Checkpoint]


@pytest.fixture
def checkpoint(tiny: Tiny) -> Checkpoint:
    return tiny("sq_l2")


@pytest.fixture
def view(checkpoint: Checkpoint, astronaut: Image.Image) -> views.View:
    return views.open_view(checkpoint, astronaut.resize((32, 32)), 128)


def test_a_picture_without_anything_selected(view: views.View, checkpoint: Checkpoint) -> None:
    pictures, tokens = picture_contents(view), token_contents(view, checkpoint)
    assert tuple(pictures) == PICTURE_PARTS and set(tokens) == set(TOKEN_PARTS)
    assert pictures["original"] == figure(view.plain.original, "Original")
    assert pictures["reconstruction"] == figure(view.plain.picture, "Reconstruction")
    expected = difference(view.plain.original, view.plain.picture)
    assert pictures["difference"] == figure(expected, "Difference, 4 times")
    assert pictures["other"] == "" and pictures["note"] == "<p>32 x 32 pixels, as it came.</p>"
    assert '<td data-number="bits">320 = 64 x log2(32)</td>' in pictures["numbers"]
    assert tokens["selection"] == "<p>No token selected.</p>" and tokens["code"] is None
    assert tokens["edits"] == "<p>0 of 64 tokens edited; 0 of 1,024 pixels of the reconstruction changed.</p>"
    assert tokens["found"] == "<p>Select a token, or choose a code.</p>"


def test_an_edited_token_is_told_everywhere(view: views.View, checkpoint: Checkpoint) -> None:
    own = int(view.plain.tokens[3, 4])
    code = (own + 5) % 32
    after = views.put(views.select(view, {"row": 3, "column": 4}, checkpoint), code, checkpoint)
    pictures, tokens = picture_contents(after), token_contents(after, checkpoint)
    assert "<figcaption>Reconstruction (edited)</figcaption>" in pictures["reconstruction"]
    assert "<th>sq_l2 (edited)</th>" in pictures["numbers"]
    assert tokens["selection"] == f"<p>Selected: row 3, column 4, code {code} (was {own}).</p>"
    changed = changed_pixels(view.plain.picture, after.now.picture)
    assert changed > 0
    assert (
        tokens["edits"] == f"<p>1 of 64 tokens edited; {changed:,} of 1,024 pixels of the reconstruction changed.</p>"
    )
    assert tokens["code"] == code and tokens["grid"].count('class="lgq-edited"') == 1
    count = int((after.now.tokens == code).sum())
    times = "once" if count == 1 else f"{count} times"
    assert tokens["found"] == f"<p>Code {code} occurs {times} among 64 tokens.</p>"
    assert f"<figcaption>Code {code} alone</figcaption>" in tokens["alone"]


def test_several_tokens_a_position_say_that_there_is_no_grid(tiny: Tiny, astronaut: Image.Image) -> None:
    checkpoint = tiny("per_channel")
    view = views.open_view(checkpoint, astronaut.resize((32, 32)), 128)
    parts = token_contents(view, checkpoint)
    said = "No grid here: this checkpoint has 8 tokens at each position, and only one a position can be shown"
    assert tuple(parts) == TOKEN_PARTS and said in parts["grid"] and parts["edits"] == ""
    assert '<td data-number="grid">8 x 8 x 8</td>' in picture_contents(view)["numbers"]


def test_a_second_checkpoint_stands_beside_the_first(view: views.View, tiny: Tiny) -> None:
    name = "/a/folder/with/a/rather/long/path/<b>"
    after = views.compare(view, tiny("vq_ema"), name)
    pictures = picture_contents(after)
    assert pictures["numbers"].count("<tr>") == 3 and "<b>" not in pictures["numbers"] + pictures["other"]
    assert "By ...th/a/rather/long/path/&lt;b&gt;" in pictures["other"]
    assert re.findall(r'data-number="psnr">([\d.]+) dB', pictures["numbers"]) == [
        view.plain.numbers[0][2].removesuffix(" dB"),
        after.other.numbers[0][2].removesuffix(" dB") if after.other else "",
    ]


def test_about_and_names(checkpoint: Checkpoint, tiny: Tiny) -> None:
    line = "sq_l2: a token for each 4 x 4 pixels, one of 32 codes (lgq), 5 bits a token, 0.3125 bits a pixel."
    assert about(checkpoint) == f"<p>{line}</p>"
    assert "8 tokens for each 4 x 4 pixels" in about(tiny("per_channel"))
    assert shortened("x" * 28) == "x" * 28 and shortened("y" + "x" * 28) == "..." + "x" * 25
