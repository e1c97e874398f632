"""`lgq evaluate`: the file, the lines and the grid of one run, and what is refused before the work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from lgq_hf.cli import evaluate
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
    words = ["evaluate-generator", "--pipeline", str(place / "pipe"), "--pictures", str(place / "real"), "--num", "6"]
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
    assert f"{metrics['frechet_distance']:.4g} (6 generated and 5 real" in out
    assert f"precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f} (k = 3)" in out
    assert f"{metrics['frechet_distance_of_reconstructions']:.4g}" in out
    assert np.asarray(Image.open(grid)).shape == (2 * 39 + 7, 3 * 39 + 7, 3)

    again_words = ["evaluate", *words[1:]]  # the two commands once were one
    assert main([*again_words, "-o", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["metrics"] == metrics and again["protocol"] == result["protocol"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--grid": "grid.jpg"}, "grid.jpg: expected a name that ends in .png"),
        ({"--num": "3"}, "expected at least 4 pictures on both sides, got 3 to generate and 5 in"),
        ({"--tokens": "./none"}, "no manifest.json in ./none: expected a folder that `lgq tokenize` finished"),
    ],
)
def test_refuses(
    changed: dict[str, str], message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--pipeline": str(place / "pipe"), "--pictures": str(place / "real"), "--num": "4"}
    options |= {"-o": str(tmp_path / "out.json"), **changed}
    assert main(["evaluate-generator", *(word for option in options.items() for word in option)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs of 40 x 60 pixels."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(5):
        Image.fromarray(data.astronaut()[50 * number : 40 + 50 * number, 90:150]).save(folder / f"{number}.png")
    return folder


def test_a_tokenizer(
    photographs: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, grid = tmp_path / "new" / "out.json", tmp_path / "grid.png"
    words = ["evaluate", str(model_folder), str(photographs), "--size", "32", "--batch-size", "2", "--limit", "4"]
    words += ["--seed", "3", "--device", "cpu", "--ema", "no", "--dtype", "bfloat16", "--crops", "5"]
    assert main([*words, "--crop-scale", "1.25", "-o", str(output), "--grid", str(grid)]) == 0
    out, err = capsys.readouterr()
    assert "lgq:" not in err
    result = json.loads(output.read_text())
    protocol, metrics = result["protocol"], result["metrics"]
    asked = {"seed": 3, "batch_size": 2, "ema": "no", "dtype": "bfloat16", "crop_scale": 1.25, "views": 20}
    assert asked.items() <= protocol.items() and protocol["chosen"] == "4 of 5, drawn by the seed"
    assert (protocol["extractor"], protocol["classifier"]["network"]) == ("efficientnet-lite0",) * 2
    assert result["model"]["name"] == str(model_folder) and sum(result["codebook_counts"]) == 20 * 16
    assert "bfloat16: 4 images, 20 crops of 32 x 32 pixels" in out
    for part in (
        f"PSNR {metrics['psnr']:.2f} (deviation {metrics['psnr_std']:.2f}) dB, SSIM {metrics['ssim']:.4f}",
        f"(4 pictures; not rFID): {metrics['frechet_distance']:.4g}",
        f"{100 * metrics['top1_agreement']:.1f} %",
        f"{metrics['codes_used']} of 64 codes used by N = 320 tokens",
        f"0.0938 bits a pixel, {metrics['bits_per_pixel_by_entropy']:.4f} by the entropy",
    ):
        assert part in out
    assert np.asarray(Image.open(grid)).shape[2] == 3 and len(result["extremes"]["best"]) == 8


def test_the_built_in_tokenizer_and_broken_pictures(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes((photographs / f"{number}.png").read_bytes())
    (tmp_path / "bad.png").write_text("no picture")
    words = ["evaluate", "lgq-tiny", str(tmp_path), "--device", "cpu", "-o", str(tmp_path / "out.json")]
    assert main(words) == 2
    assert "bad.png in" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
    assert main([*words, "--on-error", "skip"]) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 images failed:\n  bad.png: not an image" in err and "2 images of 40 x 60" in out
    assert json.loads((tmp_path / "out.json").read_text())["protocol"]["failed"][0]["id"] == "bad.png"


def test_of_several_processes_the_first_one_writes(
    photographs: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(evaluate, "evaluate_tokenizer", lambda *_: {})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    words = ["evaluate", str(model_folder), str(photographs), "--device", "cpu", "-o", str(tmp_path / "out.json")]
    assert main([*words, "--grid", str(tmp_path / "grid.png")]) == 0
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: lgq evaluate"),
        (["m", "d", "--num", "4"], "--num"),  # of generators
        (["--pipeline", "p", "--size", "3"], "usage: lgq evaluate-generator"),
        (["m", "d", "--batch-size", "0"], "batch_size: expected at least 1, got 0"),
        (["m", "d", "--crops", "5"], "crops and crop_scale need a size"),
        (["m", "d", "--grid", "g.jpg"], "g.jpg: expected a name that ends in .png"),
        (
            ["m", "d", "--extractor", "inception-2015"],
            "inception-2015 needs a file",
        ),
        (
            ["m", "d", "--inception-weights", "w"],
            "only for inception-2015",
        ),
        (["m", "d", "--lpips-vgg", "w"], "--lpips-vgg and --lpips-heads belong together: LPIPS needs both files"),
        (["m", "./none"], "there is no ./none"),
    ],
)
def test_refuses_before_the_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *words, "-o", str(tmp_path / "out.json")]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
