"""Tiny random checkpoints, and the one inside the package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def tiny(build_model: Callable[..., LGQModel]) -> Callable[..., Checkpoint]:
    """`tiny(name, **config_changes)`: a checkpoint with a model of `MODELS`, which lies in no folder."""

    def make(name: str, **changes: Any) -> Checkpoint:
        model = build_model(name, **changes)
        processor = LGQImageProcessor(pad_to_multiple_of=model.config.spatial_downsample_factor)
        return Checkpoint(name, Path(), model, processor, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def embedded() -> Checkpoint:
    return load_checkpoint(None, "cpu")
