import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path, astronaut: Any, chelsea: Any) -> Path:
    for name, picture in (("cats/a", chelsea), ("people/b", astronaut), ("people/c", astronaut.rotate(90))):
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "in"


def test_a_folder_becomes_a_dataset(lgq: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    result = lgq("tokenize", folder, "-o", output, "--size", 64, "--flip")
    assert result.status == 0, result.err
    first, second = result.out.splitlines()
    assert first.startswith(f"{output}: 3 pictures, 6 rows of 8 x 8 tokens in 1 files of ")
    assert "bytes a token with labels and names; log2(K) / 8 = 0.75" in second
    rows = datasets.load_dataset(str(output), split="train")
    assert rows["id"] == ["cats/a.png"] * 2 + ["people/b.png"] * 2 + ["people/c.png"] * 2
    assert rows["flip"] == [False, True] * 3
    again = lgq("tokenize", folder, "-o", output, "--size", 64, "--flip")
    assert (again.status, again.out) == (0, result.out)
    checked = lgq("tokenize", "--verify", output)
    assert (checked.status, checked.out) == (0, f"{first}: all as in the manifest\n")


def test_failures_are_listed_and_the_rest_is_done(
    lgq: Callable[..., Any], folder: Path, broken: dict[str, Path], tmp_path: Path
) -> None:
    for number in range(6):
        for name, file in broken.items():
            shutil.copy(file, folder / "cats" / f"{name}{number}.jpg")
    result = lgq("tokenize", folder, "-o", tmp_path / "tokens", "--size", 64)
    assert result.status == 1
    lines = result.err.splitlines()
    start = lines.index("lgq: 24 of 27 images failed:")
    assert lines[start + 1] == "  cats/empty0.jpg: empty file"
    assert lines[start + 21] == "  and 4 more, all in manifest.json"
    assert len(json.loads((tmp_path / "tokens" / "manifest.json").read_text())["failures"]) == 24
    stopped = lgq("tokenize", folder, "-o", tmp_path / "other", "--size", 64, "--on-error", "stop")
    assert stopped.status == 2
    assert "lgq: cats/empty0.jpg: empty file (to record such pictures and go on: --on-error skip" in stopped.err


def test_a_share_of_the_work(lgq: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    words = ("tokenize", folder, "-o", tmp_path / "tokens", "--size", 64, "--pictures-per-file", 1, "--num-shards", 2)
    first = lgq(*words, "--shard-index", 0)
    assert (first.status, first.out) == (
        0,
        f"{tmp_path / 'tokens'}: this process's files are there; others are not yet\n",
    )
    second = lgq(*words, "--shard-index", 1)
    assert "3 pictures, 3 rows of 8 x 8 tokens in 3 files" in second.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "64"], "expected a SOURCE and --output, or --verify DIR"),
        (["/nowhere", "-o", "{out}", "--size", "64"], "nothing to do: there is no /nowhere"),
        (["{in}", "-o", "{out}", "--size", "64", "--num-shards", "2"], "belong together"),
        (["{in}", "-o", "{out}", "--crops", "5"], "crops and crop_scale need a size"),
        (["{in}", "-o", "{out}", "--size", "64", "--batch-size", "0"], "batch_size"),
        (["{in}", "-o", "{out}", "--size", "64", "--label-column", "y"], "it has no columns"),
        (["{in}", "-o", "{out}", "--mixed-sizes", "--compile"], "compile needs"),
        (["--verify", "{in}"], "no manifest.json in"),
        (
            ["{in}", "-o", "{out}", "--engine", "ray", "--device", "cpu"],
            "are for --engine local; Ray has --ray-workers",
        ),
        (["{in}", "-o", "{in}/tokens", "--size", "64"], "which is to be read: choose another output folder"),
        (["{in}", "-o", "nothing://place", "--size", "64"], "Protocol not known: nothing"),
    ],
)
def test_wrong_usage(lgq: Callable[..., Any], folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    places = {"in": folder, "out": tmp_path / "out"}
    result = lgq("tokenize", *(word.format(**places) for word in words))
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_pictures_come_out_of_shards_again(lgq: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    lgq("encode", folder, "-o", tmp_path / "one.safetensors", "--size", 60)
    lgq("decode", tmp_path / "one.safetensors", "-o", tmp_path / "one")
    lgq("tokenize", folder, "-o", tmp_path / "fixed", "--size", 60, "--flip")
    lgq("tokenize", folder, "-o", tmp_path / "mixed", "--mixed-sizes")
    result = lgq("decode", tmp_path / "fixed", "-o", tmp_path / "out")
    assert (result.status, result.out) == (0, f"{tmp_path / 'out'}: 6 pictures\n"), result.err
    names = ["cats/a-flipped.png", "cats/a.png", "people/b-flipped.png", "people/b.png"]
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))[:4] == names
    for name in ("cats/a.png", "people/c.png"):
        pictures = [np.asarray(Image.open(tmp_path / place / name)).astype(int) for place in ("one", "out")]
        assert pictures[0].shape == (60, 60, 3)
        assert (pictures[0] != pictures[1]).mean() < 0.1  # a batch of another size rounds differently
    result = lgq("decode", tmp_path / "mixed", "-o", tmp_path / "some", "--rows", "0:2")
    assert result.out == f"{tmp_path / 'some'}: 2 pictures\n"
    with Image.open(tmp_path / "some" / "cats" / "a.png") as picture:
        assert picture.size == (203, 150)


def test_rows_that_are_not_there(
    lgq: Callable[..., Any], folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    lgq("tokenize", folder, "-o", tmp_path / "tokens", "--size", 64)
    lgq("encode", folder, "-o", tmp_path / "one.safetensors", "--size", 64)
    for words, message in (
        (["tokens", "--rows", "3:9"], "--rows: no rows 3:9 in"),
        (["tokens", "--rows", "2:2"], "expected two numbers A:B, A below B, got '2:2'"),
        (["one.safetensors", "--rows", "0:1"], "--rows is for a folder of token shards"),
        (["in"], "no manifest.json in"),
        (["tokens", "--model", str(other_model_folder)], "these tokens were made by"),
    ):
        result = lgq("decode", tmp_path / words[0], "-o", tmp_path / "out", *words[1:])
        assert result.status == 2 and message in result.err
    assert not (tmp_path / "out").exists()


def test_by_ray_without_it(
    lgq: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    result = lgq("tokenize", folder, "-o", tmp_path / "tokens", "--size", 64, "--engine", "ray")
    assert result.status == 2 and "pip install '.[ray]' in a checkout of lgq_hf" in result.err
