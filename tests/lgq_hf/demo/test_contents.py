"""What the parts of the page say."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.demo import view as views
from lgq_hf.demo.contents import (
    PICTURE_PARTS,
    TOKEN_PARTS,
    about,
    picture_contents,
    shortened,
    token_contents,
)
from lgq_hf.demo.drawing import changed_pixels, difference, figure

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


def test_a_code_that_occurs_nowhere(view: views.View, checkpoint: Checkpoint) -> None:
    (unused,) = np.setdiff1d(np.arange(32), view.plain.tokens)[:1]
    parts = token_contents(views.look_at(view, int(unused), checkpoint), checkpoint)
    assert parts["found"] == f"<p>Code {unused} occurs nowhere among 64 tokens.</p>"


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
        f"{view.plain.measures.psnr:.2f}",
        f"{after.other.measures.psnr:.2f}" if after.other else "",
    ]


def test_about_and_names(checkpoint: Checkpoint, tiny: Tiny) -> None:
    line = "sq_l2: a token for each 4 x 4 pixels, one of 32 codes (lgq), 5 bits a token, 0.3125 bits a pixel."
    assert about(checkpoint) == f"<p>{line}</p>"
    assert "8 tokens for each 4 x 4 pixels" in about(tiny("per_channel"))
    assert shortened("x" * 28) == "x" * 28 and shortened("y" + "x" * 28) == "..." + "x" * 25
