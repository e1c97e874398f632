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
from tests.docs.pages import ROOT, Block, blocks_of, commands_of, pages, read
from tests.docs.run_pages import run_blocks

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


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("lgq encode photos/", "required: -o"),
        ("lgq translate photos/ -o out", "invalid choice"),
        ("torchrun --nproc-per-node 8 --no-python lgq tokenize imagenet/ --outptu tokens", "unrecognized"),
        ("make demo tset", "no target tset"),
        ("pip install -e '.[trian]'", "no extra trian"),
        ("python -m training.corpsu --output corpus", "no module training.corpsu"),
        ("python -m lgq_hf.tokens", "no module lgq_hf.tokens"),  # a package that cannot be run
        ("python docs/make_pai.py --check", "no file"),
        ("accelerate launch -m training.train_tokenizer --config training/recipes/none.yaml", "none.yaml"),
        (
            "accelerate launch -m training.train_tokenizer --config training/recipes/tiny_cpu.yaml data.pth=x",
            "unknown keys ['pth'] in data",
        ),
        (
            "ACCELERATE_USE_CPU=true torchrun -m training.train_generator --config training/recipes/tiny_cpu.yaml",
            "tiny_cpu.yaml",
        ),
    ],
)
def test_a_wrong_command_is_found(command: str, problem: str) -> None:
    block = Block("page.md", 1, "", f"{command}   # with a comment\n")
    assert [problem in str(problem_of(words)) for words in commands_of(block)] == [True]


def test_commands_are_found_on_long_lines_and_in_loops() -> None:
    code = "for s in a b; do\n  lgq tokenize photos/$s \\\n      --output tokens [--size 64]  # twice\ndone\n"
    found = list(commands_of(Block("page.md", 1, "", code)))
    assert found[1] == ["lgq", "tokenize", "photos/$s", "--output", "tokens", "--size", "64"]
    assert not list(commands_of(Block("page.md", 1, "yaml", code)))


PAGE = """# A page
<!-- not run: needs a GPU -->

```python
unknown_name
```
- in a list
  ```python
  a = 1
  ```
```
lgq info
```
```python
b = a + {}
```
"""


def test_blocks_run_in_their_order_and_a_failure_has_the_page_and_line() -> None:
    blocks = blocks_of(PAGE.format("1"), "docs/page.md")
    assert [(block.line, block.language, block.not_run) for block in blocks] == [
        (5, "python", "needs a GPU"),
        (9, "python", None),
        (12, "", None),
        (15, "python", None),
    ]
    assert run_blocks(blocks) is None
    failed = run_blocks(blocks_of(PAGE.format("missing"), "docs/page.md"))
    assert failed is not None and 'File "docs/page.md", line 15' in failed and "'missing'" in failed
    broken = run_blocks(blocks_of(PAGE.replace("unknown_name", "1 +"), "docs/page.md"))
    assert broken is not None and "SyntaxError" in broken  # what does not run is compiled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- not run -->\n```python\n1\n```\n", "page.md:1: expected a reason"),
        ("<!-- not run: -->\n```python\n1\n```\n", "page.md:1: expected a reason"),
        ("<!-- not run: needs a GPU -->\ntext\n```python\n1\n```\n", "expected a Python block behind"),
        ("<!-- not run: needs a GPU -->\n```\nlgq info\n```\n", "is for a Python block"),
        ("<!-- not run: needs a GPU -->\n", "has none"),
        ("```python\n1\n", "not closed"),
    ],
)
def test_a_comment_without_a_reason_or_a_block_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks_of(text)


def test_no_block_escapes_by_its_language() -> None:
    """What is not `python` must be a language that nothing runs: `py` or `python3` would be passed over."""
    languages = {block.language for blocks in BLOCKS.values() for block in blocks}
    assert languages <= {"python", "", "sh", "bash", "shell", "console", "yaml", "json", "text", "bibtex"}
    assert {"README.md", "docs/getting_started.md", "docs/generating.md"} <= set(WITH_PYTHON)
