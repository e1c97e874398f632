"""A folder of photographs in two classes, and jobs over it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from lgq_hf.checkpoint import Reference, find_checkpoint
from lgq_hf.tokens.encoding import Encoding, Preprocessing
from lgq_hf.tokens.engine import Job
from lgq_hf.tokens.plan import make_plan
from lgq_hf.tokens.sources import TokenSource, open_source

COUNT = 11


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven JPEGs of several sizes in the folders "cats" and "people"."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        name, photograph = ("cats", data.chelsea()) if number % 3 else ("people", data.astronaut())
        height, width = ((72, 72), (80, 72), (96, 120))[number % 2 + (number > 7)]
        top, left = 17 * number % 150, 23 * number % 300
        (folder / name).mkdir(exist_ok=True)
        cut = Image.fromarray(photograph[top : top + height, left : left + width])
        cut.save(folder / name / f"{number:02d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> Reference:
    return find_checkpoint(str(model_folder))


@pytest.fixture
def job(pictures: Path, reference: Reference, tmp_path: Path) -> Callable[..., Job]:
    """`job(output=..., source=..., size=64, batch_size=4, per_file=3, ...)`: a job of four files by default."""

    def make(
        output: str | Path | None = None,
        source: TokenSource | None = None,
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
