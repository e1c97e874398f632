"""Photographs, and tiny tokenizers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.images.sources import ImageSource, open_source
from tests.lgq_hf.evaluation.plain import COUNT


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photographs of three sizes, none smaller than 40 pixels on a side."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(COUNT):
        photograph = data.chelsea() if number % 2 else data.astronaut()
        height, width = ((40, 56), (60, 44), (52, 52))[number % 3]
        top, left = 31 * number, 60 + 23 * number
        Image.fromarray(photograph[top : top + height, left : left + width]).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def source(photographs: Path) -> ImageSource:
    return open_source(str(photographs), kind="folder")


@pytest.fixture(scope="session")
def tiny(model_folder: Path) -> Checkpoint:
    return load_checkpoint(str(model_folder), "cpu")


@pytest.fixture
def checkpoint_of(build_model: Callable[..., LGQModel], tmp_path: Path) -> Callable[[str], Checkpoint]:
    """`checkpoint_of(name)`: a model of tests/conftest.py as a checkpoint on the CPU."""

    def make(name: str) -> Checkpoint:
        model = build_model(name)
        processor = LGQImageProcessor(pad_to_multiple_of=model.config.spatial_downsample_factor)
        model.save_pretrained(tmp_path / name)
        return Checkpoint(name, tmp_path / name, model, processor, torch.device("cpu"))

    return make
