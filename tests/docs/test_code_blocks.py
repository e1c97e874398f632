"""Python blocks of README, docs and cards run on the embedded checkpoint; commands in shell blocks are parsed."""

import configparser
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lgq_hf.cli.main import build_parser
from tests.docs.pages import ROOT, blocks_of, commands_of, pages, read

BLOCKS = {page: blocks_of(read(page), page) for page in pages()}
WITH_PYTHON = [page for page, blocks in BLOCKS.items() if any(block.language == "python" for block in blocks)]
FIRST_WORDS = {"lgq", "make", "pip", "python", "torchrun", "accelerate"}
WITH_SHELL = [
    page
    for page, blocks in BLOCKS.items()
    if any(words[0] in FIRST_WORDS for block in blocks for words in commands_of(block))
]
RECIPES = {"training.train_tokenizer": "training.recipe", "training.train_generator": "training.generator_recipe"}
_PLACEHOLDER = re.compile(r"[A-Z_]+(\.yaml)?")
_OVERRIDE = re.compile(r"[a-z_.]+=\S+")


@pytest.mark.slow
def test_python_blocks_run(tmp_path: Path) -> None:
    """All pages in one test and one process: workers of xdist would each prepare it anew. There is no network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.docs.run_pages", str(tmp_path / "work"), str(tmp_path / "report.json")]
    done = subprocess.run(
        [*command, *WITH_PYTHON], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == WITH_PYTHON
    assert not any(report.values()), "\n".join(failure for failure in report.values() if failure)


@pytest.mark.parametrize("page", WITH_SHELL)
def test_commands_are_those_that_there_are(page: str) -> None:
    wrong = [
        f"{page}:{block.line}: {' '.join(words)}: {problem}"
        for block in BLOCKS[page]
        for words in commands_of(block)
        if (problem := problem_of(words))
    ]
    assert not wrong, "\n".join(wrong)


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a command, if it is one of ours: `lgq`, a module or file of Python, `make` or an extra."""
    if "lgq" in words[:1] or ("lgq" in words and words[0] in ("torchrun", "accelerate")):
        return _problem_of_lgq(words[words.index("lgq") + 1 :])
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", read("Makefile"), flags=re.MULTILINE))
        return next((f"no target {word}" for word in words[1:] if "=" not in word and word not in targets), None)
    if words[:2] == ["pip", "install"]:
        return _problem_of_extras(" ".join(words[2:]))
    runs = words[0] in ("python", "torchrun", "accelerate") or any("=" in word for word in words[:1])
    if runs and "-m" in words:
        return _problem_of_module(words[words.index("-m") + 1], words[words.index("-m") + 2 :])
    if words[0] == "python" and words[1:] and not (ROOT / words[1]).is_file():
        return f"no file {words[1]}"
    return None


def _problem_of_lgq(words: list[str]) -> str | None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            build_parser().parse_args(words)
    except SystemExit as stop:
        if stop.code:
            return said.getvalue()
    return None


def _problem_of_extras(text: str) -> str | None:
    options = configparser.ConfigParser(interpolation=None)
    options.read(ROOT / "setup.cfg")
    named = [name for group in re.findall(r"\[([\w,]+)", text) for name in group.split(",")]
    return next((f"no extra {name}" for name in named if name not in options["options.extras_require"]), None)


def _problem_of_module(module: str, words: list[str]) -> str | None:
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    if spec is None:
        return f"no module {module}"
    if module in RECIPES and "--config" in words:
        overrides = [word for word in words if _OVERRIDE.fullmatch(word) and word != "key=value"]
        place = words[words.index("--config") + 1]
        if _PLACEHOLDER.fullmatch(place):
            return None
        try:
            importlib.import_module(RECIPES[module]).read_recipe(ROOT / place, overrides)
        except (OSError, ValueError) as error:
            return str(error)
    return None


def test_no_block_escapes_by_its_language() -> None:
    """What is not `python` must be a language that nothing runs: `py` or `python3` would be passed over."""
    languages = {block.language for blocks in BLOCKS.values() for block in blocks}
    assert languages <= {"python", "", "sh", "bash", "shell", "console", "yaml", "json", "text", "bibtex"}
    assert {"README.md", "docs/getting_started.md", "docs/generating.md"} <= set(WITH_PYTHON)
