"""Where a number comes from: what every result file says of the code and the machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lgq_hf._version import __version__


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """Commit (with `+changes` where the code that is measured differs from it).

    A copy of the code without its git history says what it is a copy of in the variable LGQ_COMMIT.

    Raises:
        RuntimeError: where nothing tells.
    """
    if stated := os.environ.get("LGQ_COMMIT"):
        return stated
    try:
        _git("ls-files", "--error-unmatch", "lgq_hf")  # an installed copy may lie in somebody else's checkout
        changed = _git("status", "--porcelain", "--", "lgq_hf", "benchmarks/*.py", "training", "conversion/*.py")
        return _git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            "a result states the commit that it was measured at, and git gives none: run in a checkout, or set "
            "LGQ_COMMIT to the commit that this is a copy of"
        ) from error


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def versions() -> dict[str, str | None]:
    """Versions of this package and of what its numbers depend on; `None` for what is not installed."""
    return {
        "lgq_hf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("transformers", "pillow", "numpy", "triton")},
    }


def provenance(*, strict: bool = True) -> dict[str, Any]:
    """Commit, versions (`None` for what is not installed) and hardware.

    Without `strict`, a commit that nothing tells is `None`.
    """
    try:
        at: str | None = commit()
    except RuntimeError:
        if strict:
            raise
        at = None
    return {
        "commit": at,
        "versions": versions(),
        "hardware": {
            "cpu": _cpu(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


__all__ = ["commit", "provenance", "versions"]
