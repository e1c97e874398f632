"""`lgq demo` in a browser: a server of its own, Chromium without a window, and what a visitor does."""

import base64
import math
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lgq_hf import LGQConfig, default_checkpoint

pytest.importorskip("gradio", reason="needs gradio: pip install '.[demo]' in a checkout of lgq_hf")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
CODES = LGQConfig.from_pretrained(default_checkpoint()).codebook_size  # K
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
WINDOW = {"width": 1280, "height": 900}
PARTS = (
    *("upload", "size", "name", "compare", "original", "reconstruction", "difference", "note", "numbers"),
    *("grid", "selection", "code", "put", "look", "reset", "edits", "alone", "highlighted", "found"),
)
STARTED_S, DONE_MS = 300, 180_000  # of a machine that has much else to do


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where `lgq demo` answers, started as a user would, on a port that was free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lgq_hf.cli.main", "demo", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as server:
        try:
            yield _address(server)
        finally:
            server.terminate()
            assert server.wait(120) == 128 + 15  # SIGTERM


def _address(server: subprocess.Popen[bytes]) -> str:
    said, end = b"", time.monotonic() + STARTED_S
    assert server.stdout is not None
    while time.monotonic() < end:
        if select.select([server.stdout], [], [], 1)[0]:
            part = os.read(server.stdout.fileno(), 2**16)
            said += part
            if found := re.search(rb"^lgq demo: (http://\S+/)$", said, re.MULTILINE):
                return found[1].decode()
            assert part, f"the server ended: {said.decode()}"
    raise AssertionError(f"no server within {STARTED_S} s: {said.decode()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[[], Any]]:
    """`visit()`: the page as another visitor sees it first. No page may fail, or ask another server for anything."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def look_at(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(request.url)

    def open_page() -> Any:
        contexts.append(browser.new_context(viewport=WINDOW, color_scheme="light"))
        page = contexts[-1].new_page()
        page.set_default_timeout(DONE_MS)
        page.on("request", look_at)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.locator('[data-number="psnr"]').wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def _picture(page: Any, part: str) -> np.ndarray:
    """(h,w,3) uint8 of the picture that a part of the page shows."""
    source = page.locator(f"#lgq-{part} img").get_attribute("src")
    return np.asarray(Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))


def _tokens(page: Any) -> np.ndarray:
    """(h,w) of the grid."""
    grid = page.locator(".lgq-grid")
    rows, columns = (int(grid.get_attribute(f"data-{side}")) for side in ("rows", "columns"))
    return np.array(grid.get_attribute("data-tokens").split(","), dtype=int).reshape(rows, columns)


def _expect(page: Any, part: str, text: str) -> None:
    playwright.expect(page.locator(f"#lgq-{part}")).to_contain_text(text, timeout=DONE_MS)


def _told(page: Any, text: str) -> None:
    """Waits for a message to the visitor, and closes it."""
    message = page.get_by_test_id("toast-text").filter(has_text=text)
    message.wait_for()
    page.locator(".toast-close").first.click()
    message.wait_for(state="detached")


def _click_token(page: Any, row: int, column: int) -> None:
    box, (rows, columns) = page.locator(".lgq-grid").bounding_box(), _tokens(page).shape
    place = {"x": box["width"] * (column + 0.5) / columns, "y": box["height"] * (row + 0.5) / rows}
    page.locator(".lgq-grid").click(position=place)


def _overlaps(page: Any) -> list[str]:
    """Parts of the page that lie over each other, or beyond the window's edge."""
    boxes = {name: page.locator(f"#lgq-{name}").bounding_box() for name in PARTS}
    found = [name for name, box in boxes.items() if box["x"] < 0 or box["x"] + box["width"] > WINDOW["width"]]
    for number, one in enumerate(PARTS):
        for other in PARTS[number + 1 :]:
            a, b = boxes[one], boxes[other]
            across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
            down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
            found += [f"{one} and {other}"] if across > 1 and down > 1 else []
    return found


def test_a_token_is_edited_and_a_code_is_found(
    visit: Callable[[], Any], astronaut: Image.Image, tmp_path: Path
) -> None:
    page = visit()
    astronaut.save(tmp_path / "face.png")
    page.locator("#lgq-upload input[type=file]").set_input_files(tmp_path / "face.png")
    _expect(page, "note", "256 x 256 pixels, as it came.")
    original, before, tokens = _picture(page, "original"), _picture(page, "reconstruction"), _tokens(page)
    assert np.array_equal(original, astronaut) and before.shape == original.shape and tokens.shape == (32, 32)
    error = np.mean((original.astype(float) - before) ** 2) / 255**2
    said = page.locator('[data-number="psnr"]').inner_text()
    assert said == f"{-10 * np.log10(error):.2f} dB" and float(said.split()[0]) > 18

    box = page.locator(".lgq-grid").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 20.5 / 32, box["y"] + box["height"] * 12.5 / 32)
    pointed = f"row 12, column 20: code {tokens[12, 20]}"
    assert page.locator(".lgq-pointed").inner_text() == pointed
    assert page.locator(".lgq-grid").get_attribute("title") == pointed

    _click_token(page, 12, 20)
    _expect(page, "selection", f"Selected: row 12, column 20, code {tokens[12, 20]}.")
    playwright.expect(page.locator("#lgq-code input")).to_have_value(str(tokens[12, 20]))
    page.keyboard.press("ArrowRight")
    _expect(page, "selection", f"Selected: row 12, column 21, code {tokens[12, 21]}.")
    page.keyboard.press("ArrowDown")  # the grid that came has the focus
    _expect(page, "selection", f"Selected: row 13, column 21, code {tokens[13, 21]}.")

    page.locator("#lgq-code input").fill("7")
    page.locator("#lgq-put").click()
    _expect(page, "selection", f"Selected: row 13, column 21, code 7 (was {tokens[13, 21]}).")
    after = _picture(page, "reconstruction")
    changed = int((after != before).any(axis=2).sum())
    assert changed > 0
    _expect(page, "edits", f"1 of 1,024 tokens edited; {changed:,} of 65,536 pixels of the reconstruction changed.")
    assert [_tokens(page)[13, 21], (_tokens(page) != tokens).sum()] == [7, 1]

    code, count = Counter(_tokens(page).reshape(-1).tolist()).most_common(1)[0]
    assert count > 2
    page.locator("#lgq-code input").fill(str(code))
    page.locator("#lgq-look").click()
    _expect(page, "found", f"Code {code} occurs {count} times among 1,024 tokens.")
    _expect(page, "alone", f"Code {code} alone")
    assert _picture(page, "alone").shape == (64, 64, 3)
    # twice as large, and only where the code is as bright as the reconstruction
    shown = _picture(page, "highlighted")
    middles = shown[8::16, 8::16]
    bright = (middles == after[4::8, 4::8]).all(axis=2)
    assert bright[_tokens(page) == code].all() and bright.sum() < 0.2 * bright.size
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == 1280 and len(picture.convert("RGB").getcolors(2**22)) > 10_000
    assert _overlaps(page) == []

    page.locator("#lgq-reset").click()
    _expect(page, "edits", "0 of 1,024 tokens edited; 0 of 65,536 pixels")
    assert np.array_equal(_picture(page, "reconstruction"), before)


