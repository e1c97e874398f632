"""Photographs, files that cannot be read, a tiny checkpoint, and `lgq` itself, called in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import Reference, find_checkpoint
from lgq_hf.cli.main import main


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


class Result(NamedTuple):
    """What one call of `lgq` left."""

    status: int
    out: str
    err: str


def save_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a tiny random model (f8, K = 64) and its processor into `folder`."""
    small: dict[str, Any] = {"base_channels": 8, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1}
    small |= {"bottleneck_attention": False, "latent_channels": 16, "codebook_size": 64, "image_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LGQModel(LGQConfig(**{**small, **changes})).save_pretrained(folder)
    LGQImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "other", seed=1)


@pytest.fixture
def make_model() -> Callable[..., Path]:
    """`make_model(folder, seed=0, **config_changes)`: saves another tiny checkpoint."""
    return save_model


@pytest.fixture
def lgq(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`lgq("encode", ...)`: the command with the tiny model, unless the arguments name one."""

    def call(*arguments: str | Path) -> Result:
        words = [str(argument) for argument in arguments]
        if words[0] != "info" and "--model" not in words:
            words += ["--model", str(model_folder)]
        capsys.readouterr()
        status = main(words)
        return Result(status, *capsys.readouterr())

    return call


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
