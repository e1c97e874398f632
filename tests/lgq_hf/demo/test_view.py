"""What a visitor can do with an image and its tokens."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from lgq_hf import LGQImageProcessor
from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.demo import view as pictures
from lgq_hf.demo import view as views
from lgq_hf.demo.view import SIZES, View, fit, open_upload, samples


def test_a_picture_is_opened_as_rgb(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 10), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    opened = open_upload(tmp_path / "clear.png")
    assert (opened.mode, opened.size, opened.getpixel((3, 3))) == ("RGB", (20, 10), (255, 255, 255))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "this file cannot be shown: not an image that can be read, or damaged in its header"),
        ("truncated", "this file cannot be shown: truncated: the file ends before the picture does"),
        ("empty", "this file cannot be shown: empty file"),
    ],
)
def test_what_is_no_picture_is_told(broken: dict[str, Path], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        open_upload(broken[kind])
    assert "\n" not in str(raised.value) and str(broken[kind]) not in str(raised.value)


def test_an_upload_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    Image.new("RGB", (20, 10)).save(tmp_path / "photo.png", "EPS")
    message = r"^this file cannot be shown: not an image that can be read, .*formats: .*PNG"
    with pytest.raises(ValueError, match=message):
        open_upload(tmp_path / "photo.png")


def test_large_files_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 300)).save(tmp_path / "grey.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 - 1)
    message = "this file cannot be shown: decompression bomb: more than 89999 pixels"
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match=message):  # Pillow only warns
        open_upload(tmp_path / "grey.png")
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(pictures.MOST_BYTES + 2**20)
    with pytest.raises(ValueError, match=r"the file has 21\.0 MB, expected at most 20 MB: shrink it"):
        open_upload(tmp_path / "long.png")


@pytest.mark.parametrize(
    ("came", "shorter", "size", "note"),
    [
        ((640, 400), 256, (410, 256), "Resized from 640 x 400 to 410 x 256 pixels (shorter side 256)."),
        ((200, 150), 256, (200, 150), "200 x 150 pixels, as it came."),
        ((256, 300), 256, (256, 300), "256 x 300 pixels, as it came."),
        ((100, 4096), 256, (50, 2048), "Resized from 100 x 4096 to 50 x 2048 pixels (longer side at most 2048)."),
        ((5000, 1), 512, (2048, 1), "Resized from 5000 x 1 to 2048 x 1 pixels (longer side at most 2048)."),
        ((3000, 3000), 512, (512, 512), "Resized from 3000 x 3000 to 512 x 512 pixels (shorter side 512)."),
    ],
)
def test_pictures_are_shrunk_and_never_enlarged(
    came: tuple[int, int], shorter: int, size: tuple[int, int], note: str
) -> None:
    picture, told = fit(Image.new("RGB", came), shorter)
    assert (picture.size, told) == (size, note)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape(f"working size: expected one of {SIZES} pixels, got 100000")):
        fit(Image.new("RGB", (10, 10)), 100000)


def test_samples_are_photographs_or_a_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [sample.name for sample in samples()] == ["astronaut", "chelsea", "coffee", "rocket"]
    assert {sample.picture.mode for sample in samples()} == {"RGB"}
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    (drawn,) = samples.__wrapped__()
    assert (drawn.name, drawn.picture.mode, drawn.picture.size) == ("drawn", "RGB", (256, 256))
    assert len(drawn.picture.getcolors(2**20)) > 1000 and np.asarray(drawn.picture).std() > 40


Tiny = Callable[..., Checkpoint]


@pytest.fixture
def opened(tiny: Tiny, astronaut: Image.Image) -> tuple[View, Checkpoint]:
    """A picture of 32 x 32 pixels, of which the model makes 8 x 8 tokens below 32."""
    checkpoint = tiny("sq_l2")
    return views.open_view(checkpoint, astronaut.resize((32, 32)), 128), checkpoint


def test_every_model_shows_a_reconstruction_and_its_bits(case: str, tiny: Tiny, chelsea: Image.Image) -> None:
    checkpoint = tiny(case)
    config = checkpoint.config
    view = views.open_view(checkpoint, chelsea.resize((50, 39)), 128)
    plain = view.plain
    with torch.inference_mode():
        pixel_values, size = checkpoint.pixels(plain.original, None)
        expected = checkpoint.model(pixel_values)
    assert np.array_equal(plain.tokens, expected.image_tokens[0].numpy())
    assert np.array_equal(plain.picture, checkpoint.picture(expected.decoded_pixel_values, size))
    assert np.array_equal(plain.original, chelsea.resize((50, 39)))
    shown = {key: text for key, _, text in plain.numbers}
    assert shown["grid"] == " x ".join(map(str, plain.tokens.shape)) and float(shown["bits_per_pixel"]) > 0
    assert plain.tokens.ndim == (2 if config.tokens_per_position == 1 else 3)
    assert view.note == "50 x 39 pixels, as it came." and view.edited == []


def test_a_checkpoint_does_not_make_pictures_larger(tiny: Tiny, chelsea: Image.Image) -> None:
    checkpoint = tiny("sq_l2")
    greedy: dict[str, Any] = {"do_resize": True, "size": {"shortest_edge": 512}, "pad_to_multiple_of": 512}
    greedy |= {"do_center_crop": True, "crop_size": {"height": 300, "width": 300}}
    asking = Checkpoint("greedy", Path(), checkpoint.model, LGQImageProcessor(**greedy), torch.device("cpu"))
    view = views.compare(views.open_view(checkpoint, chelsea.resize((50, 39)), 128), asking, "greedy")
    assert view.other is not None and view.other.tokens.shape == (10, 13)  # of 4 x 4 pixels
    assert np.array_equal(view.other.original, view.plain.original)
    assert np.array_equal(view.other.picture, view.plain.picture)


def test_uploads_and_sizes(tiny: Tiny, chelsea: Image.Image, tmp_path: Path) -> None:
    chelsea.save(tmp_path / "cat.png")
    view = views.open_view(tiny("sq_l2"), tmp_path / "cat.png", 128)
    assert view.plain.original.size == (173, 128) and view.source == tmp_path / "cat.png"
    (tmp_path / "cat.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="^this file cannot be shown: "):
        views.open_view(tiny("sq_l2"), tmp_path / "cat.png", 128)


def test_a_click_selects_a_token_and_its_code(opened: tuple[View, Checkpoint]) -> None:
    view, checkpoint = opened
    after = views.select(view, {"row": 2, "column": 7}, checkpoint)
    assert (after.selected, after.code) == ((2, 7), int(view.plain.tokens[2, 7]))
    assert after.now is view.plain and view.selected is None


@pytest.mark.parametrize(
    "at",
    [
        {"row": 8, "column": 0},
        {"row": -1, "column": 0},
        {"row": 0, "column": 8},
        {"row": 0.5, "column": 0},
        {"row": True, "column": 0},
        {"row": "0", "column": 0},
        {"column": 0},
        None,
        [0, 0],
    ],
)
def test_other_places_are_refused(opened: tuple[View, Checkpoint], at: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a row below 8 and a column below 8, got \("):
        views.select(opened[0], at, opened[1])


def test_put_decodes_again_and_reset_takes_it_back(opened: tuple[View, Checkpoint]) -> None:
    view, checkpoint = opened
    own = int(view.plain.tokens[3, 4])
    code = (own + 5) % 32
    after = views.put(views.select(view, {"row": 3, "column": 4}, checkpoint), float(code), checkpoint)
    expected = view.plain.tokens.copy()
    expected[3, 4] = code
    assert np.array_equal(after.now.tokens, expected)
    assert np.array_equal(after.now.picture, checkpoint.decode(expected, (32, 32)))
    assert not np.array_equal(after.now.picture, view.plain.picture)
    assert after.now.numbers[0] != view.plain.numbers[0]
    assert (after.edited, after.code, after.selected) == ([(3, 4)], code, (3, 4))
    assert int(view.plain.tokens[3, 4]) == own  # nothing is changed in place

    two = views.put(views.select(after, {"row": 0, "column": 0}, checkpoint), (code + 1) % 32, checkpoint)
    assert two.edited == [(0, 0), (3, 4)]
    back = views.reset(two)
    assert back.now is view.plain and back.edited == []
    assert (back.selected, back.code) == ((0, 0), int(view.plain.tokens[0, 0]))
    again = views.put(views.select(after, {"row": 3, "column": 4}, checkpoint), own, checkpoint)
    assert again.now is view.plain  # the token has its own code again


def test_put_needs_a_token(opened: tuple[View, Checkpoint]) -> None:
    with pytest.raises(ValueError, match="^no token is selected: click one in the grid first$"):
        views.put(opened[0], 3, opened[1])


@pytest.mark.parametrize(
    ("code", "came"),
    [
        (32, "32"),
        (-1, "-1"),
        (1.5, "1.5"),
        (None, "nothing"),
        ("7", "7"),
        (True, "True"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_what_is_no_code_is_refused(opened: tuple[View, Checkpoint], code: Any, came: str) -> None:
    message = f"^expected a code, a whole number from 0 to 31, got {re.escape(came)}$"
    with pytest.raises(ValueError, match=message):
        views.look_at(opened[0], code, opened[1])


def test_several_tokens_a_position_are_not_edited(tiny: Tiny, astronaut: Image.Image) -> None:
    checkpoint = tiny("per_channel")
    view = views.open_view(checkpoint, astronaut.resize((32, 32)), 128)
    message = (
        "^this checkpoint has 8 tokens at each position, and only one a position can be shown as a grid and edited$"
    )
    for act in (
        lambda: views.select(view, {"row": 0, "column": 0}, checkpoint),
        lambda: views.put(view, 1, checkpoint),
    ):
        with pytest.raises(ValueError, match=message):
            act()


def test_comparing_shows_the_same_picture_through_another(opened: tuple[View, Checkpoint], tiny: Tiny) -> None:
    view, _ = opened
    other = tiny("per_channel")
    after = views.compare(view, other, "org/other")
    assert after.other is not None and (after.other.name, after.other_name) == ("org/other", "org/other")
    assert np.array_equal(after.other.original, view.plain.original)
    assert after.other.tokens.shape == (8, 8, 8) and after.now is view.now
    assert np.array_equal(after.other.picture, other.decode(after.other.tokens, (32, 32)))


def test_a_code_alone_fills_a_grid(tiny: Tiny) -> None:
    checkpoint = tiny("vqgan_lgq")
    factor = checkpoint.config.spatial_downsample_factor
    picture = views.alone(checkpoint, 9)
    assert picture.size == (8 * factor, 8 * factor)
    assert np.array_equal(picture, checkpoint.decode(np.full((8, 8), 9, dtype=np.uint16), picture.size))
    assert not np.array_equal(picture, views.alone(checkpoint, 10))


def test_the_embedded_checkpoint_changes_where_the_token_is(embedded: Checkpoint, astronaut: Image.Image) -> None:
    view = views.open_view(embedded, astronaut, 128)
    shown, bits = {key: text for key, _, text in view.plain.numbers}, 256 * math.log2(embedded.config.codebook_size)
    assert shown["grid"] == "16 x 16" and shown["bits"].startswith(f"{bits:,.0f} = 256 x log2(")
    assert 15 < float(shown["psnr"].removesuffix(" dB")) < 40
    after = views.put(views.select(view, {"row": 4, "column": 10}, embedded), 7, embedded)
    change = np.abs(np.asarray(after.now.picture).astype(int) - np.asarray(view.plain.picture)).sum(axis=2)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert abs(row - 36) <= 12 and abs(column - 84) <= 12
