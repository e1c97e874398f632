"""What the page takes as a picture, and at which size."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from lgq_hf.demo import pictures
from lgq_hf.demo.pictures import SIZES, drawn_picture, fit, open_upload, samples


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
    message = r"^this file cannot be shown: expected a picture in one of the formats .*, got EPS: convert it$"
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
    assert (drawn.name, drawn.picture.mode, drawn.picture.size) == ("drawn", "RGB", (384, 256))
    assert np.array_equal(drawn.picture, drawn_picture())
    assert len(drawn.picture.getcolors(2**20)) > 1000 and np.asarray(drawn.picture).std() > 40
