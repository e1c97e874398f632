"""`lgq` as a process: arguments, exit status, and what is left when it is stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lgq_hf
from lgq_hf.cli import token_file
from lgq_hf.cli.main import main
from lgq_hf.tokenizer.image_processing_lgq import formats

Lgq = Callable[..., Any]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "reconstruct" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lgq_hf {lgq_hf.__version__}\n"
    for command in ("encode", "decode", "reconstruct", "info"):
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: lgq {command} ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["encode"],
        ["encode", "x.png", "-o", "t.npz", "--size", "0"],
        ["encode", "x.png", "-o", "t.npz", "--device", "tpu"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: lgq")


def test_arguments_are_read_without_torch() -> None:
    # the package itself registers its classes with transformers when it is imported; here an empty one stands in
    code = f"""
import sys, types
package = sys.modules["lgq_hf"] = types.ModuleType("lgq_hf")
package.__path__ = [{str(Path(lgq_hf.__file__).parent)!r}]
from lgq_hf.cli.main import main
assert main(["encode", "--help"]) == 0 and not {{"torch", "transformers", "numpy", "PIL"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path, lgq: Lgq) -> None:
    (tmp_path / "x.png").mkdir()
    (tmp_path / "file").touch()
    cases = [
        (["encode", tmp_path, "-o", tmp_path / "t.pt"], "expected a name that ends in .safetensors or .npz"),
        (
            ["encode", tmp_path, "-o", tmp_path / "file" / "t.npz"],
            f"cannot be a folder, {tmp_path / 'file'} is a file",
        ),
        (["reconstruct", tmp_path, "-o", tmp_path / "x.png"], "is a folder, expected the name of a file"),
        (["decode", "t.npz", "-o", tmp_path / "file"], "cannot be a folder"),
        (["decode", tmp_path / "t.npz", "-o", tmp_path], "No such file"),
    ]
    for arguments, message in cases:
        result = lgq(*arguments)
        assert result.status == 2
        assert message in result.err
        assert result.err.startswith("lgq: ")


@pytest.fixture
def work(tmp_path: Path) -> list[str | Path]:
    """`lgq encode` of one picture into a folder where an older output lies."""
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "t.safetensors").write_text("older")
    return ["encode", tmp_path / "x.png", "-o", tmp_path / "out" / "t.safetensors"]


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_writing(
    tmp_path: Path, lgq: Lgq, work: list[str | Path], monkeypatch: pytest.MonkeyPatch, stop: int, status: int
) -> None:
    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        os.kill(os.getpid(), stop)

    monkeypatch.setattr(token_file, "save_file", half)
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        result = lgq(*work)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert (result.status, result.out) == (status, "")
    assert signal.getsignal(signal.SIGTERM) == before
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["t.safetensors"]
    assert (tmp_path / "out" / "t.safetensors").read_text() == "older"


def test_as_a_process(tmp_path: Path, model_folder: Path) -> None:
    """Two good pictures, one with a name that no terminal should obey, and a broken one."""
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "\x1b[31mred\udcff.png")
    (tmp_path / "bad.png").write_text("bad")
    arguments = ["reconstruct", tmp_path, "-o", tmp_path / "out" / "sheet.png", "--model", model_folder]
    command = [sys.executable, "-m", "lgq_hf.cli.main", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="latin-1", env=environment, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(r"\x1b[31mred\udcff.png: 16 x 16 px, PSNR ")
    reason = f"{tmp_path / 'bad.png'}: not an image that can be read, or damaged in its header"
    reason += f"; formats: {', '.join(formats())}"
    assert done.stderr == f"lgq: {reason}\n\nlgq: 1 of 3 images failed:\n  {reason}\n"
    assert Image.open(tmp_path / "out" / "sheet.png").width > 250


@pytest.mark.slow
def test_nobody_reads_the_output(model_folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lgq_hf.cli.main", "info", str(model_folder)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (2, "")
