"""`lgq export`; ONNX of the built-in checkpoint is in ../test_export.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from lgq_hf.checkpoint.loading import weights_fingerprint
from lgq_hf.cli.main import main
from lgq_hf.export import onnx as exporting
from lgq_hf.export.onnx import ExportError


def lgq_export(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["export", *map(str, arguments)])
    return (status, *capsys.readouterr())


def test_programs_of_torch(capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a" / "pt2"
    status, out, err = lgq_export(capsys, model_folder, "--output", output, "--format", "pt2")
    assert (status, err) == (0, "")
    files = {"encoder.pt2", "decoder.pt2", "export.json", "preprocessor_config.json"}
    assert {path.name for path in output.iterdir()} == files
    weights = weights_fingerprint(model_folder)
    assert out.splitlines() == [
        f"{output}: encoder.pt2 and decoder.pt2 of {model_folder}",
        f"weights {weights[:12]}, height and width multiples of 8",
        "0 of 66 random tokens differ from the model's, pixels by up to 0",
    ]
    assert json.loads((output / "export.json").read_text())["fingerprint"] == weights


def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ExportError("the exported encoder gives other tokens")

    monkeypatch.chdir(tmp_path)  # before anything is loaded
    status, _, err = lgq_export(capsys, tmp_path / "gone", "-o", ".")
    assert status == 2 and "current directory" in err
    output = tmp_path / "x"
    assert lgq_export(capsys, tmp_path / "gone", "-o", output)[::2] == (
        2,
        f"lgq: no model at {str(tmp_path / 'gone')!r}: no such folder\n",
    )
    monkeypatch.setattr(exporting, "export_onnx", fails)
    assert lgq_export(capsys, model_folder, "-o", output)[::2] == (
        2,
        f"lgq: {model_folder}: the exported encoder gives other tokens\n",
    )
    assert lgq_export(capsys, model_folder, "-o", output, "--format", "tflite")[0] == 2
    assert lgq_export(capsys, model_folder)[0] == 2
