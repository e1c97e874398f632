"""What a visitor does: pictures, tokens, codes, and a second checkpoint."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgq_hf import LGQImageProcessor
from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.demo import view as views
from lgq_hf.demo.view import View

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
    assert plain.measures.grid == plain.tokens.shape and plain.measures.bits_per_pixel > 0
    assert len(plain.measures.grid) == (2 if config.tokens_per_position == 1 else 3)
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
    assert after.now.measures.psnr != view.plain.measures.psnr
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
    bits = 256 * math.log2(embedded.config.codebook_size)
    assert view.plain.measures.grid == (16, 16) and view.plain.measures.bits == bits
    assert 15 < view.plain.measures.psnr < 40
    after = views.put(views.select(view, {"row": 4, "column": 10}, embedded), 7, embedded)
    change = np.abs(np.asarray(after.now.picture).astype(int) - np.asarray(view.plain.picture)).sum(axis=2)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert abs(row - 36) <= 12 and abs(column - 84) <= 12
