"""The table in conversion/README.md is that of parity.json, and parity.json says what it must."""

import json

import pytest

from conversion.formats import FORMATS
from conversion.parity import PAGE, RESULT, main, render
from conversion.verify import TOLERANCE


def test_the_page_shows_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert "is that of parity.json" in capsys.readouterr().out
    result = json.loads(RESULT.read_text())
    result["files"]["taming_a/checkpoint.ckpt"]["recorded"]["rect"]["latents"] = 0.5
    assert "| 5.0e-01 |" in render(PAGE.read_text(), result) != PAGE.read_text()


def test_every_format_was_measured_and_passes() -> None:
    files = json.loads(RESULT.read_text())["files"]
    assert {row["format"] for row in files.values()} == set(FORMATS)
    for name, row in files.items():
        for part in row["recorded"].values():
            assert 0 <= max(part["latents"], part["pixels"]) <= TOLERANCE, name
            assert part["tokens_wrong"] == 0 and part["tokens"] > 16, name


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one part <!-- rendered: parity -->"):
        render("nothing here", json.loads(RESULT.read_text()))