def test_visitors_do_not_see_each_other(visit: Callable[[], Any]) -> None:
    one, other = visit(), visit()
    one.locator('[data-sample="1"]').click()
    _expect(one, "note", "Resized from 451 x 300 to 385 x 256 pixels (shorter side 256).")
    _click_token(one, 3, 4)
    _expect(one, "selection", "Selected: row 3, column 4, code ")
    other.locator("#lgq-look").click()
    _told(other, f"expected a code, a whole number from 0 to {CODES - 1}, got ")
    _expect(other, "selection", "No token selected.")
    _expect(other, "note", "Resized from 512 x 512 to 256 x 256 pixels (shorter side 256).")
    assert _tokens(other).shape == (32, 32) != _tokens(one).shape


def test_what_cannot_be_done_is_told_and_changes_nothing(visit: Callable[[], Any], tmp_path: Path) -> None:
    page = visit()
    before = _picture(page, "reconstruction")
    (tmp_path / "text.txt").write_text("this is no picture")
    page.locator("#lgq-upload input[type=file]").set_input_files(tmp_path / "text.txt")
    _told(page, "this file cannot be shown: not an image that can be read, or damaged in its header")
    page.locator("#lgq-put").click()
    _told(page, f"expected a code, a whole number from 0 to {CODES - 1}, got nothing")
    page.locator("#lgq-code input").fill(str(CODES))
    page.locator("#lgq-put").click()
    _told(page, f"expected a code, a whole number from 0 to {CODES - 1}, got {CODES}")
    page.locator("#lgq-code input").fill("7")
    page.locator("#lgq-put").click()
    _told(page, "no token is selected: click one in the grid first")
    page.locator("#lgq-name").locator("input, textarea").fill("<img src=x onerror=alert(1)>")
    page.locator("#lgq-compare").click()
    _told(page, "<img src=x onerror=alert(1)>")
    assert np.array_equal(_picture(page, "reconstruction"), before)


def test_a_second_checkpoint_stands_beside_the_first(visit: Callable[[], Any], model_folder: Path) -> None:
    page = visit()
    page.locator("#lgq-name").locator("input, textarea").fill(str(model_folder))
    page.locator("#lgq-compare").click()
    page.locator("#lgq-other img").wait_for()
    assert page.locator('[data-number="bits"]').all_inner_texts() == [
        f"{1024 * math.log2(CODES):,.0f} = 1,024 x log2({CODES:,})",
        "6,144 = 1,024 x log2(64)",
    ]
    good, random = page.locator('[data-number="psnr"]').all_inner_texts()
    assert float(good.split()[0]) > float(random.split()[0]) + 5
    assert not np.array_equal(_picture(page, "other"), _picture(page, "reconstruction"))
    page.locator('[data-sample="1"]').click()  # another picture is compared too
    _expect(page, "note", "Resized from 451 x 300")
    assert page.locator('[data-number="size"]').all_inner_texts() == ["385 x 256 px"] * 2
    page.locator("#lgq-name").locator("input, textarea").fill("")
    page.locator("#lgq-compare").click()
    playwright.expect(page.locator('[data-number="psnr"]')).to_have_count(1, timeout=DONE_MS)
