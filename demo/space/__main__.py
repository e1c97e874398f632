"""Puts a Space together: `python -m demo.space OUTPUT`, then `hf upload ORG/NAME OUTPUT . --repo-type space`.

A Space installs requirements.txt before its other files are there, so the package itself lies beside app.py.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lgq_hf.export.onnx import check_output

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("README.md", "app.py", "requirements.txt")
LICENCES = ("LICENSE", "NOTICE")


def assemble(output: Path) -> None:
    """Copies the Space's files, the package and its licences into a folder that is made.

    Args:
        output: folder that does not exist yet, or is empty.

    Raises:
        ValueError: it holds something.
    """
    check_output(output)
    shutil.copytree(ROOT / "lgq_hf", output / "lgq_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*(HERE / name for name in FILES), *(ROOT / name for name in LICENCES)):
        shutil.copyfile(path, output / path.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m demo.space`; returns its exit status."""
    parser = argparse.ArgumentParser(prog="demo.space", description="Puts a Hugging Face Space together.")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make")
    output = parser.parse_args(argv).output
    try:
        assemble(output)
    except (ValueError, OSError) as error:
        print(f"demo.space: {error}", file=sys.stderr)
        return 2
    print(f"{output} is ready: hf upload ORG/NAME {output} . --repo-type space")
    return 0


if __name__ == "__main__":
    sys.exit(main())
