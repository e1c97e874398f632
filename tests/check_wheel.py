"""Builds the package, installs the wheel into an empty environment, and uses it outside of the checkout: `make wheel`.

    python -m tests.check_wheel [--torch-args "..."]

Needs the network, as `pip install` does; so it is a command and no part of the suite.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
FIELDS = ("summary", "description", "author", "license_expression", "keywords", "requires_python", "project_urls")
INSIDE = ("py.typed", "pretrained/lgq-tiny/model.safetensors", "pretrained/lgq-tiny/README.md")
# what a user of the bare package meets, and the extra that the message must name; `{}` is a folder with a picture
WITHOUT_EXTRAS = {
    "metrics": ["evaluate", "lgq-tiny", "{}", "--output", "results.json"],
    "tokenize": ["tokenize", "{}", "-o", "tokens"],
    "generate": ["generate", "--pipeline", "{}", "-o", "grid.png"],
    "demo": ["demo"],
    "export": ["export", "--output", "exported"],
}
USE = """
import sys
import torch
from PIL import Image
import lgq_hf
from lgq_hf import LGQImageProcessor, LGQTokenizer, default_checkpoint
assert sys.prefix in lgq_hf.__file__, lgq_hf.__file__
tokenizer = LGQTokenizer.from_pretrained(default_checkpoint())
processor = LGQImageProcessor.from_pretrained(default_checkpoint())
batch = processor(Image.open(sys.argv[1]), return_tensors="pt")
tokens = tokenizer.encode(batch["pixel_values"]).image_tokens
picture = processor.postprocess(tokenizer.decode(tokens).decoded_pixel_values, batch["original_sizes"])[0]
assert picture.size == Image.open(sys.argv[1]).size and tokens.ndim == 3
"""


def run(*command: str | Path, folder: Path, expected: int = 0) -> str:
    """What a command said on both streams, without the checkout on any path.

    Raises:
        AssertionError: another exit status.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    words = f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}"
    assert ran.returncode == expected, f"expected status {expected}, got {ran.returncode}: {words}"
    return ran.stdout + ran.stderr


def check_contents(wheel: Path) -> None:
    """Complete metadata, the embedded checkpoint and the licences are in; tests and tools are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Metadata.from_email(archive.read(about), validate=True)
    missing = [field for field in FIELDS if not getattr(metadata, field)]
    assert not missing, f"{wheel.name} has no {', '.join(missing)}"
    assert {"LICENSE", "NOTICE"} <= set(metadata.license_files or [])
    absent = [name for name in INSIDE if f"lgq_hf/{name}" not in names]
    assert not absent, f"{wheel.name} lacks {', '.join(absent)}"
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lgq_hf", about.split("/")[0]}, f"{wheel.name} has {sorted(tops)}"


def main() -> int:
    """Command line; returns 0, or raises at the first thing that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-args", default="", help="for pip when it installs torch, as in the Makefile")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
        (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        check_contents(wheel)
        print(f"built {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) and {source.name}", flush=True)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        constraints = ROOT / "constraints.txt"
        torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
        pip = (python, "-m", "pip", "install", "--quiet", "-c", constraints)
        run(*pip, *shlex.split(chosen.torch_args), torch, folder=folder)
        run(*pip, wheel, folder=folder)
        run(python, "-m", "pip", "check", folder=folder)
        use(folder, python)
    print("the wheel works in an empty environment")
    return 0


def use(folder: Path, python: Path) -> None:
    """The five lines, the commands, and what commands say whose extra is missing."""
    pictures = folder / "pictures"
    pictures.mkdir()
    picture = pictures / "picture.png"
    make = "import sys; from PIL import Image; Image.radial_gradient('L').convert('RGB').save(sys.argv[1])"
    run(python, "-c", make, picture, folder=folder)
    run(python, "-c", USE, picture, folder=folder)
    lgq = python.with_name("lgq")
    assert "bits per pixel" in run(lgq, "info", folder=folder)
    run(lgq, "encode", picture, "-o", "tokens.safetensors", folder=folder)
    run(lgq, "decode", "tokens.safetensors", "-o", "decoded", folder=folder)
    assert list((folder / "decoded").glob("*.png"))
    for extra, arguments in WITHOUT_EXTRAS.items():
        said = run(lgq, *(one.format(pictures) for one in arguments), folder=folder, expected=2)
        assert f"'.[{extra}]'" in said, f"no word of the extra {extra}: {said}"
        assert "Traceback" not in said, said


if __name__ == "__main__":
    sys.exit(main())
