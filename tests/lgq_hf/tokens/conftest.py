"""A folder of photographs in two classes, and jobs over it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgq_hf.checkpoint.loading import Reference
from lgq_hf.images.sources import ImageSource, open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.tokens.encoding import Encoding
from lgq_hf.tokens.engine import Job
from lgq_hf.tokens.plan import make_plan


@pytest.fixture
def job(pictures: Path, reference: Reference, tmp_path: Path) -> Callable[..., Job]:
    """`job(output=..., source=..., size=64, batch_size=4, per_file=3, ...)`: a job of four files by default."""

    def make(
        output: str | Path | None = None,
        source: ImageSource | None = None,
        *,
        batch_size: int = 4,
        per_file: int = 3,
        mixed_sizes: bool = False,
        on_error: str = "skip",
        split: str = "train",
        like: Reference = reference,
        **cut: Any,
    ) -> Job:
        source = source or open_source(str(pictures))
        preprocessing = Preprocessing(**({} if mixed_sizes else {"size": 64}) | cut)
        options: dict[str, Any] = {"mixed_sizes": mixed_sizes, "per_file": per_file}
        encoding = Encoding(batch_size=batch_size)
        plan = make_plan(like, "org/tiny", source, preprocessing, encoding, split=split, **options)
        return Job(plan, like, source, str(output or tmp_path / "tokens"), on_error)

    return make


def digests(folder: str | Path) -> dict[str, str]:
    """sha256 of every file below a folder, by name, hidden ones too."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(name="digests")
def digests_fixture() -> Callable[[str | Path], dict[str, str]]:
    return digests
