"""`lgq evaluate`: the file, the lines and the grid of one run, and what is refused before the work."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from lgq_hf.cli.evaluate import _spread
from lgq_hf.cli.main import main
from tests.lgq_hf.generation.pipelines import small_pipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "pipe" and five photographs in "real"."""
    folder = tmp_path_factory.mktemp("evaluate")
    small_pipeline("masked").save_pretrained(folder / "pipe")
    (folder / "real").mkdir()
    for number in range(5):
        Image.fromarray(data.astronaut()[50 * number : 80 + 50 * number, 90:190]).save(
            folder / "real" / f"{number}.png"
        )
    return folder


def test_writes_numbers_and_a_grid(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--pipeline", str(place / "pipe"), "--pictures", str(place / "real"), "--num", "6"]
    words += ["--steps", "3", "--guidance", "1.5", "--top-k", "9", "--top-p", "0.9", "--temperature", "0.8"]
    words += ["--seed", "5", "--batch-size", "4", "--device", "cpu"]
    output, grid = tmp_path / "new" / "out.json", tmp_path / "grid.png"
    assert main([*words, "-o", str(output), "--grid", str(grid)]) == 0
    out, err = capsys.readouterr()
    assert "lgq:" not in err
    result = json.loads(output.read_text())
    assert result["pipeline"]["name"] == str(place / "pipe")
    asked = {"guidance_scale": 1.5, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "num_inference_steps": 3, "seed": 5}
    assert asked.items() <= result["protocol"].items()
    assert (result["protocol"]["classes"], result["protocol"]["batch_size"]) == ("even", 4)
    metrics = result["metrics"]
    first = (
        f"Fréchet distance of efficientnet-lite0 features: {metrics['frechet_distance']:.4g} (6 generated and 5 real"
    )
    assert first in out and f"precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f} (k = 3)" in out
    assert f"{metrics['frechet_distance_of_reconstructions']:.4g}" in out and "s a picture in batches of 4, " in out
    assert np.asarray(Image.open(grid)).shape == (2 * 39 + 7, 3 * 39 + 7, 3)

    assert main([*words, "-o", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["metrics"] == metrics and again["protocol"] == result["protocol"]


def test_the_grid_is_spread_over_all() -> None:
    assert _spread(5) == [0, 1, 2, 3, 4]
    assert len(set(_spread(1000))) == 64 and (_spread(1000)[0], _spread(1000)[-1]) == (0, 999)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"-o": "out.txt"}, "out.txt: expected a name that ends in .json"),
        ({"--grid": "grid.jpg"}, "grid.jpg: expected a name that ends in .png"),
        ({"--pipeline": "./none"}, "no pipeline at './none': no such folder"),
        ({"--pictures": "./none"}, "./none is no folder: expected one that holds pictures"),
        ({"--num": "3"}, "expected at least 4 pictures on both sides, got 3 to generate and 5 in"),
        ({"--batch-size": "0"}, "batch_size: expected at least 1, got 0"),
        ({"--tokens": "./none"}, "no manifest.json in ./none: expected a folder that `lgq tokenize` finished"),
        ({"--top-p": "2"}, "top_p: expected a share in (0, 1] or None, got 2.0"),
    ],
)
def test_refuses(
    changed: dict[str, str], message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--pipeline": str(place / "pipe"), "--pictures": str(place / "real"), "--num": "4"}
    options |= {"-o": str(tmp_path / "out.json"), **changed}
    assert main(["evaluate", *(word for option in options.items() for word in option)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
