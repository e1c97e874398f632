import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


def test_demo_prints_tokens_and_writes_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = loaded()
    monkeypatch.setattr(demo, "HERE", tmp_path)
    assert demo.main([]) == 0
    printed = capsys.readouterr().out
    grid = [[int(word) for word in line.split()] for line in printed.splitlines() if re.fullmatch(r"[ \d]+", line)]
    assert len(grid) == demo.ROWS and {len(row) for row in grid} == {demo.COLUMNS}
    assert len({token for row in grid for token in row}) > 20
    decibels = [float(value) for value in re.findall(r"PSNR ([\d.]+) dB", printed)]
    assert len(decibels) == len(demo.photographs.NAMED) and min(decibels) > 15
    with Image.open(tmp_path / "reconstruction.png") as picture:
        assert picture.width >= 512 and picture.height >= 5 * 256


def test_demo_takes_another_checkpoint_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "other.png"
    assert loaded().main(["--model", str(DEMO.parents[1] / "model_cards" / "lgq-16k"), "-o", str(written)]) == 0
    printed = capsys.readouterr().out
    assert "is a grid of 16 x 16 tokens below 16384" in printed
    assert len(re.findall(r"256 x 256 px, PSNR [\d.]+ dB, 16 x 16 tokens", printed)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]
