"""Photographs, and files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    return Image.fromarray(data.astronaut()[:256, 128:384])  # 256x256, the face


@pytest.fixture(scope="session")
def chelsea() -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(data.chelsea()[50:200, 100:303]))  # 203x150: no multiple of 8


@pytest.fixture
def broken(tmp_path: Path, astronaut: Image.Image) -> dict[str, Path]:
    """Files that cannot be read, by what is wrong with them."""
    folder = tmp_path / "broken"
    folder.mkdir()
    files = {kind: folder / f"{kind}.jpg" for kind in ("truncated", "text", "empty", "header")}
    astronaut.save(files["truncated"], quality=90)
    content = files["truncated"].read_bytes()
    files["truncated"].write_bytes(content[: len(content) // 2])
    files["header"].write_bytes(content[:30])
    files["text"].write_text("this is no picture\n")
    files["empty"].write_bytes(b"")
    return files
