"""Where a number comes from: what every result file says of the code and the machine."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch
import transformers

from lgq_hf import __version__
from lgq_hf.files import atomic_file

RESULTS = Path(__file__).parent / "results"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def provenance() -> dict[str, Any]:
    """Commit (with `+changes` where the code that is measured differs from it), versions and hardware."""
    changed = _git("status", "--porcelain", "--", "lgq_hf", "benchmarks/*.py", "training/*.py")
    return {
        "commit": _git("rev-parse", "HEAD") + ("+changes" if changed else ""),
        "versions": {
            "lgq_hf": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
            "numpy": numpy.__version__,
        },
        "hardware": {
            "cpu": _cpu(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Writes results/<name>.json as a whole, with provenance; returns its path."""
    path = RESULTS / f"{name}.json"
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({**provenance(), **result}, indent=1) + "\n")
    return path
