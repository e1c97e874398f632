"""The Space: its files agree with the package, and what is put together runs by itself."""

import configparser
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from lgq_hf.cli.main import build_parser
from lgq_hf.demo.page import is_loopback

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "demo" / "space"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"space_{name}", SPACE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", path.read_text(), flags=re.MULTILINE))


def test_requirements_are_those_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = re.findall(r"^[A-Za-z0-9_.-]+", setup["options"]["install_requires"], flags=re.MULTILINE)
    pins, constraints = _pins(SPACE / "requirements.txt"), _pins(ROOT / "constraints.txt")
    assert set(pins) == {*needed, "gradio", "pytorch-msssim", "scikit-image"}
    assert pins == {name: constraints.get(name) for name in pins}


def test_front_matter_is_what_a_space_reads() -> None:
    _, front, text = (SPACE / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["sdk"], facts["license"], facts["app_file"]) == ("gradio", "mit", "app.py")
    assert facts["sdk_version"] == _pins(SPACE / "requirements.txt")["gradio"]
    assert len(facts["short_description"]) <= 60 and text.strip()  # longer ones are refused by the Hub


def test_app_is_the_command_for_everybody() -> None:
    arguments = build_parser().parse_args(_load("app").ARGUMENTS)
    assert (arguments.command, arguments.port, arguments.model) == ("demo", 7860, None)
    assert not is_loopback(arguments.host)


@pytest.mark.slow
def test_it_is_put_together_whole_and_runs_from_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, output = _load("__main__").main, tmp_path / "space"
    assert main([str(output)]) == 0
    assert f"hf upload ORG/NAME {output} . --repo-type space" in capsys.readouterr().out
    files = {"LICENSE", "NOTICE", "README.md", "app.py", "requirements.txt"}
    assert {path.name for path in output.iterdir()} == files | {"lgq_hf"}
    assert not list(output.rglob("__pycache__"))
    where = "import lgq_hf, lgq_hf.demo.view; print(lgq_hf.__file__, lgq_hf.default_checkpoint().is_dir())"
    ran = subprocess.run([sys.executable, "-c", where], cwd=output, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(output / "lgq_hf" / "__init__.py"), "True"]

    assert main([str(output)]) == 2
    refused = "exists and is not an empty folder: take another name, nothing is replaced"
    assert capsys.readouterr().err == f"demo.space: {output} {refused}\n"
