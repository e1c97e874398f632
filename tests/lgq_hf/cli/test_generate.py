"""`lgq generate`: the picture it draws, what it prints, and what it refuses before the work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgq_hf.cli.main import main
from lgq_hf.generation import load_pipeline
from lgq_hf.generation.draw import picture_generator
from tests.lgq_hf.generation.pipelines import small_pipeline

KINDS = ("masked", "autoregressive")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    for kind in KINDS:
        small_pipeline(kind, id2label={0: "cats", 1: "people", 2: "7"}).save_pretrained(folder / kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_classes_in_turn(
    kind: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "grid.png"
    words = ["generate", "--pipeline", str(place / kind), "--class", "people", "--class", "0", "--num", "5"]
    words += ["--guidance", "2", "--temperature", "0.9", "--top-k", "9", "--top-p", "0.9", "--seed", "3"]
    assert main([*words, "--batch-size", "2", "-o", str(output)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{output}: 5 images of 32 x 32 pixels (height x width), --seed 3\n" and "Loading" not in err
    grid = np.asarray(Image.open(output))
    assert grid.shape == (2 * (32 + 20 + 7) + 7, 3 * (32 + 7) + 7, 3)
    pipe = load_pipeline(place / kind)
    options = {"guidance_scale": 2.0, "temperature": 0.9, "top_k": 9, "top_p": 0.9}
    picture = pipe("people", generator=picture_generator(3, 4), **options).images[0]
    top, left = 7 + 32 + 20 + 7, 7 + 32 + 7  # the fifth
    assert np.array_equal(grid[top : top + 32, left : left + 32], np.asarray(picture))
    again = tmp_path / "again.png"
    assert main([*words, "--batch-size", "5", "-o", str(again)]) == 0
    assert np.abs(np.asarray(Image.open(again)).astype(int) - grid).max() <= 1  # another batch, rounded otherwise


def test_no_class_a_drawn_seed_and_half_precision(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--pipeline", str(place / "masked"), "--num", "1", "--steps", "2", "--dtype", "bfloat16"]
    assert main([*words, "-o", str(tmp_path / "one.png")]) == 0
    out = capsys.readouterr().out
    assert "1 image of 32 x 32" in out
    assert Image.open(tmp_path / "one.png").size == (32 + 14, 32 + 14)  # without captions
    seed = out.rpartition(" ")[2].strip()
    assert main([*words, "--seed", seed, "-o", str(tmp_path / "two.png")]) == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_name_that_looks_like_a_number_is_a_name(place: Path, tmp_path: Path) -> None:
    words = ["generate", "--pipeline", str(place / "masked"), "--num", "1", "--seed", "0", "--steps", "2"]
    assert main([*words, "--class", "7", "-o", str(tmp_path / "one.png")]) == 0
    assert main([*words, "--class", "2", "-o", str(tmp_path / "two.png")]) == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pipeline", "masked", "-o", "grid.jpg"], "grid.jpg: expected a name that ends in .png"),
        (["--pipeline", "masked", "-o", "grid.png", "--num", "0"], "--num: expected at least 1 image, got 0"),
        (["--pipeline", "masked", "-o", "grid.png", "--class", "dogs"], "'dogs'"),
        (["--pipeline", "autoregressive", "-o", "grid.png", "--steps", "3"], "has one step for each token; leave it"),
        (["--pipeline", "./nowhere", "-o", "grid.png"], "no folder './nowhere'"),
    ],
)
def test_what_is_refused(
    words: list[str], message: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["generate", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("grid.png").exists()
