"""`lgq reconstruct`: a sheet with the right pixels, the right numbers, and room for its text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.cli import reconstruct
from lgq_hf.images.sheet import shortened

Lgq = Callable[..., Any]
GAP = 7  # half of the smallest font
BACKGROUND = (40, 40, 40)


def reconstruction_of(picture: Image.Image, folder: Path) -> np.ndarray:
    processor = LGQImageProcessor.from_pretrained(folder)
    inputs = processor(picture, return_tensors="pt")
    with torch.inference_mode():
        decoded = LGQModel.from_pretrained(folder)(inputs["pixel_values"]).decoded_pixel_values
    return np.asarray(processor.postprocess(decoded, inputs["original_sizes"])[0])


def test_two_rows(tmp_path: Path, lgq: Lgq, model_folder: Path, astronaut: Image.Image, chelsea: Image.Image) -> None:
    astronaut.save(tmp_path / "astronaut.png")
    chelsea.save(tmp_path / "chelsea.png")
    result = lgq("reconstruct", tmp_path, "-o", tmp_path / "new" / "out.png")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    sheet = np.asarray(Image.open(tmp_path / "new" / "out.png"))
    assert sheet.shape[1] == 2 * 256 + 3 * GAP
    top = GAP
    for name, picture, line, grid in (
        ("astronaut.png", astronaut, lines[0], "32 x 32"),
        ("chelsea.png", chelsea, lines[1], "19 x 26"),
    ):
        expected = reconstruction_of(picture, model_folder)
        height, width = expected.shape[:2]
        left = sheet[top : top + height, GAP : GAP + width]
        right = sheet[top : top + height, 2 * GAP + width : 2 * GAP + 2 * width]
        assert (left == np.asarray(picture)).all()
        assert (right == expected).all()
        decibels = peak_signal_noise_ratio(np.asarray(picture), expected, data_range=255)
        rows, columns = map(int, grid.split(" x "))
        bits = rows * columns * 6 / (height * width)
        size = f"{width} x {height} px"
        assert line == f"{name}: {size}, PSNR {decibels:.2f} dB, {grid} tokens (h x w), {bits:.3f} bits/px"
        caption = sheet[top + height : top + height + 45]
        assert (caption > 200).any()  # the text
        top += height + 2 * 20 + 2 * GAP
    assert sheet.shape[0] == top


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 1)])
def test_thin_pictures_have_room_for_their_text(
    tmp_path: Path, lgq: Lgq, chelsea: Image.Image, width: int, height: int
) -> None:
    chelsea.resize((width, height)).save(tmp_path / "thin.png")
    result = lgq("reconstruct", tmp_path / "thin.png", "-o", tmp_path / "out.png")
    assert result.status == 0
    sheet = np.asarray(Image.open(tmp_path / "out.png"))
    assert sheet.shape[1] > 250
    assert (sheet[:, -GAP + 1 :] == BACKGROUND).all()  # no letter is cut off
    assert (sheet[-GAP + 1 :] == BACKGROUND).all()
    text = (sheet[height + GAP :] > 200).any(axis=(0, 2)).nonzero()[0]
    assert text.max() > 200


def test_tokens_per_channel_are_counted(
    tmp_path: Path, lgq: Lgq, chelsea: Image.Image, make_model: Callable[..., Path]
) -> None:
    folder = make_model(tmp_path / "model", codebook_mode="per_channel", codebook_size=8)
    chelsea.resize((64, 64)).save(tmp_path / "x.png")
    result = lgq("reconstruct", tmp_path / "x.png", "-o", tmp_path / "out.png", "--model", folder)
    assert result.out.endswith("8 x 8 x 16 tokens (h x w x channels), 0.750 bits/px\n")


def test_broken_pictures_leave_no_row(tmp_path: Path, lgq: Lgq, chelsea: Image.Image, broken: dict[str, Path]) -> None:
    chelsea.save(tmp_path / "x.png")
    result = lgq("reconstruct", *broken.values(), tmp_path / "x.png", "-o", tmp_path / "out.png")
    assert result.status == 1
    assert "4 of 5 images failed" in result.err
    assert len(result.out.splitlines()) == 1
    assert Image.open(tmp_path / "out.png").height == chelsea.height + 2 * 20 + 3 * GAP


def test_a_sheet_has_an_end(tmp_path: Path, lgq: Lgq, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "MOST_PIXELS", 3_000_000)
    for i in range(3):
        chelsea.resize((1000, 700)).save(tmp_path / f"{i}.png")
    result = lgq("reconstruct", tmp_path, "-o", tmp_path / "out.png")
    assert result.status == 1
    assert result.err.count("no room: a sheet holds up to 3 megapixels; use --size") == 2
    assert "2.png" in result.err
    assert len(result.out.splitlines()) == 2


@pytest.mark.parametrize("name", ["x" * 60, "x" * 61, "photographs/" * 40 + "end.png"])
def test_long_names_lose_their_middle(name: str) -> None:
    short = shortened(name)
    assert len(short) <= 60
    assert short == name or (name.startswith(short[:25]) and name.endswith(short[-25:]) and "..." in short)
